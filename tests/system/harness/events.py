"""Wait for a condition with a deadline, and limit how long something takes."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

_INTERVAL = 0.01
SLOWER = float(os.environ.get("MFCP_SLOWER", "1"))  # tests/kernels says how much slower an emulated processor is


def wait_until(what: str, condition: Callable[[], T], timeout: float = 10.0) -> T:
    """Return the first true value of `condition()`. Raises AssertionError, naming `what`, after `timeout` seconds."""
    deadline = time.monotonic() + timeout * SLOWER
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"waited {timeout * SLOWER:g} s in vain until {what}; last seen: {value!r}")
        time.sleep(_INTERVAL)


@contextmanager
def within(seconds: float, what: str) -> Iterator[None]:
    """Assert that the block takes less than `seconds`; `what` says what it does."""
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    print(f"{what}: {took:.2f} s")
    assert took < seconds, f"{what} took {took:.2f} s, and may take {seconds:g} s"
