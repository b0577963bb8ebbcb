"""Whether closing a pod's socket drops anything that the pod has queued in it.

What is queued may hold file descriptors, and to drop those can block whoever does it for as long as the pod likes. So such
a socket is closed in a thread, which costs more than all the rest of a request. But mostly nothing is queued; and once
nothing can be any more, a close drops nothing.

Before Linux 6.10 whoever closed a Unix socket collected those of the whole node that nobody could reach any more, too, and
dropped what was queued in them. There every close is for a thread.
"""

import os
import socket
from socket import CMSG_SPACE, MSG_PEEK, SHUT_RD, SO_PASSCRED, SOL_SOCKET

from driver import kernel

_UCRED_SIZE = 12  # struct ucred, unix(7)

_closes_collect = not kernel.is_at_least(os.uname().release, (6, 10))


def holds_nothing(connection: socket.socket) -> bool:
    """Whether a close of this SOCK_SEQPACKET connection drops nothing. Nothing can arrive there any more."""
    try:
        connection.shutdown(SHUT_RD)
        # With it every packet brings its sender's ids, an empty one too, which otherwise looks like the end and may have
        # others behind it.
        connection.setsockopt(SOL_SOCKET, SO_PASSCRED, 1)
        data, brought, _, _ = connection.recvmsg(1, CMSG_SPACE(_UCRED_SIZE), MSG_PEEK)
    except OSError:
        return False
    return not data and not brought and not _closes_collect


def first_waiting(listeners: list[socket.socket]) -> list[socket.socket] | None:
    """The first connections that wait at these sockets, at which nobody can connect any more.

    None where a close of the sockets drops nothing. The connections are to be closed in a thread, as the sockets are then.
    """
    found = []
    is_known = not _closes_collect
    for listener in listeners:
        try:
            listener.shutdown(SHUT_RD)
            found.append(listener.accept()[0])
        except BlockingIOError:  # nobody waits
            pass
        except OSError:  # for want of an fd, say
            is_known = False
    return None if is_known and not found else found
