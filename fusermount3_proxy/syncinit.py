"""--sync-init, libfuse 3.19: the program has the /dev/fuse fd before it is mounted, and answers INIT during mount(2).

    helper -> program    one byte, with the fd attached
    program -> helper    one byte: it reads from the fd now
    helper -> program    a 32-bit integer in the machine's byte order, when the mount has ended: 0, or -errno

Since a mount can take as long as the program likes, both ends are watched: where the program goes away, the driver's
connection is closed, and the driver gives up.
"""

import posix
import sys
from _socket import socket
from errno import EIO
from select import POLLIN, poll

from fusermount3_proxy import limits
from fusermount3_proxy.driver_socket import DriverError, PreparedMount
from fusermount3_proxy.wire import fdpass, protocol

TYPE_CHECKING = False  # typing's, without importing typing
if TYPE_CHECKING:
    from fusermount3_proxy.wire.protocol import Reply


class SyncInitError(Exception):
    """Nothing is mounted; the text says why."""


def mount(comm: socket, fuse_fd: int, prepared: PreparedMount) -> None:
    """Hand the fd over, which is closed here, and mount when the program says so.

    Raises OSError where the fd cannot be sent, and SyncInitError and DriverError.
    """
    try:
        fdpass.send_with_fds(comm, b"\0", [fuse_fd])
    finally:
        posix.close(fuse_fd)
    _wait_for_the_word(comm, prepared)
    errno = EIO
    try:
        prepared.proceed()
        reply = _answer(comm, prepared)
        errno = reply.errno if reply.error is None else reply.errno or EIO
    finally:
        try:
            fdpass.send_with_fds(comm, (-errno).to_bytes(4, sys.byteorder, signed=True), [])
        except OSError:
            pass  # the program has gone, and the driver is told so by the end of the connection
    if reply.error is not None:
        raise SyncInitError(reply.error)


def _wait_for_the_word(comm: socket, prepared: PreparedMount) -> None:
    # The driver says nothing before it is asked, so what comes from there is its end.
    ready = _wait(protocol.PROCEED_WAIT, comm, prepared.socket)
    if not ready:
        raise SyncInitError(f"the FUSE program did not go on within {protocol.PROCEED_WAIT:g} s")
    try:
        if comm.fileno() in ready and comm.recv(1):
            return
    except OSError:
        pass
    if prepared.socket.fileno() in ready:
        raise SyncInitError("the driver closed the connection: it is stopping, or the volume is being unpublished")
    raise SyncInitError("the FUSE program has gone before it was mounted")


def _answer(comm: socket, prepared: PreparedMount) -> "Reply":
    ready = _wait(limits.MOUNT_ANSWER_WAIT, comm, prepared.socket)
    if prepared.socket.fileno() in ready:
        return prepared.answer()
    if ready:
        raise SyncInitError("the FUSE program has gone while it was mounted")
    raise DriverError(f"the driver did not answer within {limits.MOUNT_ANSWER_WAIT:g} s")


def _wait(seconds: float, *sockets: socket) -> set[int]:
    """The fds of those that have something to read, or have ended; empty after that time."""
    poller = poll()
    for each in sockets:
        poller.register(each.fileno(), POLLIN)
    return {fd for fd, _ in poller.poll(seconds * 1000)}
