"""The log: one line an event on standard error. A line that concerns a volume names pod and volume."""

import logging
import sys
import time
from collections.abc import MutableMapping
from typing import Any

_ROOT = "mfcp"

log = logging.getLogger(_ROOT)


class VolumeLog(logging.LoggerAdapter[logging.Logger]):
    """Puts the pod and the volume in front of each line."""

    def __init__(self, pod: str, volume_id: str) -> None:
        super().__init__(log, {})
        self._prefix = f"pod={_shown(pod) or '-'} volume={_shown(volume_id)}: "

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Add the prefix."""
        return f"{self._prefix}{msg}", kwargs


def configure(verbosity: int) -> None:
    """Log to standard error: 0 warnings and errors, 1 to 5 what happens to volumes (klog's usual), 6 and more all of it."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(logging.WARNING if verbosity <= 0 else logging.INFO if verbosity <= 5 else logging.DEBUG)


def _shown(text: str) -> str:
    """Text from outside as it may stand in a line: what is not printable is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
