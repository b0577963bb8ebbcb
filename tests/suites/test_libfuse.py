"""Run libfuse's own test suite, of each packaged version, with libfuse's fusermount3 and with ours."""

import pytest
from comparing import compare, parameters
from suite_table import Runs
from suites import LIBFUSE, Suite


@pytest.mark.parametrize(("suite", "test"), parameters(LIBFUSE))
def test_libfuse(runs: Runs, suite: Suite, test: str) -> None:
    compare(runs, suite, test)
