"""Makes the mountpoint that the FUSE program gave absolute, and finds the FUSE file system mounted there."""

import posix
from errno import ENAMETOOLONG, ENOENT

from fusermount3_proxy import procfs
from fusermount3_proxy.wire import mountinfo

_PATH_ONLY = posix.O_PATH | posix.O_CLOEXEC


def resolve(raw: bytes) -> bytes:
    """Return the absolute path of a mountpoint: the real path of its parent, and its last name, as fusermount3 does.

    A symlink as the last name is not resolved, because the last name may be a dead mount, at which every system call fails.
    Raises OSError with the errno of realpath(3) if the parent does not exist, and ValueError if the path is empty.
    """
    if not raw:
        raise ValueError("empty")
    path = raw.rstrip(b"/") or b"/"
    parent, slash, last = path.rpartition(b"/")
    if last in (b"", b".", b".."):
        return real_path(path)
    parent = real_path(parent or (b"/" if slash else b"."))
    return parent + (b"" if parent == b"/" else b"/") + last


def real_path(path: bytes) -> bytes:
    """Return the path without symlinks, `.` and `..`, as realpath(3) does. Raises OSError."""
    flags = _PATH_ONLY
    # The kernel needs permission to search the directory X for `X/.`, and realpath(3) does not.
    while path.endswith((b"/.", b"/")) and path.strip(b"/"):
        path = path.removesuffix(b".").rstrip(b"/") or b"/"
        flags = _PATH_ONLY | posix.O_DIRECTORY
    try:
        fd = posix.open(path, flags)
    except OSError as error:
        if error.errno != ENAMETOOLONG:
            raise
        fd = _open_long_path(path)
    try:
        try:
            real = posix.readlink(b"/proc/self/fd/%d" % fd)
        except FileNotFoundError as error:
            raise OSError(error.errno, "/proc is not mounted, and this program needs it") from None
        # The kernel adds these words to the path of a removed directory, but a directory can also have such a name.
        if real.endswith(b" (deleted)") and posix.fstat(fd).st_nlink == 0:
            raise FileNotFoundError(ENOENT, posix.strerror(ENOENT))
        return real
    finally:
        posix.close(fd)


def _open_long_path(path: bytes) -> int:
    """Open a path that is too long for open(2) name by name, because realpath(3) accepts a path of any length."""
    fd = posix.open(b"/" if path.startswith(b"/") else b".", _PATH_ONLY)
    for name in path.split(b"/"):
        if name:
            before = fd
            try:
                fd = posix.open(name, _PATH_ONLY, dir_fd=before)
            finally:
                posix.close(before)
    return fd


def is_waiting_volume(path: bytes) -> bool:
    """Return whether a volume waits for its FUSE program at `path`, without asking the file system. Raises OSError."""
    mount = mountinfo.topmost(mountinfo.parse(procfs.read("/proc/self/mountinfo")), path)
    return mount is not None and mountinfo.is_placeholder(mount)


def fuse_device(path: bytes) -> str | None:
    """Return MAJOR:MINOR of the FUSE file system at `path`, None if the topmost mount there is no FUSE file system. Raises OSError."""
    mount = mountinfo.topmost(mountinfo.parse(procfs.read("/proc/self/mountinfo")), path)
    return mount.device if mount is not None and mount.is_fuse else None
