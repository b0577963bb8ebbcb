"""Sends and receives file descriptors over Unix sockets: SCM_RIGHTS of unix(7), and cmsg(3)."""

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
from errno import ETOOMANYREFS
from time import sleep

_INT = 4  # sizeof(int), the size of an fd in a control message
_PAUSE = 0.01  # seconds


class Truncated(Exception):
    """Reports that a packet had more bytes or fds than the receiver accepts. Its fds have been closed."""


class FdsNotReceived(Exception):
    """Reports that the kernel dropped fds: this process may open no more, or a security module forbids them."""


def send_with_fds(sock: socket, data: bytes, fds: list[int]) -> None:
    """Send `data` with `fds` attached, as one message.

    Raises OSError as sendmsg(2) does. If the peer has closed the connection, that is EPIPE, and never SIGPIPE.
    """
    control = [(SOL_SOCKET, SCM_RIGHTS, b"".join(fd.to_bytes(_INT, sys.byteorder) for fd in fds))] if fds else []
    sock.sendmsg([data], control, MSG_NOSIGNAL)


def send_fd(sock: socket, fd: int, limit: float) -> None:
    """Send one byte with `fd` attached. Raises OSError.

    While other processes of the same user have more fds in flight than this one may open, the kernel refuses (ETOOMANYREFS,
    unix(7)). It is tried again for `limit` seconds, until their receivers have taken some.
    """
    for _ in range(int(limit / _PAUSE)):
        try:
            send_with_fds(sock, b"\0", [fd])
            return
        except OSError as error:
            if error.errno != ETOOMANYREFS:
                raise
        sleep(_PAUSE)
    send_with_fds(sock, b"\0", [fd])


def receive_with_fds(sock: socket, size: int, max_fds: int, flags: int = 0) -> tuple[bytes, list[int]]:
    """Receive one message of at most `size` bytes and `max_fds` fds (close-on-exec). `flags` are further ones of recvmsg(2).

    Returns the data (empty at end of file) and the fds, which the caller owns. If `max_fds` is 0, the kernel drops all fds
    without installing them. Raises Truncated, FdsNotReceived, and OSError as recvmsg(2) does.
    """
    # CMSG_SPACE would be too much: its padding has room for a second fd.
    data, control, flags, _ = sock.recvmsg(size, CMSG_LEN(max_fds * _INT) if max_fds else 0, MSG_CMSG_CLOEXEC | flags)
    fds = []
    for level, kind, payload in control:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            whole = len(payload) - len(payload) % _INT
            fds += [int.from_bytes(payload[i : i + _INT], sys.byteorder) for i in range(0, whole, _INT)]
    if flags & MSG_TRUNC or (max_fds and flags & MSG_CTRUNC):
        close_all(fds)
        # MSG_CTRUNC also means that the kernel dropped fds. Then fewer have arrived than there was room for.
        raise Truncated if flags & MSG_TRUNC or len(fds) >= max_fds else FdsNotReceived
    return data, fds


def close_all(fds: list[int]) -> None:
    """Close every fd of `fds`, even if close(2) fails for some of them."""
    for fd in fds:
        try:
            posix.close(fd)
        except OSError:
            pass
