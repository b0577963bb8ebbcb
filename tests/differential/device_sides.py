"""Run both sides where mounts appear at their mountpoints: libfuse's set-uid fusermount3, and ours with a fuse device.

Each side has a mount and a pid namespace of its own, as a container has, with the same folders and mounts in it. The users are the same
and have no capabilities.
"""

import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from errno import EINVAL
from pathlib import Path

from cases import Before, Case, Words
from folderserver import FolderServer
from harness import mounts
from harness.events import wait_until
from harness.pod import PLACE, TREE
from launcher import LIMIT
from sides import USER, Comm, Ended, Line, Place, Serves, Side, line_of, make_mountpoints

_TEXT_MAX = 1 << 20
MNT_DETACH = 2
MS_RDONLY, MS_BIND, MS_SHARED = 1, 4096, 1 << 20


@dataclass(frozen=True)
class User:
    """Represents who runs a program."""

    uid: int
    groups: tuple[int, ...] = ()

    @property
    def gid(self) -> int:
        return self.uid


NOBODY = User(USER, (100, 101))
OTHER = User(2, (100,))  # `bin` on each distribution: fusermount3 needs a user that has a name
ROOT = User(0)


class Agent:
    """Runs agent.py as a process; `user` is who runs the next programs."""

    def __init__(self) -> None:
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(2 * LIMIT)
        self._numbers = itertools.count()
        self.user = NOBODY
        self.servers: list[FolderServer] = []  # of file systems that are there until the end
        with other:
            command = [sys.executable, Path(__file__).with_name("agent.py"), str(other.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[other.fileno()])
        assert self._socket.recv(100) == b"0"
        pid = self._process.pid
        (self.pid,) = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())

    @property
    def root(self) -> str:
        """Return the path at which the tests see the root directory of its namespace."""
        return f"/proc/{self.pid}/root"

    def run(self, path: str, argv: Words, environment: dict[bytes, bytes], folder: int, comm: int | None) -> Ended:
        """Run a program in the folder (an fd) to its end."""
        out, err = (os.memfd_create(name) for name in ("out", "err"))
        try:
            user = {"uid": self.user.uid, "gid": self.user.gid, "groups": self.user.groups}
            texts = {name.decode("latin-1"): value.decode("latin-1") for name, value in environment.items()}
            words = [word.decode("latin-1") for word in argv]
            fds = [out, err, folder, *([] if comm is None else [comm])]
            code = self._ask(fds, do="run", path=path, argv=words, environment=texts, **user)
            return Ended(code, os.pread(out, _TEXT_MAX, 0), os.pread(err, _TEXT_MAX, 0))
        finally:
            os.close(out)
            os.close(err)

    def mount(self, source: str, target: str, fstype: str | None = None, flags: int = 0, data: str = "", fuse_fd: int = -1) -> None:
        """Mount in the namespace, as root; `fuse_fd` serves the mount."""
        fds = [] if fuse_fd < 0 else [fuse_fd]
        error = self._ask(fds, do="mount", source=source, target=target, fstype=fstype, flags=flags, data=data)
        assert error == 0, f"{target}: {os.strerror(error)}"

    def umount(self, target: bytes, flags: int = 0) -> int:
        """Unmount in the namespace, as root. Return 0 or the errno."""
        return self._ask([], do="umount", target=target.decode("latin-1"), flags=flags)

    def fuse_mounts(self) -> list[mounts.Mount]:
        """Return the FUSE mounts of the namespace, topmost last."""
        return [mount for mount in mounts.table(self.pid) if mount.is_fuse and mount.source != _FOREIGN]

    def close(self) -> None:
        """End the process, and with it the namespace."""
        self._socket.close()
        assert self._process.wait(LIMIT) == 0
        for server in self.servers:
            server.close()

    def _ask(self, fds: list[int], **request: object) -> int:
        file = os.memfd_create("request")
        request["number"] = next(self._numbers)
        try:
            os.pwrite(file, json.dumps(request).encode(), 0)
            socket.send_fds(self._socket, [b"x"], [file, *fds])
            while True:
                number, _, answer = self._socket.recv(100).partition(b" ")
                if int(number) == request["number"]:
                    return int(answer)
        finally:
            os.close(file)


class DeviceSide(Side):
    """Represents one of the two sides, where the mount is at its mountpoint."""

    def __init__(self, place: Place, agent: Agent) -> None:
        self.agent = agent
        self._died = False
        furnish(place.folder, agent)
        super().__init__(place, agent.root, agent)

    def run_as(self, user: User, case: Case, comm: int | None = None) -> Ended:
        """Run the program of a case as this user, and do nothing else."""
        self.agent.user = user
        try:
            return self._run(case, comm)
        finally:
            self.agent.user = NOBODY

    def table(self) -> list[mounts.Mount]:
        """Return the FUSE mounts, topmost last."""
        return self._mounts()

    def lines(self) -> tuple[Line, ...]:
        """Return the FUSE mounts with their paths, topmost last."""
        return tuple(replace(line_of(mount, self._seen_at(mount)), path=mount.path) for mount in self._mounts())

    def seen_at(self, path: str) -> str:
        """Return where the tests see a path of this side's."""
        return f"{self.agent.root}{path}"

    def _server(self, fd: int) -> Serves:
        return FolderServer(fd, USER)

    def _options(self, before: Before) -> Words:
        # A set-uid program is no process of the user's alone, and so sees no file system that lets no other user in.
        return () if before is Before.CLOSED else (b"-o", b"allow_other")

    def _mounts(self) -> list[mounts.Mount]:
        return self.agent.fuse_mounts()

    def _seen_at(self, mount: mounts.Mount) -> str:
        return self.seen_at(mount.path)


class DeviceReference(DeviceSide):
    """Runs libfuse's fusermount3."""

    def __init__(self, place: Place, agent: Agent, opt: tuple[Path, Path]) -> None:
        """Make folders in the namespace that containers with a fuse device have; `opt` are folders for the overlay over /opt."""
        _overlay_opt(agent, opt)
        os.makedirs(f"{agent.root}{PLACE}/socket", exist_ok=True)
        super().__init__(place, agent)

    def unmount(self) -> None:
        for mount in reversed(self._mounts()):
            # Unmounting one may have taken others away that were below it.
            assert self.agent.umount(os.fsencode(mount.path), MNT_DETACH) in (0, EINVAL)


class DeviceOurs(DeviceSide):
    """Runs our fusermount3 with a fuse device."""

    program = f"{PLACE}/fusermount3"

    def __init__(self, place: Place, agent: Agent, sockets: Path, opt: tuple[Path, Path]) -> None:
        """Give the namespace the device whose socket is in `sockets`; `opt` are folders for the overlay over /opt."""
        _overlay_opt(agent, opt)
        os.makedirs(f"{agent.root}{PLACE}", exist_ok=True)
        agent.mount(str(TREE), PLACE, None, MS_BIND)
        agent.mount(str(sockets), f"{PLACE}/socket", None, MS_BIND)
        super().__init__(place, agent)

    def unmount(self) -> None:
        for mount in reversed(self._mounts()):
            self.run_as(ROOT, Case((b"-u", b"-q", b"-z", b"--", os.fsencode(mount.path))))
        if self._died:
            self._died = False
            self.forget_deaths([os.fsdecode(self.place.absolute(b"m"))])
        assert not self._mounts()

    def forget_deaths(self, paths: Iterable[str]) -> None:
        """Make the driver forget where programs died, which it remembers for the first -u after that."""
        for path in paths:
            self.run_as(ROOT, Case((b"-u", b"-q", b"--", os.fsencode(path))))

    def _after_death(self) -> None:
        self._died = True
        wait_until("nothing is mounted", lambda: not self._mounts())


# ---- what is in the namespaces


def _overlay_opt(agent: Agent, folders: tuple[Path, Path]) -> None:
    agent.mount("overlay", "/opt", "overlay", 0, f"lowerdir=/opt,upperdir={folders[0]},workdir={folders[1]}")


# Mountpoints that cases.MOUNTPOINTS does not have: what another group may do, and what is a mount of its own.
GROUPS = {  # name: mode, owner, group
    "own-group": (0o575, 0, USER),
    "own-group-alone": (0o070, 0, USER),
    "second-group": (0o775, 0, 100),
    "third-group": (0o070, 0, 101),
    "others-group": (0o775, 0, 102),
    "owner-may-not": (0o577, USER, USER),
    "group-may-not": (0o757, 0, USER),
    "sticky-own": (0o1777, USER, 0),
    "sticky-group": (0o1775, 0, USER),
    "everybody": (0o777, 0, 0),
    "nobody": (0o000, USER, USER),
    "not-searchable": (0o666, 0, 0),
    "setgid": (0o2777, 0, 0),
}
FILES = {
    "file-second-group": (0o664, 0, 100),
    "file-others": (0o666, 0, 0),
    "file-write-only": (0o222, 0, 0),
    "file-owner-may-not": (0o466, USER, 0),
    "file-sticky": (0o1666, 0, 0),
    "file-setuid": (0o4777, USER, 0),
}
_READ_ONLY, _TMPFS, _SHARED, _BOUND = "read-only", "tmpfs", "shared", "bound"
_OF_OTHER_TYPES = ("ramfs", "hugetlbfs")  # the second is not on fusermount3's list
_FOREIGN = "foreign"  # a FUSE file system that no fusermount3 has mounted


def furnish(folder: Path, agent: Agent) -> None:
    """Make everything in the namespace that the mountpoints of the tests name."""
    options = f"mode=0755,uid={USER},gid={USER}"
    agent.mount("mfcp-test", str(folder), "tmpfs", 0, options)
    here = Path(f"{agent.root}{folder}")
    make_mountpoints(here)
    for name, (mode, uid, gid) in GROUPS.items():
        (here / name).mkdir()
        _own(here / name, mode, uid, gid)
    for name, (mode, uid, gid) in FILES.items():
        (here / name).touch()
        _own(here / name, mode, uid, gid)
    for name in _OF_OTHER_TYPES:
        (here / name).mkdir()
        agent.mount("mfcp-test", f"{folder}/{name}", name)
        (here / name / "file").touch()
        _own(here / name, 0o755, USER, USER)
        _own(here / name / "file", 0o644, USER, USER)
    for name in (_READ_ONLY, _TMPFS, _SHARED, _BOUND):
        (here / name).mkdir()
        if name == _BOUND:
            agent.mount(f"{folder}/inner", f"{folder}/{name}", None, MS_BIND)
            continue
        agent.mount("mfcp-test", f"{folder}/{name}", "tmpfs", 0, options)
        (here / name / "x").mkdir()
        _own(here / name / "x", 0o755, USER, USER)
        (here / name / "file").touch()
        _own(here / name / "file", 0o644, USER, USER)
    agent.mount("none", f"{folder}/{_READ_ONLY}", None, MS_BIND | mounts.MS_REMOUNT | MS_RDONLY)
    agent.mount("none", f"{folder}/{_SHARED}", None, MS_SHARED)
    (here / _FOREIGN).mkdir()
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    agent.mount(_FOREIGN, f"{folder}/{_FOREIGN}", "fuse", 0, "rootmode=40000,user_id=0,group_id=0,allow_other", fd)
    agent.servers.append(FolderServer(fd, USER))
    # The machine's own is not for tests to write to.
    agent.mount("mfcp-test", "/dev/shm", "tmpfs", 0, "mode=1777")
    mine = Path(f"{agent.root}/dev/shm/mine")
    mine.mkdir()
    _own(mine, 0o755, USER, USER)


def _own(path: Path, mode: int, uid: int, gid: int) -> None:
    os.chown(path, uid, gid)
    path.chmod(mode)


def mounted(side: DeviceSide, user: User, case: Case) -> tuple[Ended, int]:
    """Run a case that mounts. Return how it ended, and the fd that serves the mount, or -1."""
    comm = Comm("stream")
    try:
        ended = side.run_as(user, replace(case), comm.fd)
        _, fds = comm.receive()
    finally:
        comm.close()
    assert len(fds) <= 1
    return ended, fds[0] if fds else -1
