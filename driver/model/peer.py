"""Defines the value that describes the process at the other end of a connection."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Peer:
    """Holds the ids of the process at the other end of a connection, as the kernel reports them (SO_PEERCRED, unix(7))."""

    pid: int
    uid: int
    gid: int
