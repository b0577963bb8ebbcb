"""Who is at the other end of a connection."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Peer:
    """Who is at the other end, as the kernel says."""

    pid: int
    uid: int
    gid: int
