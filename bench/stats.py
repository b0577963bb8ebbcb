"""Samples, and how they are taken: in turns, so that whatever else the machine does meets all alike."""

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_order = random.Random(1)  # any order will do, and each run has the same


@dataclass(frozen=True)
class Sample:
    """What was measured of one subject of one row."""

    values: tuple[float, ...]

    def quantile(self, part: float) -> float:
        """The smallest value that at least `part` of all do not exceed."""
        ordered = sorted(self.values)
        return ordered[max(0, math.ceil(part * len(ordered)) - 1)]

    @property
    def median(self) -> float:
        ordered = sorted(self.values)
        middle = len(ordered) // 2
        return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles."""
        return (self.quantile(0.75) - self.quantile(0.25)) / 2


def in_turns(rounds: int, subjects: Mapping[str, Callable[[], float | Sequence[float]]]) -> dict[str, list[float]]:
    """Each subject once a round, in another order each time; a subject returns one value or several."""
    found: dict[str, list[float]] = {name: [] for name in subjects}
    names = list(subjects)
    for _ in range(rounds):
        _order.shuffle(names)
        for name in names:
            value = subjects[name]()
            found[name] += [value] if isinstance(value, float) else value
    return found


def when_due(times: int, every: float, work: Callable[[], Callable[[], None]]) -> list[float]:
    """The milliseconds from when each `work()` was due, every so many seconds, until it was done. What it returns is called
    afterwards.

    One that had to wait for the one before it counts that wait: otherwise a driver that stops for a while would cost one of
    them, however many would have come meanwhile.
    """
    found, began = [], time.perf_counter()
    for number in range(times):
        due = began + number * every
        if (early := due - time.perf_counter()) > 0:
            time.sleep(early)
        undo = work()
        found.append((time.perf_counter() - due) * 1000)
        undo()
    return found
