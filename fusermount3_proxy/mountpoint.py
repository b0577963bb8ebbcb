"""Makes the mountpoint that the FUSE program gave absolute, and finds the FUSE file system mounted there."""

import posix
from errno import ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR

from fusermount3_proxy import procfs
from fusermount3_proxy.wire import mountinfo

_PATH_ONLY = posix.O_PATH | posix.O_CLOEXEC
_S_IFMT, _S_IFDIR, _S_IFLNK = 0o170000, 0o040000, 0o120000
_LINKS_MAX = 40  # in the kernel too


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
        fd = _open_long_path(path, flags)
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


def _open_long_path(path: bytes, flags: int) -> int:
    """Open a path that is too long for open(2) name by name, because realpath(3) accepts a path of any length.

    Symlinks are counted over the whole path, as realpath(3) does.
    """
    names = path.split(b"/")[::-1]  # the next one is last
    links = 0
    fd = posix.open(b"/" if path.startswith(b"/") else b".", _PATH_ONLY)
    try:
        while names:
            name = names.pop() or b"."
            found = posix.open(name, _PATH_ONLY | posix.O_NOFOLLOW, dir_fd=fd)
            if posix.fstat(found).st_mode & _S_IFMT == _S_IFLNK:
                try:
                    target = posix.readlink(b"", dir_fd=found)
                finally:
                    posix.close(found)
                links += 1
                if links > _LINKS_MAX:
                    raise OSError(ELOOP, posix.strerror(ELOOP))
                names += target.split(b"/")[::-1]
                if not target.startswith(b"/"):
                    continue
                found = posix.open(b"/", _PATH_ONLY)
            posix.close(fd)
            fd = found
        if flags & posix.O_DIRECTORY and posix.fstat(fd).st_mode & _S_IFMT != _S_IFDIR:
            raise OSError(ENOTDIR, posix.strerror(ENOTDIR))
    except BaseException:
        posix.close(fd)
        raise
    return fd


def is_waiting_volume(path: bytes) -> bool:
    """Return whether a volume waits for its FUSE program at `path`, without asking the file system. Raises OSError."""
    mount = _topmost(path)
    return mount is not None and mountinfo.is_placeholder(mount)


def fuse_device(path: bytes) -> str | None:
    """Return MAJOR:MINOR of the FUSE file system at `path`, None if the topmost mount there is no FUSE file system. Raises OSError."""
    mount = _topmost(path)
    return mount.device if mount is not None and mount.is_fuse else None


def _topmost(path: bytes) -> mountinfo.Mount | None:
    return mountinfo.topmost(mountinfo.parse(procfs.read("/proc/self/mountinfo")), path)
