"""Takes samples in turns, so that whatever else the machine does disturbs all subjects alike, and summarizes them."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Measure = Callable[[], float | Sequence[float]]  # measures one subject once, and returns one value or several

_order = random.Random(1)  # every run has the same orders


def p99(values: Sequence[float]) -> float:
    """Return the 99th percentile."""
    return _quantiles(values, 100)[98]


def spread(values: Sequence[float]) -> float:
    """Return half the distance between the quartiles."""
    first, _, third = _quantiles(values, 4)
    return (third - first) / 2


def _quantiles(values: Sequence[float], parts: int) -> list[float]:
    # statistics.quantiles() refuses a single value.
    return statistics.quantiles(values, n=parts, method="inclusive") if len(values) > 1 else list(values) * (parts - 1)


def in_turns(rounds: int, subjects: Mapping[str, Measure]) -> dict[str, list[float]]:
    """Measure each subject once a round, each round in another order, and return the values by subject."""
    found: dict[str, list[float]] = {name: [] for name in subjects}
    names = list(subjects)
    for _ in range(rounds):
        _order.shuffle(names)
        for name in names:
            value = subjects[name]()
            found[name] += [value] if isinstance(value, float) else value
    return found


def when_due(times: int, every: float, work: Callable[[], Callable[[], None]]) -> list[float]:
    """Call `work()` every so many seconds, and return the milliseconds from when each call was due until it returned.

    A call that had to wait for the one before it counts that wait. Otherwise a driver that stops for a while would cost one
    call, however many would have come meanwhile. What `work()` returns is called afterwards, and its time is not counted.
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
