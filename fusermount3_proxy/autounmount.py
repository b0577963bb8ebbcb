"""--auto-unmount alone, libfuse 3.16 and later: the program has mounted by itself, and this one unmounts when it has gone.

That takes a container with CAP_SYS_ADMIN. Where the driver has mounted it notices the end of the program itself, and no
process is left behind in the pod.
"""

import posix
from _signal import SIG_BLOCK, pthread_sigmask, valid_signals
from _socket import socket
from errno import ECONNABORTED, ENOTCONN

from fusermount3_proxy import mountpoint, program

TYPE_CHECKING = False  # typing's, without importing typing
if TYPE_CHECKING:
    from collections.abc import Callable

# umount2(2)
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8

GONE = (ENOTCONN, ECONNABORTED)  # the latter from a connection that ended while it was asked


def wait_and_unmount(comm: socket, path: bytes) -> None:
    """Wait for the end of `comm`, whose other end the program holds as long as it lives; then unmount `path` if it is dead.

    One that still answers stays: the program has unmounted and another one has mounted there, or a child of it goes on.
    """
    umount2 = _umount2()  # now: by the program's end a single file's own folder may have been cleaned away
    _detach(comm.fileno())
    try:
        while comm.recv(16):
            pass
    except OSError:
        pass
    try:
        is_dead = _is_dead(path)
    except OSError:  # nobody is left to be told
        return
    if is_dead:
        umount2(path, _MNT_DETACH | _UMOUNT_NOFOLLOW)


def _detach(comm: int) -> None:
    """Out of the reach of the program's session and its signals, and nobody waits for the end of its output any more."""
    try:
        posix.setsid()
    except OSError:
        pass  # the leader of a process group has a session already
    posix.chdir("/")
    pthread_sigmask(SIG_BLOCK, valid_signals())
    try:
        null = posix.open("/dev/null", posix.O_RDWR | posix.O_CLOEXEC)
        for stream in (0, 1, 2):
            if stream != comm:
                posix.dup2(null, stream)
    except OSError:
        pass  # a container without one
    # The program's /dev/fuse may be among them: held here it would never be dead.
    program.close_others({0, 1, 2, comm})


def _is_dead(path: bytes) -> bool:
    # The mount table first: where an automounter watches over the path, opening it would mount it anew.
    if mountpoint.fuse_device(path) is None:
        return False
    try:
        posix.close(posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC))
    except OSError as error:
        return error.errno in GONE
    return False


def _umount2() -> "Callable[[bytes, int], None]":
    # Here and not above: no other way through this program needs it. The ctypes package would bring as much as all the rest.
    import _ctypes

    function = _ctypes.dlsym(_ctypes.dlopen(None, 0), "umount2")  # type: ignore[arg-type]  # dlopen(3) takes NULL
    return lambda path, flags: _ctypes.call_function(function, (path, flags))
