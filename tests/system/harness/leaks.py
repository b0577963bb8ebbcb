"""Compare, from time to time, what one driver process has when nothing is published. Nothing may grow, however long it lives."""

import os
import time
from collections import Counter
from dataclasses import dataclass, field

from harness.pod import Node, Snapshot

# How long the soak runs, all its parts together (test_leaks.py, test_soak.py): two minutes, or what `tests/run --soak SECONDS`
# says; 3600 for an hour.
SECONDS = float(os.environ.get("MFCP_SOAK_SECONDS", "120"))

# Bytes that grown() may return, however long the test runs. Some 180 KiB were seen in the normal run, and 100 in a longer one.
MEMORY_MORE = 512 << 10

_SETTLES = 20.0  # seconds: what the last call has left ends within this time
_QUIET = 10  # checks in a row that see the same


@dataclass(frozen=True)
class Held:
    """Counts what does not depend on names."""

    fds: Counter[str]  # sockets too
    threads: int
    children: int
    watches: int


@dataclass
class Leaks:
    """Compares with the first check, when nothing was published."""

    node: Node
    before: Snapshot = field(init=False)
    held: Held = field(init=False)
    memory: list[int] = field(default_factory=list)  # bytes, after each check

    def __post_init__(self) -> None:
        self.held = _settled(self.node)
        self.before = self.node.snapshot()

    def check(self) -> None:
        """Check that driver, node and pods folder have what they had at first, now that nothing is published again."""
        self.node.expect(self.before)
        deadline = time.monotonic() + _SETTLES
        while (now := _settled(self.node)) != self.held:
            assert time.monotonic() < deadline, f"the driver had {self.held}, and has {now}"
        self.memory.append(self.node.driver.memory())

    def grown(self) -> int:
        """Return the bytes of memory that came in the second half of all checks.

        In the first half a few hundred KiB come, which Python and the C library keep for reuse. They level off, and a
        leak does not. Memory goes up and down a little, so the least of the last checks counts.
        """
        assert len(self.memory) > 3, f"the driver's memory was measured {len(self.memory)} times, which says nothing"
        return min(self.memory[-2:]) - self.memory[(len(self.memory) - 1) // 2]


def _settled(node: Node) -> Held:
    found = [_held(node)]
    while len(found) < _QUIET or any(each != found[-1] for each in found[-_QUIET:]):
        time.sleep(0.01)
        found.append(_held(node))
    return found[-1]


def _held(node: Node) -> Held:
    driver = node.driver
    return Held(driver.fds(), driver.threads(), len(driver.children()), driver.watches())
