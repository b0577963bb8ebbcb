"""Run sshfs's own test suite, with an sshd in the same container, with libfuse's fusermount3 and with ours."""

import pytest
from comparing import compare, parameters
from suite_table import Runs
from suites import SSHFS, Suite


@pytest.mark.parametrize(("suite", "test"), parameters(SSHFS))
def test_sshfs(runs: Runs, suite: Suite, test: str) -> None:
    compare(runs, suite, test)
