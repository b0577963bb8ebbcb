"""What an application sees at a volume's target, how a FUSE mount ended, and what a volume remembers of its mounts."""

import time
from dataclasses import dataclass, replace
from enum import Enum


class State(Enum):
    """What an application sees at the target path."""

    WAITING = "waiting"  # the empty placeholder
    MOUNTED = "mounted"  # the FUSE file system
    DEAD = "dead"  # ENOTCONN, for as long as the driver needs to notice it and to detach the mount


class Detach(Enum):
    """How a FUSE mount is detached."""

    PLAIN = "plain"  # as umount(8) does: it is refused while the mount is in use, and ends the connection
    LAZY = "lazy"  # as umount -l does: who uses the file system goes on using it
    FORCED = "forced"  # who uses the file system gets errors


class End(Enum):
    """How a FUSE mount ended."""

    ASKED = "asked"  # fusermount3 -u, or umount(8) on the node
    DIED = "died"  # its program ended without unmounting
    UNPUBLISHED = "unpublished"  # with its volume


@dataclass(frozen=True, slots=True)
class Past:
    """What a volume remembers of its mounts; a restart of the driver does not change it.

    `since` is when the present state began, in seconds since 1970. `mounts` counts the FUSE file systems that were mounted
    so far. `last_end` says how the last one ended that is not mounted any more. `left` is the mountpoint that a program had
    asked for which died, until somebody unmounts it or another program mounts.
    """

    since: float
    mounts: int = 0
    last_end: End | None = None
    left: bytes | None = None

    @property
    def since_text(self) -> str:
        """Return `since` as people read it, in UTC."""
        return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(self.since))

    @staticmethod
    def begin() -> "Past":
        """Return the past of a volume that is published now."""
        return Past(time.time())

    def mounted(self) -> "Past":
        """Return the past after a FUSE file system was mounted now."""
        return Past(time.time(), self.mounts + 1, self.last_end)

    def died(self) -> "Past":
        """Return the past after the mounted program ended now, while its mount is still attached."""
        return Past(time.time(), self.mounts, self.last_end)

    def ended(self, end: End, mountpoint: bytes) -> "Past":
        """Return the past after the mount ended now; its program had asked for `mountpoint`."""
        return Past(time.time(), self.mounts, end, mountpoint if end is End.DIED else None)

    def cleaned_up(self) -> "Past":
        """Return the past after somebody unmounted what a dead program had left."""
        return replace(self, left=None)
