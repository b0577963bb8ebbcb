"""Defines the value that describes the process at the other end of a connection."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Peer:
    """Holds the ids of the process at the other end of a connection, as the kernel reports them (SO_PEERCRED, unix(7)).

    `connection` is the fd of the connection, which is open as long as its request is served.
    """

    pid: int
    uid: int
    gid: int
    connection: int = field(default=-1, compare=False)
