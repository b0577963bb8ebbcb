"""Tests where the commands find the driver's run folder."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from driver import rundir


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.setattr(rundir, "DEFAULT", str(tmp_path / "run"))
    monkeypatch.setattr(rundir, "_DAEMON_SETS_SOCKET", str(tmp_path / "csi/csi.sock"))
    return {"usual": tmp_path / "run", "beside the endpoint": tmp_path / "own/.mfcp", "beside a DaemonSet's": tmp_path / "csi/.mfcp"}


@pytest.mark.parametrize("where", ["usual", "beside the endpoint", "beside a DaemonSet's"])
def test_the_folder_of_the_driver_that_runs_is_found(folders: dict[str, Path], tmp_path: Path, where: str) -> None:
    endpoint = str(tmp_path / "own/csi.sock")
    assert rundir.of_running_driver(endpoint) is None
    folders[where].mkdir(parents=True)
    (folders[where] / "admin.sock").touch()
    assert rundir.of_running_driver(endpoint) == str(folders[where])


def test_asking_for_the_folder_makes_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    assert rundir.default(str(tmp_path / "own/csi.sock")) == str(folders["usual"])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_would_be_read_only_is_not_used(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rundir.os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_RDONLY if path == str(tmp_path) else 0))
    assert rundir.default(str(tmp_path / "own/csi.sock")) == str(folders["beside the endpoint"])
    folders["usual"].mkdir()  # something is mounted there
    assert rundir.default(str(tmp_path / "own/csi.sock")) == str(folders["usual"])
