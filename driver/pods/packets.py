"""Receives the packets of clients, whose fds the kernel drops."""

import socket
from enum import Enum

from fusermount3_proxy.wire import fdpass, protocol


class NoPacket(Exception):
    """Reports that the client did not send a packet within the time limit."""


class Content(Enum):
    """Says what the next packet of a connection holds."""

    NOTHING = "no data, usually because the client has closed the connection"
    DATA = "data without fds"
    FDS = "fds, with or without data"


def peek(connection: socket.socket) -> Content | None:
    """Return what the next packet holds, and leave the packet in the queue. Returns None if there is no packet.

    A client can queue packets only behind this one, so the next receive gets the packet that was examined here.
    """
    try:
        data, _, flags, _ = connection.recvmsg(1, 0, socket.MSG_PEEK)
    except BlockingIOError:
        return None
    # recvmsg(2) got no buffer for fds, so the kernel sets MSG_CTRUNC if the packet has any.
    return Content.FDS if flags & socket.MSG_CTRUNC else Content.DATA if data else Content.NOTHING


def receive_packet(connection: socket.socket, flags: int = 0) -> bytes:
    """Receive one packet, with further flags of recvmsg(2), and drop its fds. Raises fdpass.Truncated and OSError."""
    data, _ = fdpass.receive_with_fds(connection, protocol.PACKET_MAX, 0, flags)
    return data
