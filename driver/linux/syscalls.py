"""Wraps system calls that the standard library does not have. Every wrapper raises OSError with the path.

Numbers and structures are those of <linux/mount.h>, <linux/openat2.h> and <linux/stat.h>. Calls newer than Linux 5.0 have the
same number on every architecture. Paths are str or bytes; the path of an open file is /proc/self/fd/N.
"""

import ctypes
import os
import socket
import struct
from collections.abc import Callable, Sequence
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
RESOLVE_CACHED = 0x20

STATX_MODE = 0x2
STATX_UID = 0x8
STATX_GID = 0x10
STATX_CTIME = 0x80
STATX_BASIC_STATS = 0x7FF
STATX_MNT_ID_UNIQUE = 0x4000

_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 0, 1, 6
CLONE_FS = 0x200

IN_ATTRIB = 0x04
IN_CLOSE_WRITE = 0x08
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000

_UCRED = struct.Struct("iII")  # struct ucred of unix(7)

_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
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
    """Call mount(2)."""
    _check(
        _libc.mount(_to_bytes(source), _to_bytes(target), _to_bytes(fstype), ctypes.c_ulong(flags), _to_bytes(data)),
        target,
    )


def umount(target: Path, flags: int) -> None:
    """Call umount2(2) with UMOUNT_NOFOLLOW: it fails if the last component of `target` is a symlink."""
    _check(_libc.umount2(_to_bytes(target), flags | UMOUNT_NOFOLLOW), target)


def open_tree(path: Path, flags: int) -> int:
    """Call open_tree(2), and return an fd of the mount, or of a detached copy of it (OPEN_TREE_CLONE)."""
    return _check(_libc.syscall(_SYS_OPEN_TREE, AT_FDCWD, _to_bytes(path), flags | OPEN_TREE_CLOEXEC), path)


def move_mount(fd: int, target: Path) -> None:
    """Call move_mount(2): attach the mount or detached copy that open_tree() returned as `fd` to a directory."""
    _check(_libc.syscall(_SYS_MOVE_MOUNT, fd, b"", AT_FDCWD, _to_bytes(target), MOVE_MOUNT_F_EMPTY_PATH), target)


def mount_detached(fstype: str, options: Sequence[str]) -> int:
    """Call fsopen(2), fsconfig(2) and fsmount(2): return an fd of a new mount that is attached nowhere.

    An option is KEY, or KEY=VALUE. The mount ends when the fd is closed.
    """
    context = _check(_libc.syscall(_SYS_FSOPEN, fstype.encode(), _FSOPEN_CLOEXEC), fstype)
    try:
        for option in options:
            key, _, value = option.partition("=")
            command, argument = (_FSCONFIG_SET_STRING, value.encode()) if value else (_FSCONFIG_SET_FLAG, None)
            _check(_libc.syscall(_SYS_FSCONFIG, context, command, key.encode(), argument, 0), option)
        _check(_libc.syscall(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0), fstype)
        return _check(_libc.syscall(_SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, 0), fstype)
    finally:
        os.close(context)


def mount_setattr(fd: int, clear: int = 0, propagation: int = 0, recursive: bool = False) -> None:
    """Call mount_setattr(2) on the mount that `fd` was opened on: remove attributes (MOUNT_ATTR_*), and set its propagation."""
    attr = _MountAttr(0, clear, propagation, 0)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    result = _libc.syscall(_SYS_MOUNT_SETATTR, fd, b"", flags, ctypes.byref(attr), ctypes.sizeof(attr))
    _check(result, f"/proc/self/fd/{fd}")


def openat2(dir_fd: int, path: Path, flags: int, mode: int = 0, resolve: int = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS) -> int:
    """Call openat2(2), and return an fd with close-on-exec. By default no symlink is followed, and the path stays below `dir_fd`."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    return _check(_libc.syscall(_SYS_OPENAT2, dir_fd, _to_bytes(path), ctypes.byref(how), ctypes.sizeof(how)), path)


def unshare(flags: int) -> None:
    """Call unshare(2): give the calling thread a copy of its own of what it shares with the process's other threads (CLONE_*)."""
    _check(_libc.unshare(flags), "/proc/thread-self")


def tgkill(process: int, thread: int, number: int) -> None:
    """Call tgkill(2): send a signal to one thread of a process."""
    _check(_libc.tgkill(process, thread, number), f"/proc/{process}/task/{thread}")


def refused_calls() -> dict[str, int]:
    """Return the system calls that this process cannot use, by name, each with its errno (ENOSYS or EPERM).

    The kernel is too old, a seccomp filter blocks the call, or a capability is missing. Each call is tried with arguments that
    change nothing. move_mount is not tried: the driver needs it only for full mount namespaces.
    """
    nothing = _MountAttr(0, 0, 0, 0)
    how = _OpenHow(os.O_PATH, 0, 0)
    attempts: dict[str, Callable[[], int]] = {
        "mount": lambda: _libc.mount(None, b"", None, ctypes.c_ulong(0), None),
        "umount2": lambda: _libc.umount2(b"", UMOUNT_NOFOLLOW),
        "open_tree": lambda: _libc.syscall(_SYS_OPEN_TREE, -1, b"", AT_EMPTY_PATH),
        "openat2": lambda: _libc.syscall(_SYS_OPENAT2, -1, b"", ctypes.byref(how), ctypes.sizeof(how)),
        "unshare": lambda: _libc.unshare(0),
        "mount_setattr": lambda: _libc.syscall(_SYS_MOUNT_SETATTR, -1, b"", AT_EMPTY_PATH, ctypes.byref(nothing), ctypes.sizeof(nothing)),
    }
    found = {name: ctypes.get_errno() for name, attempt in attempts.items() if attempt() == -1}
    return {name: errno for name, errno in found.items() if errno in (ENOSYS, EPERM)}


def device_of(fd: int) -> str:
    """Return MAJOR:MINOR of the file system that `fd` is on, in mountinfo's form. O_PATH suffices.

    statx(2) with an empty mask and AT_STATX_DONT_SYNC does not ask the file system, so it returns even if a FUSE program hangs.
    """
    buffer = (ctypes.c_uint32 * 64)()  # struct statx has 256 bytes; stx_dev_major and _minor are words 34 and 35
    _check(_libc.statx(fd, b"", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, 0, buffer), f"/proc/self/fd/{fd}")
    return f"{buffer[34]}:{buffer[35]}"


def identity_of(fd: int) -> str:
    """Return device_of(), and what tells the mount of `fd` from others with that device number, without asking the file system.

    That is the time of the last change of the file of `fd` (ctime), and from Linux 6.8 on an id that no other mount ever gets.
    """
    buffer = (ctypes.c_uint32 * 64)()  # struct statx, as in device_of(); stx_ctime is words 24 to 26, stx_mnt_id words 36 and 37
    mask = STATX_CTIME | STATX_MNT_ID_UNIQUE
    _check(_libc.statx(fd, b"", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, mask, buffer), f"/proc/self/fd/{fd}")
    return f"{buffer[34]}:{buffer[35]} {buffer[24] | buffer[25] << 32}.{buffer[26]:09} {buffer[36] | buffer[37] << 32}"


def access_of(fd: int) -> tuple[int, int, int]:
    """Return uid, gid and st_mode of the file of `fd` as the kernel knows them, without asking the file system."""
    buffer = ctypes.create_string_buffer(256)  # struct statx: stx_uid, stx_gid and stx_mode begin at byte 20
    mask = STATX_UID | STATX_GID | STATX_MODE
    _check(_libc.statx(fd, b"", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, mask, buffer), f"/proc/self/fd/{fd}")
    return struct.unpack_from("=IIH", buffer, 20)


def ask_for_attributes(fd: int) -> None:
    """Ask the file system of `fd` for its attributes, even if the kernel has them cached (AT_STATX_FORCE_SYNC). O_PATH suffices.

    This blocks as long as a FUSE program does not answer.
    """
    buffer = (ctypes.c_uint32 * 64)()
    _check(_libc.statx(fd, b"", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, buffer), f"/proc/self/fd/{fd}")


def peer_credentials(connection: socket.socket) -> tuple[int, int, int]:
    """Call getsockopt(2) with SO_PEERCRED: return pid, uid and gid of the process at the other end of a Unix socket."""
    return _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))


def inotify_init() -> int:
    """Call inotify_init1(2), and return a non-blocking fd with close-on-exec."""
    return _check(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify")


def inotify_add_watch(fd: int, path: Path, mask: int) -> int:
    """Call inotify_add_watch(2), and return the watch descriptor."""
    return _check(_libc.inotify_add_watch(fd, _to_bytes(path), mask), path)


def inotify_rm_watch(fd: int, watch: int) -> None:
    """Call inotify_rm_watch(2)."""
    _check(_libc.inotify_rm_watch(fd, watch), "inotify")


def _to_bytes(path: Path | None) -> bytes | None:
    if path is None:
        return None
    raw = os.fsencode(path)
    if b"\0" in raw:  # C would use a shorter path than the one that the caller has checked
        raise ValueError("embedded null byte")
    return raw


def _check(result: int, path: Path) -> int:
    if result == -1:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), path)
    return int(result)
