"""File descriptors over Unix domain sockets: SCM_RIGHTS, cmsg(3) and unix(7)."""

import posix
import sys
from _socket import (
    CMSG_LEN,
    MSG_CMSG_CLOEXEC,
    MSG_CTRUNC,
    MSG_NOSIGNAL,
    MSG_TRUNC,
    SCM_RIGHTS,
    SOL_SOCKET,
    socket,
)

_INT = 4  # sizeof(int), the size of an fd in a control message


class Truncated(Exception):
    """A packet did not fit into the room that was made for it; its fds have been closed."""


class NotLetIn(Exception):
    """The kernel did not give this process the fds that came: it may open no more, or a security module forbids them."""


def send_with_fds(sock: socket, data: bytes, fds: list[int]) -> None:
    """Send `data` with `fds` attached, as one message.

    Raises OSError as sendmsg(2) does. A peer that is gone gives EPIPE, never SIGPIPE.
    """
    control = [(SOL_SOCKET, SCM_RIGHTS, b"".join(fd.to_bytes(_INT, sys.byteorder) for fd in fds))] if fds else []
    sock.sendmsg([data], control, MSG_NOSIGNAL)


def receive_with_fds(sock: socket, size: int, max_fds: int) -> tuple[bytes, list[int]]:
    """Receive one message of at most `size` bytes and `max_fds` fds (close-on-exec).

    Returns the data (empty at end of file) and the fds, which the caller owns. With `max_fds` 0 the kernel drops the
    fds without installing them. Raises Truncated where the message did not fit, NotLetIn, and OSError as recvmsg(2) does.
    """
    # CMSG_LEN and not CMSG_SPACE: the padding of the latter has room for a second fd.
    data, control, flags, _ = sock.recvmsg(size, CMSG_LEN(max_fds * _INT) if max_fds else 0, MSG_CMSG_CLOEXEC)
    fds = []
    for level, kind, payload in control:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            whole = len(payload) - len(payload) % _INT
            fds += [int.from_bytes(payload[i : i + _INT], sys.byteorder) for i in range(0, whole, _INT)]
    if flags & MSG_TRUNC or (max_fds and flags & MSG_CTRUNC):
        close_all(fds)
        # Where fds were left out although there was room, it is not the message's length.
        raise Truncated if flags & MSG_TRUNC or len(fds) >= max_fds else NotLetIn
    return data, fds


def close_all(fds: list[int]) -> None:
    """Close every fd of `fds`, whatever close(2) says of the others."""
    for fd in fds:
        try:
            posix.close(fd)
        except OSError:
            pass
