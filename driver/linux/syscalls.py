"""System calls that Python has no names for: thin wrappers that raise OSError with the path.

Numbers and structures are those of <linux/mount.h>, <linux/openat2.h> and <linux/stat.h>; calls newer than 5.0 have
the same number on every architecture. Paths are str or bytes; a path of an fd is written /proc/self/fd/N.
"""

import ctypes
import os
from collections.abc import Callable
from errno import ENOSYS, EPERM

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

Path = str | bytes

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_EMPTY_PATH = 0x1000
AT_STATX_FORCE_SYNC = 0x2000
AT_STATX_DONT_SYNC = 0x4000
AT_RECURSIVE = 0x8000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_SYNCHRONOUS = 16
MS_DIRSYNC = 128
MS_NOSYMFOLLOW = 256
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_BIND = 4096
MS_PRIVATE = 1 << 18
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
MS_LAZYTIME = 1 << 25

MNT_FORCE = 1
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

MOUNT_ATTR_NODEV = 4

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC

MOVE_MOUNT_F_EMPTY_PATH = 0x04

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08

STATX_CTIME = 0x80
STATX_BASIC_STATS = 0x7FF

IN_ATTRIB = 0x04
IN_CLOSE_WRITE = 0x08
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000

_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_OPENAT2 = 437
_SYS_MOUNT_SETATTR = 442


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


class _MountAttr(ctypes.Structure):
    _fields_ = [
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    ]


def mount(source: Path | None, target: Path, fstype: Path | None, flags: int, data: Path | None = None) -> None:
    """mount(2)."""
    _check(
        _libc.mount(_raw(source), _raw(target), _raw(fstype), ctypes.c_ulong(flags), _raw(data)),
        target,
    )


def umount(target: Path, flags: int) -> None:
    """umount2(2), never through a symlink."""
    _check(_libc.umount2(_raw(target), flags | UMOUNT_NOFOLLOW), target)


def open_tree(path: Path, flags: int) -> int:
    """open_tree(2) from the current directory: an fd of the mount, or of a detached copy (OPEN_TREE_CLONE)."""
    return _check(_libc.syscall(_SYS_OPEN_TREE, AT_FDCWD, _raw(path), flags | OPEN_TREE_CLOEXEC), path)


def move_mount(fd: int, target: Path) -> None:
    """move_mount(2) of the mount that `fd` was opened on, or of a detached copy, to a directory."""
    _check(_libc.syscall(_SYS_MOVE_MOUNT, fd, b"", AT_FDCWD, _raw(target), MOVE_MOUNT_F_EMPTY_PATH), target)


def mount_setattr(fd: int, clear: int = 0, propagation: int = 0, recursive: bool = False) -> None:
    """mount_setattr(2) of the mount that `fd` was opened on: attributes to take off, propagation to set."""
    attr = _MountAttr(0, clear, propagation, 0)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    result = _libc.syscall(_SYS_MOUNT_SETATTR, fd, b"", flags, ctypes.byref(attr), ctypes.sizeof(attr))
    _check(result, f"/proc/self/fd/{fd}")


def openat2(dir_fd: int, path: Path, flags: int, mode: int = 0, resolve: int = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS) -> int:
    """openat2(2), close-on-exec. By default no symlink is followed and `dir_fd` cannot be left."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    return _check(_libc.syscall(_SYS_OPENAT2, dir_fd, _raw(path), ctypes.byref(how), ctypes.sizeof(how)), path)


def tgkill(process: int, thread: int, number: int) -> None:
    """tgkill(2)."""
    _check(_libc.tgkill(process, thread, number), f"/proc/{process}/task/{thread}")


def refused() -> dict[str, int]:
    """The system calls that are used here and refused to everybody, by name, each with its errno: the kernel does not
    have it (ENOSYS), or a seccomp filter stands before it. Asks each for something that it cannot do, and changes nothing.
    Without move_mount, which a full mount namespace alone needs.
    """
    nothing = _MountAttr(0, 0, 0, 0)
    how = _OpenHow(os.O_PATH, 0, 0)
    attempts: dict[str, Callable[[], int]] = {
        "mount": lambda: _libc.mount(None, b"", None, ctypes.c_ulong(0), None),
        "umount2": lambda: _libc.umount2(b"", UMOUNT_NOFOLLOW),
        "open_tree": lambda: _libc.syscall(_SYS_OPEN_TREE, -1, b"", AT_EMPTY_PATH),
        "openat2": lambda: _libc.syscall(_SYS_OPENAT2, -1, b"", ctypes.byref(how), ctypes.sizeof(how)),
        "mount_setattr": lambda: _libc.syscall(_SYS_MOUNT_SETATTR, -1, b"", AT_EMPTY_PATH, ctypes.byref(nothing), ctypes.sizeof(nothing)),
    }
    found = {name: ctypes.get_errno() for name, attempt in attempts.items() if attempt() == -1}
    return {name: errno for name, errno in found.items() if errno in (ENOSYS, EPERM)}


def device_of(fd: int) -> str:
    """MAJOR:MINOR of the file system that `fd` (O_PATH will do) lies on, as mountinfo writes it.

    Never asks the file system itself, so a FUSE program that does not answer blocks nobody: statx(2) with an empty mask
    and AT_STATX_DONT_SYNC.
    """
    buffer = (ctypes.c_uint32 * 64)()  # struct statx has 256 bytes; stx_dev_major and _minor are words 34 and 35
    _check(_libc.statx(fd, b"", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, 0, buffer), f"/proc/self/fd/{fd}")
    return f"{buffer[34]}:{buffer[35]}"


def device_and_change_of(fd: int) -> str:
    """Return device_of(), with the time at which the file that `fd` is open on last changed; asks the file system nothing either."""
    buffer = (ctypes.c_uint32 * 64)()  # stx_ctime is words 24 to 26
    _check(_libc.statx(fd, b"", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_CTIME, buffer), f"/proc/self/fd/{fd}")
    return f"{buffer[34]}:{buffer[35]} {buffer[24] | buffer[25] << 32}.{buffer[26]:09}"


def ask_for_attributes(fd: int) -> None:
    """Make the file system of `fd` (O_PATH will do) answer for its attributes, whatever is cached: statx(2) with
    AT_STATX_FORCE_SYNC. Blocks as long as it does not answer.
    """
    buffer = (ctypes.c_uint32 * 64)()
    _check(_libc.statx(fd, b"", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, buffer), f"/proc/self/fd/{fd}")


def inotify_init() -> int:
    """inotify_init1(2), non-blocking and close-on-exec."""
    return _check(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify")


def inotify_add_watch(fd: int, path: Path, mask: int) -> int:
    """inotify_add_watch(2): the watch descriptor."""
    return _check(_libc.inotify_add_watch(fd, _raw(path), mask), path)


def inotify_rm_watch(fd: int, watch: int) -> None:
    """inotify_rm_watch(2)."""
    _check(_libc.inotify_rm_watch(fd, watch), "inotify")


def _raw(path: Path | None) -> bytes | None:
    if path is None:
        return None
    raw = os.fsencode(path)
    if b"\0" in raw:  # C would see a shorter path than the one that was checked
        raise ValueError("embedded null byte")
    return raw


def _check(result: int, path: Path) -> int:
    if result == -1:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), path)
    return int(result)
