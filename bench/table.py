"""Collects the results, and shows and checks them: markdown, JSON, and the bounds of bounds.toml."""

import json
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.rows import BY_KEY, GO, OURS, ROWS, SUBJECTS, Row
from bench.stats import p99, spread

BOUNDS = Path(__file__).with_name("bounds.toml")

Samples = dict[str, list[float]]  # the values of one row by subject


@dataclass(frozen=True)
class Bound:
    """Limits a row's ratio to the subject `against`, or its value itself where `against` is "".

    `reach` is what the row should reach, and `check` is what --check allows (None: anything).
    """

    against: str
    reach: float
    check: float | None


class Results:
    """Holds what was measured so far."""

    def __init__(self) -> None:
        self.samples: dict[str, Samples] = {}
        self.details: dict[str, list[str]] = {}
        self.doubts: dict[str, str] = {}

    def add(self, key: str, found: Samples) -> None:
        """Add what was measured of a row, by subject."""
        assert key in BY_KEY, key
        self.samples.setdefault(key, {}).update(found)

    def doubt(self, key: str, why: str) -> None:
        """Note why a row cannot be trusted this time: it is shown, and not checked."""
        self.doubts[key] = why

    def add_detail(self, what: str, lines: Iterable[str]) -> None:
        """Add something to list below the table."""
        self.details[what] = list(lines)


def value(row: Row, values: Sequence[float]) -> float:
    """Return what a row shows of the values of one subject."""
    return p99(values) if row.statistic == "p99" else median(values)


def ratio(row: Row, found: Samples, against: str) -> float | None:
    """Return the ratio of our value to another subject's, or None where one was not measured."""
    if OURS not in found or against not in found or not value(row, found[against]):
        return None
    return value(row, found[OURS]) / value(row, found[against])


def ratio_of_best(row: Row, found: Samples, against: str) -> float:
    """Return the ratio of the best values, which other work on the machine disturbs least."""
    ours, other = row.best(found[OURS]), row.best(found[against])
    return ours / other if other else float("inf")


def bounds() -> dict[str, list[Bound]]:
    """Read the bounds of each row."""
    found: dict[str, list[Bound]] = {}
    for key, entries in tomllib.loads(BOUNDS.read_text()).items():
        names = {"ratio": BY_KEY[key].reference, "go": GO, "value": ""}
        found[key] = [Bound(names[kind], bound["reach"], bound.get("check")) for kind, bound in entries.items()]
    return found


def failures(results: Results) -> list[str]:
    """Return a line for each row where the ratio of the values and the ratio of the best values are both worse than the bound.

    A regression moves both ratios. Other work on the machine seldom does.
    """
    found = []
    for key, limits in bounds().items():
        row, samples = BY_KEY[key], results.samples.get(key, {})
        for limit in limits:
            if not limit.against or limit.check is None or key in results.doubts:
                continue
            of_values = ratio(row, samples, limit.against)
            if of_values is None:
                continue
            both = of_values, ratio_of_best(row, samples, limit.against)
            if max(both) < limit.check if row.more_is_better else min(both) > limit.check:
                found.append(
                    f"{key} ({row.what}): {both[0]:.2f} of {limit.against}, {both[1]:.2f} with the best values alone, "
                    f"{'less' if row.more_is_better else 'more'} than {limit.check:g} (bench/bounds.toml)"
                )
    return found


def markdown(results: Results) -> str:
    """Return the table."""
    limits = bounds()
    lines = ["| row | ours | beside it | ratio | to reach | |", "| --- | --- | --- | --- | --- | --- |"]
    for row, found in _measured(results):
        beside = "; ".join(f"{name} {_shown(row, values)}" for name, values in found.items() if name != OURS)
        ratios = ", ".join(f"{known:.2f} x {name}" for name, known in _ratios(row, found).items() if known is not None)
        reach, marks = _marks(row, found, limits.get(row.key, []))
        marks = "; ".join(filter(None, [marks, results.doubts.get(row.key)]))
        ours = _shown(row, found[OURS]) if OURS in found else "-"
        lines.append(f"| {row.what} | {ours} | {beside or '-'} | {ratios or '-'} | {reach or '-'} | {marks} |")
    for what, listed in results.details.items():
        lines += ["", f"{what}: {', '.join(listed)}"]
    return "\n".join(lines)


def as_json(results: Results, conditions: dict[str, str]) -> str:
    """Return all values."""
    rows = [
        {"row": row.key, "what": row.what, "unit": row.unit, "subjects": found, "ratios": _ratios(row, found)}
        for row, found in _measured(results)
    ]
    return json.dumps({"conditions": conditions, "rows": rows, "details": results.details, "doubts": results.doubts}, indent=2) + "\n"


def _measured(results: Results) -> list[tuple[Row, Samples]]:
    return [(row, results.samples[row.key]) for row in ROWS if row.key in results.samples]


def _ratios(row: Row, found: Samples) -> dict[str, float | None]:
    """Return the ratios to the row's reference and to the peer."""
    return {name: ratio(row, found, name) for name in found if name == row.reference or name not in SUBJECTS}


def _shown(row: Row, values: Sequence[float]) -> str:
    if len(set(values)) == 1:
        return f"{_number(values[0])} {row.unit}".strip()
    best = f"{'max' if row.more_is_better else 'min'} {_number(row.best(values))}"
    return f"{_number(value(row, values))} {row.unit}".strip() + f" ({best}, ±{_number(spread(values))})"


def _number(number: float) -> str:
    return f"{number:.0f}" if abs(number) >= 100 or number == int(number) else f"{number:.1f}" if abs(number) >= 10 else f"{number:.2f}"


def _marks(row: Row, found: Samples, limits: list[Bound]) -> tuple[str, str]:
    """Return what the row should reach, and whether it does; "absolute" says that the number depends on the machine."""
    reach, marks = [], []
    for limit in limits:
        sign = ">=" if row.more_is_better else "<="
        reach.append(f"{sign} {limit.reach:g}" + (f" x {limit.against}" if limit.against else f" {row.unit}".rstrip()))
        absolute = value(row, found[OURS]) if OURS in found else None
        known = ratio(row, found, limit.against) if limit.against else absolute
        if known is None:
            marks.append("not compared")
        else:
            is_reached = known >= limit.reach if row.more_is_better else known <= limit.reach
            marks.append(("reached" if is_reached else "missed") + ("" if limit.against else ", absolute"))
    return ", ".join(reach), "; ".join(marks)
