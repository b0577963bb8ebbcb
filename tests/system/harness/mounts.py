"""Read mount tables without the product's own reader, and give the tests a mount namespace of their own."""

import ctypes
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from harness.events import wait_until

MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
_CLONE_NEWNS = 0x00020000

_libc = ctypes.CDLL(None, use_errno=True)

# The mounts that were copied from the machine's namespace, by their ids and devices: their paths may change.
_of_the_machine: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class Mount:
    """Represents one line of mountinfo, proc_pid_mountinfo(5)."""

    mount_id: str
    parent_id: str
    device: str
    path: str
    options: frozenset[str]
    fstype: str
    source: str
    super_options: frozenset[str]

    @property
    def is_fuse(self) -> bool:
        return self.fstype.split(".")[0] == "fuse"


def parse(text: str) -> list[Mount]:
    mounts = []
    # Not splitlines(): a name may contain what Python takes for the end of a line.
    for line in text.split("\n")[:-1]:
        left, _, right = line.partition(" - ")
        fields, (fstype, source, super_options) = left.split(" "), right.split(" ")
        mounts.append(
            Mount(
                mount_id=fields[0],
                parent_id=fields[1],
                device=fields[2],
                path=_plain(fields[4]),
                options=frozenset(fields[5].split(",")),
                fstype=_plain(fstype),
                source=_plain(source),
                super_options=frozenset(super_options.split(",")),
            )
        )
    return mounts


def table(pid: int | str = "self") -> list[Mount]:
    """Return the mounts that a process sees."""
    return parse(os.fsdecode(Path(f"/proc/{pid}/mountinfo").read_bytes()))


def stack(path: Path | str, mounts: list[Mount] | None = None) -> list[Mount]:
    """Return the mounts at `path`, topmost last."""
    here = [mount for mount in (table() if mounts is None else mounts) if mount.path == str(path)]
    by_parent = {mount.parent_id: mount for mount in here}
    ids = {mount.mount_id for mount in here}
    ordered = [mount for mount in here if mount.parent_id not in ids][-1:]
    while ordered and (above := by_parent.get(ordered[-1].mount_id)):
        ordered.append(above)
    return ordered


def below(folder: Path) -> list[Mount]:
    """Return the mounts at `folder` and below it."""
    return [mount for mount in table() if Path(mount.path).is_relative_to(folder)]


def enter_private_namespace() -> None:
    """Give this process, and all processes that it starts from now on, a mount table of its own.

    The machine's own mounts stay as they are whatever goes wrong, and a forgotten mount ends with the last process. What
    else the machine mounts meanwhile, such as another container engine, is not seen in this namespace, where mounts are counted.
    """
    if _libc.unshare(_CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNS)")
    call_mount("none", "/", flags=MS_REC | MS_PRIVATE)
    _of_the_machine.update((mount.mount_id, mount.device) for mount in table())


def own() -> list[Mount]:
    """Return what has been mounted since this process entered its private namespace."""
    return [mount for mount in table() if (mount.mount_id, mount.device) not in _of_the_machine]


def mount(*arguments: str | Path) -> None:
    """Call mount(8)."""
    subprocess.run(["mount", *map(str, arguments)], check=True)


def call_mount(source: Path | str, target: Path | str, fstype: str | None = None, flags: int = 0, data: str | None = None) -> None:
    """Call mount(2), also between fork and exec, and with arguments that mount(8) would not pass on."""
    kind, text = (None if word is None else word.encode() for word in (fstype, data))
    if _libc.mount(os.fsencode(source), os.fsencode(target), kind, ctypes.c_ulong(flags), text) != 0:
        raise OSError(ctypes.get_errno(), "mount", str(target))


def cover(folder: Path, but: str, source: Path | str, fstype: str | None = None, flags: int = 0) -> None:
    """Mount something over a folder. All folders that were in it, but the one with the name `but`, stay visible.

    The checkout with the tests may lie in such a folder.
    """
    kept = {each.name: os.open(each, os.O_PATH) for each in folder.iterdir() if each.name != but and each.is_dir()}
    call_mount(source, folder, fstype, flags)
    for name, fd in kept.items():
        (folder / name).mkdir()
        call_mount(f"/proc/self/fd/{fd}", folder / name, flags=MS_BIND | MS_REC)
        os.close(fd)


def mount_fuse(target: Path) -> int:
    """Mount a FUSE file system, and return the fd that serves it."""
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    call_mount("/dev/fuse", target, "fuse", data=f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other")
    return fd


def unmount(path: Path) -> None:
    """Call umount(8), again as long as the mount is busy: a driver that looks at it keeps it busy for a moment."""
    wait_until(f"{path} is unmounted", lambda: subprocess.run(["umount", path]).returncode == 0)


def unmount_lazily(path: Path) -> None:
    """Call umount(8) with -l."""
    subprocess.run(["umount", "--lazy", path], check=True)


def unmount_all_below(folder: Path) -> None:
    for found in reversed(below(folder)):
        subprocess.run(["umount", "--lazy", os.fspath(found.path)], check=False)


def _plain(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
