"""Wraps system calls that the standard library does not have. Every wrapper raises OSError with the path.

Numbers and structures are those of <linux/mount.h>, <linux/openat2.h> and <linux/stat.h>. Calls newer than Linux 5.0 have the
same number on every architecture. Paths are str or bytes; the path of an open file is /proc/self/fd/N.
"""

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC

MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_EMPTY_PATH = 0x40

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10
RESOLVE_CACHED = 0x20

STATX_MODE = 0x2
STATX_UID = 0x8
STATX_GID = 0x10
STATX_CTIME = 0x80
STATX_BASIC_STATS = 0x7FF
STATX_MNT_ID = 0x1000
STATX_MNT_ID_UNIQUE = 0x4000

_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 0, 1, 6
CLONE_FS = 0x200
CLONE_NEWNS = 0x20000
CLONE_NEWUSER = 0x10000000

IN_ATTRIB = 0x04
IN_CLOSE_WRITE = 0x08
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000

_UCRED = struct.Struct("iII")  # struct ucred of unix(7)
_SO_PEERGROUPS = 59
_SO_PEERPIDFD = 77  # since Linux 6.5
_GROUPS_MAX = 65536  # NGROUPS_MAX of <linux/limits.h>

_STATX_ATTR_MOUNT_ROOT = 0x2000

# ioctl_ns(2)
_NS_GET_USERNS = 0xB701
_NS_GET_PARENT = 0xB702
_NS_GET_OWNER_UID = 0xB704
_NS_GET_PID_FROM_PIDNS = 0x8004B706  # since Linux 6.11

_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_OPENAT2 = 437
_SYS_MOUNT_SETATTR = 442


@dataclass(frozen=True, slots=True)
class FileInfo:
    """What statx(2) says of a file without asking its file system. `is_mount_root` is whether it is the root of its mount."""

    mode: int
    uid: int
    gid: int
    device: str
    mount_id: int
    is_mount_root: bool


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


def move_mount_to_fd(fd: int, target: int) -> None:
    """Call move_mount(2): attach the mount of `fd` to the file of `target`, an O_PATH fd, on top of what is mounted there already."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    _check(_libc.syscall(_SYS_MOVE_MOUNT, fd, b"", target, b"", flags), f"/proc/self/fd/{target}")


def mount_detached(fstype: str, options: Sequence[str | bytes], attributes: int = 0) -> int:
    """Call fsopen(2), fsconfig(2) and fsmount(2): return an fd of a new mount that is attached nowhere.

    An option is KEY, or KEY=VALUE. `attributes` are MOUNT_ATTR_*. The mount ends when the fd is closed.
    """
    context = _check(_libc.syscall(_SYS_FSOPEN, fstype.encode(), _FSOPEN_CLOEXEC), fstype)
    try:
        for option in options:
            key, equals, value = os.fsencode(option).partition(b"=")
            command, argument = (_FSCONFIG_SET_STRING, value) if equals else (_FSCONFIG_SET_FLAG, None)
            _check(_libc.syscall(_SYS_FSCONFIG, context, command, key, argument, 0), option)
        _check(_libc.syscall(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0), fstype)
        return _check(_libc.syscall(_SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, attributes), fstype)
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


def setns(fd: int, kind: int) -> None:
    """Call setns(2): enter the namespace of `fd`, which is of this kind (CLONE_NEWNS, CLONE_NEWUSER)."""
    _check(_libc.setns(fd, kind), f"/proc/self/fd/{fd}")


def owner_of_namespace(fd: int) -> int:
    """Return an fd of the user namespace that owns the namespace of `fd` (ioctl_ns(2))."""
    return fcntl.ioctl(fd, _NS_GET_USERNS)


def owner_uid(fd: int) -> int:
    """Return the uid that made the user namespace of `fd` (ioctl_ns(2))."""
    return int.from_bytes(fcntl.ioctl(fd, _NS_GET_OWNER_UID, bytes(4)), "little")


def parent_of_namespace(fd: int) -> int:
    """Return an fd of the pid or user namespace above the one of `fd`. Raises OSError with EPERM if this process is not above it."""
    return fcntl.ioctl(fd, _NS_GET_PARENT)


def pid_in_namespace(fd: int, pid: int) -> int:
    """Return this process's number of the process that is `pid` in the pid namespace of `fd`. Raises OSError with ENOTTY before 6.11."""
    return fcntl.ioctl(fd, _NS_GET_PID_FROM_PIDNS, pid)


def unmount_here(name: str, flags: int) -> None:
    """Call umount2(2) with a name in the working directory, and follow it if it is a link, as the names in /proc/self/fd are."""
    _check(_libc.umount2(name.encode(), flags), name)


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


def file_info(fd: int) -> FileInfo:
    """Return what the kernel knows of the file of `fd`, without asking the file system. O_PATH suffices."""
    buffer = ctypes.create_string_buffer(256)  # struct statx of statx(2)
    mask = STATX_UID | STATX_GID | STATX_MODE | STATX_MNT_ID
    _check(_libc.statx(fd, b"", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, mask, buffer), f"/proc/self/fd/{fd}")
    (attributes,) = struct.unpack_from("=Q", buffer, 8)
    uid, gid, mode = struct.unpack_from("=IIH", buffer, 20)
    major, minor, mount_id = struct.unpack_from("=IIQ", buffer, 136)
    return FileInfo(mode, uid, gid, f"{major}:{minor}", mount_id, bool(attributes & _STATX_ATTR_MOUNT_ROOT))


def file_system_type(fd: int) -> int:
    """Call fstatfs(2), and return the file system's magic number (f_type). This can block: the file system is asked."""
    buffer = (ctypes.c_long * 32)()  # struct statfs begins with f_type
    _check(_libc.fstatfs(fd, buffer), f"/proc/self/fd/{fd}")
    return buffer[0] & 0xFFFFFFFF


def ask_for_attributes(fd: int) -> None:
    """Ask the file system of `fd` for its attributes, even if the kernel has them cached (AT_STATX_FORCE_SYNC). O_PATH suffices.

    This blocks as long as a FUSE program does not answer.
    """
    buffer = (ctypes.c_uint32 * 64)()
    _check(_libc.statx(fd, b"", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, buffer), f"/proc/self/fd/{fd}")


def peer_credentials(connection: socket.socket) -> tuple[int, int, int]:
    """Call getsockopt(2) with SO_PEERCRED: return pid, uid and gid of the process at the other end of a Unix socket."""
    return _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))


def peer_pidfd(connection: socket.socket) -> int:
    """Call getsockopt(2) with SO_PEERPIDFD: return a pidfd of that process. Raises OSError with ENOPROTOOPT before Linux 6.5."""
    return connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)


def peer_groups(connection: socket.socket) -> tuple[int, ...]:
    """Call getsockopt(2) with SO_PEERGROUPS: return the supplementary groups of that process when it connected."""
    groups, size = (ctypes.c_uint32 * _GROUPS_MAX)(), ctypes.c_uint32(4 * _GROUPS_MAX)
    fd = connection.fileno()
    _check(_libc.getsockopt(fd, socket.SOL_SOCKET, _SO_PEERGROUPS, groups, ctypes.byref(size)), f"/proc/self/fd/{fd}")
    return tuple(groups[: size.value // 4])


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
