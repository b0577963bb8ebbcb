"""Wait for a condition, with a deadline."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_INTERVAL = 0.01


def wait_until(what: str, condition: Callable[[], T], timeout: float = 10.0) -> T:
    """Return the first true value of `condition()`. Raises AssertionError, naming `what`, after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"waited {timeout:g} s in vain until {what}; last seen: {value!r}")
        time.sleep(_INTERVAL)
