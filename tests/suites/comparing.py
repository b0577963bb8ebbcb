"""Make a test here of each test of a suite."""

from collections.abc import Sequence
from typing import Any

import pytest
from differences import DIFFERENCES
from suite_table import Runs, is_right
from suites import FAILED, OURS, THEIRS, Suite, check_built

WHOLE = "whole"
_REPEATS = 2  # some tests of the suites measure time, and fail at times on a busy machine


def parameters(suites: Sequence[Suite]) -> list[Any]:
    """Return what a test is parametrized with: a suite and one of its tests, or WHOLE, which stands for the list of its tests."""
    return [pytest.param(suite, test, id=f"debian{suite.debian}-{test}") for suite in suites for test in (*suite.tests, WHOLE)]


def compare(runs: Runs, suite: Suite, test: str) -> None:
    """Fail where the outcome of a test with our fusermount3 is neither as with libfuse's nor as the table of differences says."""
    check_built(suite)
    theirs, ours = runs.of(suite, THEIRS), runs.of(suite, OURS)
    if test == WHOLE:
        assert sorted(theirs) == sorted(ours) == sorted(suite.tests), "other tests ran than the suite has"
        named = {key[2] for key in DIFFERENCES if key[:2] == (suite.name, suite.release)}
        assert named <= set(suite.tests), "the table of differences names tests that the suite does not have"
        return
    for _ in range(_REPEATS):
        if is_right(suite, test, theirs[test], ours[test]):
            return
        print(f"it is run again: {theirs[test]} with libfuse's fusermount3, {ours[test]} with ours")
        runs.repeat(suite, test)
    if not is_right(suite, test, theirs[test], ours[test]):
        lines = [f"with libfuse's fusermount3 {test} {theirs[test]}", f"with ours it {ours[test]}"]
        lines += [outcome.details for outcome in (theirs[test], ours[test]) if outcome.kind == FAILED]
        pytest.fail("\n".join(lines), pytrace=False)
