"""Carries out --auto-unmount (libfuse 3.16 and later): unmount when the FUSE program ends, which has mounted by itself.

A program can mount by itself only in a container with CAP_SYS_ADMIN. A mount that the driver made needs no such process in
the pod, because the driver itself detaches the mount when the program ends.
"""

import posix
from _signal import SIG_BLOCK, pthread_sigmask, valid_signals
from _socket import socket
from errno import ECONNABORTED, ENOTCONN

from fusermount3_proxy import mountpoint, program

TYPE_CHECKING = False  # stands for typing.TYPE_CHECKING, since importing typing takes too long
if TYPE_CHECKING:
    from collections.abc import Callable

# umount2(2)
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8

DEAD = (ENOTCONN, ECONNABORTED)  # errnos at a dead mount; ECONNABORTED if the program ends during the call


def wait_and_unmount(comm: socket, path: bytes) -> None:
    """Wait until the FUSE program ends, and then unmount `path` if the mount there is dead.

    The program holds the other end of `comm` as long as it lives. A mount that still answers stays: another program may have
    mounted there, or a child of the program may still serve the mount. Raises OSError if unmounting fails.
    """
    umount2 = _umount2()  # before waiting, because the single file's unpacked libraries may be removed meanwhile
    _become_daemon(comm.fileno())
    try:
        while comm.recv(16):
            pass
    except OSError:
        pass
    try:
        is_dead = _is_dead(path)
    except OSError:  # standard error is closed, so the error cannot be reported
        return
    if is_dead:
        umount2(path, _MNT_DETACH | _UMOUNT_NOFOLLOW)


def _become_daemon(comm: int) -> None:
    """Leave the program's session, block all signals, and close the standard streams, so that no reader waits for their end."""
    try:
        posix.setsid()
    except OSError:
        pass  # the leader of a process group cannot make a session
    posix.chdir("/")
    pthread_sigmask(SIG_BLOCK, valid_signals())
    try:
        null = posix.open("/dev/null", posix.O_RDWR | posix.O_CLOEXEC)
        for stream in (0, 1, 2):
            if stream != comm:
                posix.dup2(null, stream)
    except OSError:
        pass  # the container has no /dev/null
    # The program's /dev/fuse fd may be among the others. The mount is not dead as long as a process holds that fd.
    program.close_others({0, 1, 2, comm})


def _is_dead(path: bytes) -> bool:
    # The mount table is read first, because opening the path of an automounter would mount it again.
    if mountpoint.fuse_device(path) is None:
        return False
    try:
        posix.close(posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC))
    except OSError as error:
        return error.errno in DEAD
    return False


def _umount2() -> "Callable[[bytes, int], None]":
    # Imported here because mounting does not need it. The ctypes package would take as long to import as everything else.
    import _ctypes

    function = _ctypes.dlsym(_ctypes.dlopen(None, 0), "umount2")  # type: ignore[arg-type]  # dlopen(3) takes NULL
    return lambda path, flags: _ctypes.call_function(function, (path, flags))
