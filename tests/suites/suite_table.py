"""Hold what came of the suites with each fusermount3, and put it into the table of docs/compatibility.md."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path

from differences import difference
from harness.programs import REPOSITORY
from harness.table import line, replace
from suites import ALL, FAILED, OURS, PASSED, SKIPPED, THEIRS, Outcome, Suite

DOCUMENT = REPOSITORY / "docs" / "compatibility.md"
_BEGIN = "<!-- made by tests/suites -->"
_HEAD = ["tests", "passed with ours", "skipped with both", "failed with both", "may differ"]


class Runs:
    """Holds the outcomes of each suite that runs, with each fusermount3."""

    def __init__(self) -> None:
        self.futures: dict[tuple[Suite, str], Future[dict[str, Outcome]]] = {}
        self.run_one: Callable[[Suite, str, str], Outcome] | None = None  # runs a test of a suite with one fusermount3

    def of(self, suite: Suite, helper: str) -> dict[str, Outcome]:
        """Return the outcomes of a suite with one fusermount3, by test. Waits for its end. Raises AssertionError if it left no report."""
        return self.futures[suite, helper].result()

    def repeat(self, suite: Suite, test: str) -> None:
        """Run one test again with both, when all suites have ended. What comes of it takes the place of what came before."""
        assert self.run_one is not None
        wait(self.futures.values())
        for helper in (THEIRS, OURS):
            self.of(suite, helper)[test] = self.run_one(suite, helper, test)

    def lines(self) -> list[str]:
        """Return the table of the suites that have run."""
        ended = [suite for suite in ALL if self._has_ended(suite)]
        if not ended:
            return []
        return [line(_HEAD), line(["---"] * len(_HEAD)), *(line(self._cells(suite)) for suite in ended)]

    def write(self, document: Path = DOCUMENT) -> None:
        """Put the table into the document, if nothing is missing and nothing is wrong."""
        if all(self._has_ended(suite) and self._is_right(suite) for suite in ALL):
            replace(document, _BEGIN, "\n".join(self.lines()))

    def _has_ended(self, suite: Suite) -> bool:
        futures = [self.futures.get((suite, helper)) for helper in (THEIRS, OURS)]
        return all(future is not None and future.done() and future.exception() is None for future in futures)

    def _is_right(self, suite: Suite) -> bool:
        theirs, ours = self.of(suite, THEIRS), self.of(suite, OURS)
        return theirs.keys() == ours.keys() == set(suite.tests) and all(is_right(suite, test, theirs[test], ours[test]) for test in theirs)

    def _cells(self, suite: Suite) -> list[str]:
        theirs, ours = self.of(suite, THEIRS), self.of(suite, OURS)
        theirs = {test: theirs.get(test, Outcome("missing")) for test in ours}
        count = Counter(outcome.kind for outcome in ours.values())
        reasons = Counter(outcome.reason.rstrip(".") for outcome in ours.values() if outcome.kind == SKIPPED)
        skipped = [f"{number}: {reason}" for reason, number in reasons.items()]
        both = [test for test in ours if FAILED == ours[test].kind == theirs[test].kind and not difference(suite, test)]
        failed = [f"`{test}`: {ours[test].reason}" for test in both]
        different = [f"`{test}`: {found.reason}" for test in ours if (found := difference(suite, test))]
        different += [f"`{test}`: not expected" for test in ours if not is_right(suite, test, theirs[test], ours[test])]
        return [suite.title, f"{count[PASSED]} of {len(ours)}", *("; ".join(each) for each in (skipped, failed, different))]


def is_right(suite: Suite, test: str, theirs: Outcome, ours: Outcome) -> bool:
    """Return whether ours is as libfuse's is, or differs as the table of differences says."""
    if ours.compared == theirs.compared:
        return True
    found = difference(suite, test)
    return found is not None and {theirs.kind, ours.kind} <= found.kinds
