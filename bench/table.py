"""The results, and how they are shown and checked: markdown, JSON, and the bounds of bounds.toml."""

import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.rows import BY_KEY, GO, OURS, ROWS, SUBJECTS, Row
from bench.stats import Sample

BOUNDS = Path(__file__).with_name("bounds.toml")


@dataclass(frozen=True)
class Bound:
    """What a ratio, or where `against` is "" the value itself, should reach, and what --check allows (None: anything)."""

    against: str
    reach: float
    check: float | None


class Results:
    """What was measured so far."""

    def __init__(self) -> None:
        self.samples: dict[str, dict[str, Sample]] = {}
        self.details: dict[str, list[str]] = {}
        self.doubts: dict[str, str] = {}

    def add(self, key: str, found: dict[str, list[float]]) -> None:
        """What was measured of a row, by subject."""
        assert key in BY_KEY, key
        of_row = self.samples.setdefault(key, {})
        for subject, values in found.items():
            of_row[subject] = Sample(tuple(values))

    def doubt(self, key: str, why: str) -> None:
        """Why a row says nothing of ours this time: it is shown and not checked."""
        self.doubts[key] = why

    def tell(self, what: str, lines: Iterable[str]) -> None:
        """Something to list below the table."""
        self.details[what] = list(lines)


def value(row: Row, sample: Sample) -> float:
    """What a row says of a sample."""
    return sample.quantile(0.99) if row.statistic == "p99" else sample.median


def ratio(row: Row, found: dict[str, Sample], against: str) -> float | None:
    """The ratio of the values; None where one was not measured."""
    if OURS not in found or against not in found or not value(row, found[against]):
        return None
    return value(row, found[OURS]) / value(row, found[against])


def ratio_of_best(row: Row, found: dict[str, Sample], against: str) -> float:
    """The ratio of the best values: what the machine did besides is in them least of all."""
    ours, other = (row.best(found[name].values) for name in (OURS, against))
    return ours / other if other else float("inf")


def bounds() -> dict[str, list[Bound]]:
    """The bounds by row."""
    found: dict[str, list[Bound]] = {}
    for key, entries in tomllib.loads(BOUNDS.read_text()).items():
        row = BY_KEY[key]
        names = {"ratio": row.reference, "go": GO, "value": ""}
        found[key] = [Bound(names[kind], bound["reach"], bound.get("check")) for kind, bound in entries.items()]
    return found


def failures(results: Results) -> list[str]:
    """The rows whose ratio is worse than their bound: the ratio of the values, and that of the best ones too.

    A regression moves both, and a machine that is busy with something else seldom does.
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
            of_best = ratio_of_best(row, samples, limit.against)
            is_worse = max(of_values, of_best) < limit.check if row.more_is_better else min(of_values, of_best) > limit.check
            if is_worse:
                relation = "less" if row.more_is_better else "more"
                found.append(
                    f"{key} ({row.what}): {of_values:.2f} of {limit.against}, {of_best:.2f} with the best values alone, "
                    f"{relation} than {limit.check:g} (bench/bounds.toml)"
                )
    return found


def markdown(results: Results) -> str:
    """The table."""
    limits = bounds()
    lines = ["| row | ours | beside it | ratio | to reach | |", "| --- | --- | --- | --- | --- | --- |"]
    for row in ROWS:
        found = results.samples.get(row.key)
        if not found:
            continue
        beside = "; ".join(f"{name} {_shown(row, sample)}" for name, sample in found.items() if name != OURS)
        ratios = [f"{known:.2f} x {name}" for name in found if _is_compared(row, name) and (known := ratio(row, found, name)) is not None]
        reach, marks = _marks(row, found, limits.get(row.key, []))
        marks = "; ".join(filter(None, [marks, results.doubts.get(row.key)]))
        ours = _shown(row, found[OURS]) if OURS in found else "-"
        lines.append(f"| {row.what} | {ours} | {beside or '-'} | {', '.join(ratios) or '-'} | {reach or '-'} | {marks} |")
    for what, listed in results.details.items():
        lines += ["", f"{what}: {', '.join(listed)}"]
    return "\n".join(lines)


def as_json(results: Results, conditions: dict[str, str]) -> str:
    """All values."""
    rows = []
    for row in ROWS:
        found = results.samples.get(row.key)
        if not found:
            continue
        subjects = {
            name: {
                "value": value(row, sample),
                "min": min(sample.values),
                "median": sample.median,
                "max": max(sample.values),
                "spread": sample.spread,
                "values": list(sample.values),
            }
            for name, sample in found.items()
        }
        ratios = {name: ratio(row, found, name) for name in found if _is_compared(row, name)}
        rows.append({"row": row.key, "what": row.what, "unit": row.unit, "subjects": subjects, "ratios": ratios})
    return json.dumps({"conditions": conditions, "rows": rows, "details": results.details, "doubts": results.doubts}, indent=2) + "\n"


def _is_compared(row: Row, name: str) -> bool:
    return name == row.reference or name not in SUBJECTS  # a peer


def _shown(row: Row, sample: Sample) -> str:
    if len(set(sample.values)) == 1:
        return f"{_number(sample.values[0])} {row.unit}".strip()
    best, said = row.best(sample.values), "max" if row.more_is_better else "min"
    return f"{_number(value(row, sample))} {row.unit}".strip() + f" ({said} {_number(best)}, ±{_number(sample.spread)})"


def _number(number: float) -> str:
    return f"{number:.0f}" if abs(number) >= 100 or number == int(number) else f"{number:.1f}" if abs(number) >= 10 else f"{number:.2f}"


def _marks(row: Row, found: dict[str, Sample], limits: list[Bound]) -> tuple[str, str]:
    """What is to reach, and whether it is; "alone" where there is nothing to compare, or the machine decides."""
    reach, marks = [], []
    for limit in limits:
        sign = ">=" if row.more_is_better else "<="
        reach.append(f"{sign} {limit.reach:g}" + (f" x {limit.against}" if limit.against else f" {row.unit}".rstrip()))
        absolute = value(row, found[OURS]) if OURS in found else None
        is_known = ratio(row, found, limit.against) if limit.against else absolute
        if is_known is None:
            marks.append("not compared")
        else:
            is_reached = is_known >= limit.reach if row.more_is_better else is_known <= limit.reach
            marks.append(("reached" if is_reached else "missed") + ("" if limit.against else ", absolute"))
    return ", ".join(reach), "; ".join(marks)
