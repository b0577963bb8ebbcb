"""Reads the mount table, and finds which file system is at a path, without asking that file system."""

import os
from errno import EIO

from driver.linux import syscalls
from fusermount3_proxy.wire import mountinfo
from fusermount3_proxy.wire.mountinfo import Mount


def device_number_at(target: str) -> str:
    """Return MAJOR:MINOR of the topmost file system at `target`, without asking that file system. Raises OSError."""
    fd = os.open(target, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return _device_number(fd) or _device_number_by_table(fd)
    finally:
        os.close(fd)


def device_number_of_copy(fd: int, target: str) -> str:
    """Return MAJOR:MINOR of the file system of `fd`, which is on a copy or a peer of the mount at `target`. Raises OSError.

    No mount table lists a detached copy, so `target` is asked instead if the kernel does not answer for `fd`.
    """
    return _device_number(fd) or device_number_at(target)


def _device_number(fd: int) -> str | None:
    """Return syscalls.device_of(), or None if the inode is bad. Raises OSError.

    The kernel marks an inode as bad once its FUSE program has answered that the root is not a directory. From then on it
    answers EIO, whether the program runs or not. The driver must still be able to find and detach that mount.
    """
    try:
        return syscalls.device_of(fd)
    except OSError as error:
        if error.errno != EIO:
            raise
        return None


def _device_number_by_table(fd: int) -> str:
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    mount_id = int(fields["mnt_id"])
    for mount in read_mount_table():
        if mount.mount_id == mount_id:
            return mount.device
    raise OSError(EIO, os.strerror(EIO))


def is_at(target: str, device: str) -> bool:
    """Return whether the FUSE file system `device` is mounted at `target`, also if it is beneath another mount. Raises OSError."""
    return device_number_at(target) == device or contains(mounts_at(target), device)


def contains(stack: list[Mount], device: str) -> bool:
    """Return whether the FUSE file system `device` is among mounts.

    Only FUSE mounts count: the kernel may give the number of an unmounted FUSE file system to one of another type.
    """
    return any(mount.is_fuse and mount.device == device for mount in stack)


def identity_at(target: str) -> str:
    """Return a text that identifies the placeholder at `target` among all file systems ever mounted there. Raises OSError.

    The device number alone would not do: the kernel gives it to the next file system that is mounted after an unmount. So it is
    followed by the time of the last change, and by the id of the mount where the kernel has one that is never used again. Before
    Linux 6.8 a file system that replaces the placeholder within one tick of the kernel's clock (4 ms) after it was mounted can
    be taken for it.
    The text is "" for a FUSE file system whose root is a bad inode. No file system is asked.
    """
    fd = os.open(target, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return syscalls.identity_of(fd)
    except OSError as error:
        if error.errno != EIO:
            raise
        return ""  # a bad inode, see _device_number()
    finally:
        os.close(fd)


def device_of_identity(identity: str) -> str:
    """Return the device number, MAJOR:MINOR, in what identity_at() returned."""
    return identity.partition(" ")[0]


def detached_copy(target: str) -> int:
    """Return an fd of a detached copy of the mount at `target`. Using it does not make the mount itself busy. Raises OSError.

    Without a copy, a pod's own `fusermount3 -u` would fail while the driver asks the FUSE program, and for ever if the program
    never answers.
    """
    return syscalls.open_tree(target, syscalls.OPEN_TREE_CLONE | syscalls.AT_SYMLINK_NOFOLLOW)


def mounts_at(target: str, by_path: dict[bytes, list[Mount]] | None = None) -> list[Mount]:
    """Return the mounts at `target`, the topmost one last, without asking any of them. Raises OSError.

    A caller that asks about many targets passes what mounts_by_path() returned as `by_path`, so the table is read only once.
    """
    if by_path is not None and (path := os.fsencode(target)) in by_path:
        return mountinfo.stack(by_path[path], path)  # the table has this path, so no part of it is a symlink
    folder, name = os.path.split(target)
    path = os.fsencode(f"{os.path.realpath(folder)}/{name}")
    return mountinfo.stack(read_mount_table() if by_path is None else by_path.get(path, []), path)


def mounts_by_path() -> dict[bytes, list[Mount]]:
    """Return the mounts in this process's mount namespace, by mountpoint. Raises OSError."""
    found: dict[bytes, list[Mount]] = {}
    for mount in read_mount_table():
        found.setdefault(mount.path, []).append(mount)
    return found


def read_mount_table() -> list[Mount]:
    """Return the mounts in this process's mount namespace, in the order of /proc/self/mountinfo. Raises OSError."""
    with open("/proc/self/mountinfo", "rb") as file:
        return mountinfo.parse(file.read())
