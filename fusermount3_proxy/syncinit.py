"""Carries out --sync-init (libfuse 3.19): the FUSE program gets the /dev/fuse fd before mount(2), and answers INIT during it.

These messages travel over the comm socket between fusermount3 (here: helper) and the FUSE program:

    helper -> program    one byte, with the fd attached
    program -> helper    one byte: the program reads from the fd now
    helper -> program    a 32-bit integer in the machine's byte order, after mount(2): 0, or -errno

mount(2) takes as long as the program does not answer INIT. So this module waits for both sockets at once: if the program
ends, the driver's connection is closed, and the driver gives up the mount.
"""

import posix
import sys
from _socket import socket
from errno import EIO
from select import POLLIN, poll

from fusermount3_proxy import limits
from fusermount3_proxy.driver_socket import DriverError, PendingMount
from fusermount3_proxy.wire import fdpass, protocol

TYPE_CHECKING = False  # stands for typing.TYPE_CHECKING, since importing typing takes too long
if TYPE_CHECKING:
    from fusermount3_proxy.wire.protocol import Reply


class SyncInitError(Exception):
    """Reports that nothing is mounted. The text gives the reason."""


def mount(comm: socket, fuse_fd: int, pending: PendingMount) -> None:
    """Send `fuse_fd` to the FUSE program, and mount when the program asks for it. `fuse_fd` is closed in any case.

    Raises OSError if the fd cannot be sent, SyncInitError if the program does not go on or the driver refuses, and DriverError
    if the driver does not answer.
    """
    try:
        fdpass.send_fd(comm, fuse_fd, limits.IN_FLIGHT_WAIT)
    finally:
        posix.close(fuse_fd)
    _wait_for_program(comm, pending)
    errno = EIO
    try:
        pending.proceed()
        reply = _receive_reply(comm, pending)
        errno = reply.errno if reply.error is None else reply.errno or EIO
    finally:
        try:
            fdpass.send_with_fds(comm, (-errno).to_bytes(4, sys.byteorder, signed=True), [])
        except OSError:
            pass  # the program has ended, and the driver gives up when this process closes the connection
    if reply.error is not None:
        raise SyncInitError(reply.error)


def _wait_for_program(comm: socket, pending: PendingMount) -> None:
    # The driver sends nothing before `proceed`, so its socket is readable only if the driver has closed the connection.
    ready = _wait_until_readable(protocol.PROCEED_WAIT, comm, pending.socket)
    if not ready:
        raise SyncInitError(f"the FUSE program did not ask for the mount within {protocol.PROCEED_WAIT:g} s")
    try:
        if comm.fileno() in ready and comm.recv(1):
            return
    except OSError:
        pass
    if pending.socket.fileno() in ready:
        raise SyncInitError("the driver closed the connection: it is stopping, or the volume is being unpublished")
    raise SyncInitError("the FUSE program ended before it was mounted, or closed its end of the comm socket")


def _receive_reply(comm: socket, pending: PendingMount) -> "Reply":
    ready = _wait_until_readable(limits.MOUNT_ANSWER_WAIT, comm, pending.socket)
    if pending.socket.fileno() in ready:
        return pending.receive_reply()
    if ready:
        raise SyncInitError("the FUSE program ended while it was mounted, or closed its end of the comm socket")
    raise DriverError(f"the driver did not answer within {limits.MOUNT_ANSWER_WAIT:g} s")


def _wait_until_readable(seconds: float, *sockets: socket) -> set[int]:
    """Return the fds of those sockets that have data or were closed at the other end; empty if the time has passed."""
    poller = poll()
    for each in sockets:
        poller.register(each.fileno(), POLLIN)
    return {fd for fd, _ in poller.poll(seconds * 1000)}
