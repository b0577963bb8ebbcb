"""What has happened to one volume, for whoever asks how it is: since when it is as it is, and how often it was mounted."""

import time
from dataclasses import dataclass

from driver import metrics
from driver.metrics import End


@dataclass(frozen=True, slots=True)
class Past:
    """What a restart of the driver does not change: since when the volume is as it is (seconds since 1970), how many
    FUSE file systems were mounted in it so far, and how the last one that is not there any more ended.
    """

    since: float
    mounts: int = 0
    last_end: End | None = None


class History:
    """A volume's past."""

    __slots__ = ("past",)  # each volume has one

    def __init__(self, past: Past | None = None) -> None:
        """`past` is what a former driver recorded."""
        self.past = past or Past(time.time())

    def mounted(self) -> None:
        """A FUSE file system is mounted."""
        metrics.mounted(is_recovery=self.past.last_end is End.DIED)
        self.past = Past(time.time(), self.past.mounts + 1, self.past.last_end)

    def died(self) -> None:
        """Its program has gone, and its mount has not yet."""
        self.past = Past(time.time(), self.past.mounts, self.past.last_end)

    def ended(self, end: End) -> None:
        """It is not mounted any more."""
        metrics.unmounted(end)
        self.past = Past(time.time(), self.past.mounts, end)
