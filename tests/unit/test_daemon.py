"""What the driver's process does before it serves."""

import os
import resource
from pathlib import Path

import pytest

from driver import daemon
from driver.endpoint import refuse_if_served


def test_a_socket_that_is_removed_just_now_is_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "lexists", lambda path: True)
    refuse_if_served(str(tmp_path / "csi.sock"), "--endpoint")


def test_a_limit_that_cannot_be_set_any_more_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was given before fs.nr_open was lowered."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    beyond = int(Path("/proc/sys/fs/nr_open").read_text()) + 1
    with monkeypatch.context() as lowered:
        lowered.setattr(resource, "getrlimit", lambda which: (before[0], beyond))
        daemon._raise_fd_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
