"""The mountpoint as the client names it: made absolute, and what the client's own mount table shows there."""

import posix
from errno import ENOENT

from fusermount3_proxy import mountinfo, procfs


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
    fd = posix.open(path, posix.O_PATH | posix.O_CLOEXEC)
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


def fuse_device(path: bytes) -> str | None:
    """MAJOR:MINOR of the FUSE file system mounted at `path`, if the topmost mount there is one."""
    mount = mountinfo.topmost(mountinfo.parse(procfs.read("/proc/self/mountinfo")), path)
    return mount.device if mount is not None and mount.is_fuse else None
