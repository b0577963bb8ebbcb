"""The mountpoint as the client names it: made absolute, and what the client's own mount table shows there."""

import posix
from errno import ENAMETOOLONG, ENOENT

from fusermount3_proxy import procfs
from fusermount3_proxy.wire import mountinfo

_LOOK = posix.O_PATH | posix.O_CLOEXEC


def resolve(raw: bytes) -> bytes:
    """The absolute path of a mountpoint: the real path of its parent and its last name, as fusermount3 does it.

    The last name is not followed, since it may be a dead mount that answers nothing. Raises OSError where the parent is
    not there (the errno is realpath(3)'s), and ValueError for an empty path.
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
    """The path without symlinks, `.` and `..`, asked of the kernel. Raises OSError."""
    how = _LOOK
    # For the kernel `.` is a name to be searched for, for realpath(3) it is none.
    while path.endswith((b"/.", b"/")) and path.strip(b"/"):
        path = path.removesuffix(b".").rstrip(b"/") or b"/"
        how = _LOOK | posix.O_DIRECTORY
    try:
        fd = posix.open(path, how)
    except OSError as error:
        if error.errno != ENAMETOOLONG:
            raise
        fd = _walk(path)
    try:
        try:
            real = posix.readlink(b"/proc/self/fd/%d" % fd)
        except FileNotFoundError as error:
            raise OSError(error.errno, "/proc is not mounted, and this program needs it") from None
        # What the kernel writes behind the path of a directory that is gone; one may also have such a name.
        if real.endswith(b" (deleted)") and posix.fstat(fd).st_nlink == 0:
            raise FileNotFoundError(ENOENT, posix.strerror(ENOENT))
        return real
    finally:
        posix.close(fd)


def _walk(path: bytes) -> int:
    """An fd of a path that is longer than open(2) takes, name by name: realpath(3) takes one of any length."""
    fd = posix.open(b"/" if path.startswith(b"/") else b".", _LOOK)
    for name in path.split(b"/"):
        if name:
            before = fd
            try:
                fd = posix.open(name, _LOOK, dir_fd=before)
            finally:
                posix.close(before)
    return fd


def fuse_device(path: bytes) -> str | None:
    """MAJOR:MINOR of the FUSE file system mounted at `path`, if the topmost mount there is one."""
    mount = mountinfo.topmost(mountinfo.parse(procfs.read("/proc/self/mountinfo")), path)
    return mount.device if mount is not None and mount.is_fuse else None
