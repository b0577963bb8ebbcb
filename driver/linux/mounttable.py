"""The mount table, and which file system is at a path: asked of the kernel, never of the file system itself."""

import os
from errno import EIO

from driver.linux import syscalls
from fusermount3_proxy.wire import mountinfo
from fusermount3_proxy.wire.mountinfo import Mount


def device_number_at(target: str) -> str:
    """MAJOR:MINOR of the topmost file system at `target`, without asking it. Raises OSError."""
    fd = os.open(target, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return _device_number(fd) or _device_number_by_table(fd)
    finally:
        os.close(fd)


def device_number_of_copy(fd: int, target: str) -> str:
    """The same of a copy or a peer of the mount at `target`; a copy is in no mount table. Raises OSError."""
    return _device_number(fd) or device_number_at(target)


def _device_number(fd: int) -> str | None:
    """syscalls.device_of(), and None of a bad inode.

    A program that has told once that its root is no directory has made it one: the kernel answers nothing of it any more,
    whether the program lives or not. Its mount must go all the same.
    """
    try:
        return syscalls.device_of(fd)
    except OSError as error:
        if error.errno != EIO:
            raise
        return None


def _device_number_by_table(fd: int) -> str:
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        said = dict(line.split(":", 1) for line in file)
    mount_id = int(said["mnt_id"])
    for mount in read_mount_table():
        if mount.mount_id == mount_id:
            return mount.device
    raise OSError(EIO, os.strerror(EIO))


def is_at(target: str, device: str) -> bool:
    """Whether the FUSE file system `device` is mounted at `target`, on top or beneath something. Raises OSError."""
    return device_number_at(target) == device or contains(mounts_at(target), device)


def contains(stack: list[Mount], device: str) -> bool:
    """Whether the FUSE file system `device` is among mounts. Other kinds may have its number when it has gone."""
    return any(mount.is_fuse and mount.device == device for mount in stack)


def identity_at(target: str) -> str:
    """Return what tells the placeholder at `target` from all that is ever mounted there, without asking it. Raises OSError.

    A device number alone does not: the next file system that is mounted after an unmount gets the same one.
    """
    fd = os.open(target, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return syscalls.device_and_change_of(fd)
    except OSError as error:
        if error.errno != EIO:
            raise
        return ""  # a FUSE file system with a bad root (_device_of), so no placeholder
    finally:
        os.close(fd)


def detached_copy(target: str) -> int:
    """A copy of the mount at `target` that is nowhere: a question through it does not make the mount itself busy.

    Otherwise a pod's own `fusermount3 -u` would fail while the driver asks, and for ever where the program never answers.
    """
    return syscalls.open_tree(target, syscalls.OPEN_TREE_CLONE | syscalls.AT_SYMLINK_NOFOLLOW)


def mounts_at(target: str, by_path: dict[bytes, list[Mount]] | None = None) -> list[Mount]:
    """The mounts at `target`, topmost last, without touching any of them.

    `by_path` is what mounts_by_path() returned, for asking about many targets.
    """
    if by_path is not None and (path := os.fsencode(target)) in by_path:
        return mountinfo.stack(by_path[path], path)  # no part of the way was a link
    folder, name = os.path.split(target)
    path = os.fsencode(f"{os.path.realpath(folder)}/{name}")
    return mountinfo.stack(read_mount_table() if by_path is None else by_path.get(path, []), path)


def mounts_by_path() -> dict[bytes, list[Mount]]:
    """This process's mounts by mount point."""
    found: dict[bytes, list[Mount]] = {}
    for mount in read_mount_table():
        found.setdefault(mount.path, []).append(mount)
    return found


def read_mount_table() -> list[Mount]:
    """This process's mountinfo."""
    with open("/proc/self/mountinfo", "rb") as file:
        return mountinfo.parse(file.read())
