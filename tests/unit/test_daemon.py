"""Tests what the driver's process does before it serves."""

import resource
from pathlib import Path

import pytest

from driver import daemon


def test_a_limit_that_cannot_be_set_any_more_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit may have been set before fs.nr_open was lowered."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    beyond = int(Path("/proc/sys/fs/nr_open").read_text()) + 1
    with monkeypatch.context() as lowered:
        lowered.setattr(resource, "getrlimit", lambda which: (before[0], beyond))
        daemon._raise_fd_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
