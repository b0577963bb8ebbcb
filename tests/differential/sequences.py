"""Define sequences of what users do with mountpoints, and carry them out on one side."""

import os
import shutil
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

from cases import Case
from device_sides import MNT_DETACH, NOBODY, OTHER, ROOT, DeviceOurs, DeviceSide, User, mounted
from folderserver import FolderServer
from harness.mounts import Mount
from hypothesis import strategies as st
from sides import Ended


class Do(Enum):
    """Says what happens in one step."""

    MOUNT = "mount"
    UNMOUNT = "unmount"
    DIE = "the program of the topmost mount there dies"
    HOLD = "a process uses it"
    RELEASE = "all these processes end"
    RENAME = "the folder with the mountpoints is renamed"
    REPLACE = "the folder with the mountpoints is renamed, and another one put into its place, until the end"
    COVER = "root mounts a tmpfs there, until the end"


@dataclass(frozen=True)
class Step:
    """Represents one step. `options` are those of -o, or of an unmount."""

    do: Do
    place: str = ""
    user: User = NOBODY
    options: str = ""
    is_remote: bool = False  # the program shows another owner, as sshfs does


FOLDERS = ("par", "rap")  # the folder with most mountpoints has the first name, or the second one while it is renamed
_PLACES = ("par/p", "par/p", "par/p/d", "par/p/d/d", "par/q", "par/f", "par/p/f", "world", "par/o", "tmpfs", "tmpfs/x", "par/odd\n\t\\ #")
_OPTIONS = (
    "allow_other",
    "allow_other",
    "allow_other,ro",
    "allow_other,fsname=a b,subtype=s",
    "allow_other,default_permissions",
    "",
    "noexec",
)
_UNMOUNTS = ("-u", "-u", "-uz", "-uq", "-uqz")

_users = st.sampled_from([NOBODY, NOBODY, NOBODY, OTHER, ROOT])
_places = st.sampled_from(_PLACES)
_steps = st.one_of(
    st.builds(Step, st.just(Do.MOUNT), _places, _users, st.sampled_from(_OPTIONS)),
    st.builds(Step, st.just(Do.MOUNT), _places, st.just(NOBODY), st.just("allow_other")),
    st.builds(Step, st.just(Do.UNMOUNT), _places, _users, st.sampled_from(_UNMOUNTS)),
    st.builds(Step, st.just(Do.DIE), _places),
    st.builds(Step, st.just(Do.HOLD), _places),
    st.builds(Step, st.sampled_from([Do.RELEASE, Do.RENAME])),
)
sequences = st.lists(_steps, min_size=1, max_size=12)


def make_places(side: DeviceSide) -> None:
    """Make the mountpoints of the sequences."""
    side.place.set_up(Case(()))
    home = side.seen_at(str(side.place.folder))
    for name, uid in (
        ("par", NOBODY.uid),
        ("par/p", NOBODY.uid),
        ("par/p/d", NOBODY.uid),
        ("par/p/d/d", NOBODY.uid),
        ("par/q", NOBODY.uid),
    ):
        _make(f"{home}/{name}", uid)
    for name, uid in (("par/o", OTHER.uid), ("world", 0), ("par/odd\n\t\\ #", NOBODY.uid)):
        _make(f"{home}/{name}", uid)
    os.chmod(f"{home}/world", 0o777)
    for name in ("par/f", "par/p/f"):
        with open(f"{home}/{name}", "xb"):
            os.chown(f"{home}/{name}", NOBODY.uid, NOBODY.gid)


def _make(path: str, uid: int) -> None:
    os.mkdir(path)
    os.chown(path, uid, uid)


class Walk:
    """Carries out one sequence on one side."""

    def __init__(self, side: DeviceSide) -> None:
        self.side = side
        self._home = str(side.place.folder)
        self._servers: dict[str, FolderServer] = {}  # by the device number of the mount
        self._dead: set[str] = set()
        self._held: list[int] = []
        self._covers: list[str] = []
        self._asked: set[str] = set()
        self._is_renamed = False

    def do(self, step: Step) -> Ended | None:
        """Do one step. Return how the program ended, where one ran."""
        place = self.path(step)
        if step.do is Do.MOUNT:
            return self._mount(step, place)
        if step.do is Do.UNMOUNT:
            return self.side.run_as(step.user, Case((step.options.encode(), b"--", os.fsencode(place))))
        if step.do is Do.DIE:
            self._die(place)
        elif step.do is Do.HOLD:
            with suppress(OSError):
                self._held.append(os.open(self.side.seen_at(place), os.O_PATH))
        elif step.do is Do.RELEASE:
            self._release()
        elif step.do is Do.COVER:
            self.side.agent.mount("mfcp-test", place, "tmpfs")
            self._covers.append(place)
        else:
            old, new = FOLDERS[self._is_renamed], FOLDERS[not self._is_renamed]
            os.rename(self.side.seen_at(f"{self._home}/{old}"), self.side.seen_at(f"{self._home}/{new}"))
            self._is_renamed = not self._is_renamed
            if step.do is Do.REPLACE:
                os.makedirs(self.side.seen_at(f"{self._home}/{old}/p"))
        return None

    def path(self, step: Step) -> str:
        """Return the absolute path of the step's mountpoint: the name of the folder that it is in is not always the present one."""
        return f"{self._home}/{step.place}"

    def topmost(self, place: str) -> Mount | None:
        """Return the topmost FUSE mount at a path."""
        return next((mount for mount in reversed(self.side.table()) if mount.path == place), None)

    def detach_dead(self) -> None:
        """Do what the driver does: detach the mounts whose programs have died, but those beneath others."""
        while True:
            dead = [mount for mount in self.side.table() if mount.device in self._dead and not self._is_covered(mount)]
            if not dead:
                return
            # Its path may be hidden: where that is so, it is that of another mount, which is found first.
            assert self.side.agent.umount(os.fsencode(dead[-1].path), MNT_DETACH) == 0

    def _is_covered(self, mount: Mount) -> bool:
        return any(other.parent_id == mount.mount_id and other.path == mount.path for other in self.side.table())

    def _mount(self, step: Step, place: str) -> Ended:
        self._asked.add(place)
        before = {mount.device for mount in self.side.table()}
        case = Case((*((b"-o", step.options.encode()) if step.options else ()), b"--", os.fsencode(place)))
        ended, fd = mounted(self.side, step.user, case)
        if fd >= 0:
            (made,) = [mount for mount in self.side.table() if mount.device not in before]
            self._dead.discard(made.device)  # numbers are used again
            is_file = step.place.endswith("f")
            self._servers[made.device] = FolderServer(fd, step.user.uid, stat.S_IFREG if is_file else stat.S_IFDIR, step.is_remote)
        return ended

    def _die(self, place: str) -> None:
        mount = self.topmost(place)
        if mount is not None and mount.device not in self._dead:
            self._dead.add(mount.device)
            self._servers.pop(mount.device).close()

    def die_beneath(self, place: str) -> None:
        """End the program of the oldest mount at a place."""
        oldest = next(mount for mount in self.side.table() if mount.path == f"{self._home}/{place}")
        self._servers.pop(oldest.device).close()

    def _release(self) -> None:
        while self._held:
            os.close(self._held.pop())

    def close(self, left: Iterable[str] = ()) -> None:
        """Undo everything; `left` are paths of mounts whose programs have died."""
        self._release()
        while self._covers:
            self.side.agent.umount(os.fsencode(self._covers.pop()))
        self.side.unmount()
        for server in self._servers.values():
            server.close()
        if self._is_renamed:
            shutil.rmtree(self.side.seen_at(f"{self._home}/{FOLDERS[0]}"), ignore_errors=True)
            self.do(Step(Do.RENAME))
        if isinstance(self.side, DeviceOurs):
            # Programs whose mounts were hidden die now.
            self.side.forget_deaths({*left, *self._asked})
