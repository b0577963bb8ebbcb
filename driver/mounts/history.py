"""What has happened to one volume, for whoever asks how it is: since when it is as it is, and how often it was mounted."""

import time

from driver.model.state import End, Past
from driver.observe import metrics


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

    def ended(self, end: End, mountpoint: bytes) -> None:
        """It is not mounted any more; its program had asked for `mountpoint`."""
        metrics.unmounted(end)
        self.past = Past(time.time(), self.past.mounts, end, mountpoint if end is End.DIED else None)

    def unmounted_after_end(self, mountpoint: bytes) -> bool:
        """Somebody unmounts what is not mounted any more: whether that is what a program left that has died, the first time.

        libfuse's helper would unmount it; here that is done already. fuse3 (Rust) closes its fd before it calls the helper,
        and scripts clean up after a crash.
        """
        if mountpoint != self.past.left:
            return False
        self.past = Past(self.past.since, self.past.mounts, self.past.last_end)
        return True
