"""What has happened to one volume, for whoever asks how it is: since when, how often, and what is wrong with it."""

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
    """A volume's past, and its present troubles: one sentence of each kind."""

    __slots__ = ("_troubles", "past")  # each volume has one

    def __init__(self, past: Past | None = None) -> None:
        """`past` is what a former driver recorded."""
        self.past = past or Past(time.time())
        self._troubles: dict[str, str] | None = None

    @property
    def troubles(self) -> list[str]:
        """What is wrong, besides what the volume's own options are warned of."""
        return list(self._troubles.values()) if self._troubles else []

    def has_trouble(self, kind: str) -> bool:
        """Whether something of a kind is wrong."""
        return self._troubles is not None and kind in self._troubles

    def trouble(self, kind: str, text: str) -> None:
        """Something is wrong; of each kind the last one counts."""
        if self._troubles is None:
            self._troubles = {}
        self._troubles[kind] = text

    def no_trouble(self, *kinds: str) -> None:
        """It is not any more."""
        if self._troubles:
            for kind in kinds:
                self._troubles.pop(kind, None)

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
