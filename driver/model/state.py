"""What an application sees at a volume's target, how a FUSE mount ended, and what a volume remembers of its mounts."""

from dataclasses import dataclass
from enum import Enum


class State(Enum):
    """What an application sees at the target."""

    WAITING = "waiting"  # the placeholder
    MOUNTED = "mounted"  # the FUSE file system
    DEAD = "dead"  # ENOTCONN, for as long as the driver needs to notice and take it off


class End(Enum):
    """How a mount ended."""

    ASKED = "asked"  # fusermount3 -u
    DIED = "died"  # its program went without unmounting
    UNPUBLISHED = "unpublished"  # with its volume


@dataclass(frozen=True, slots=True)
class Past:
    """What a restart of the driver does not change: since when the volume is as it is (seconds since 1970), how many
    FUSE file systems were mounted in it so far, how the last one that is not there any more ended, and, where its program
    died and nobody has unmounted it since, the mountpoint that it had asked for.
    """

    since: float
    mounts: int = 0
    last_end: End | None = None
    left: bytes | None = None
