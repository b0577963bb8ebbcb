"""The log: one line an event on standard error. A line that concerns a volume names pod and volume."""

import logging
import sys
import time
from collections.abc import MutableMapping
from typing import Any

_ROOT = "mfcp"

log = logging.getLogger(_ROOT)

_TEXT_MAX = 500  # characters
_REFUSALS_MAX = 20  # lines
_REFUSALS_SECONDS = 60.0


class VolumeLog(logging.LoggerAdapter[logging.Logger]):
    """Puts the pod and the volume in front of each line, and keeps each to one line of a readable length.

    Much of what is logged is a pod's own text, in which there may be anything.
    """

    def __init__(self, pod: str, volume_id: str) -> None:
        super().__init__(log, {})
        self._prefix = f"pod={shown(pod) or '-'} volume={shown(volume_id)}: "
        self._refusals = 0
        self._since = 0.0

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Add the prefix."""
        return self._prefix + shown(str(msg)), kwargs

    def refusal(self, text: str) -> None:
        """A warning about what the pod did, which it may do as often as it likes: only some of them are logged."""
        now = time.monotonic()
        if now - self._since > _REFUSALS_SECONDS:
            if self._refusals > _REFUSALS_MAX:
                self.warning(f"{self._refusals - _REFUSALS_MAX} more refusals were not logged")
            self._refusals, self._since = 0, now
        self._refusals += 1
        if self._refusals <= _REFUSALS_MAX:
            self.warning(text)


def shown(text: str) -> str:
    """Text from outside as it may stand in a line: what is not printable is escaped, what is long is cut."""
    if len(text) > _TEXT_MAX:
        text = text[:_TEXT_MAX] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def configure(verbosity: int) -> None:
    """Log to standard error: 0 warnings and errors, 1 to 5 what happens to volumes (klog's usual), 6 and more all of it."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(logging.WARNING if verbosity <= 0 else logging.INFO if verbosity <= 5 else logging.DEBUG)
