"""tests/run, in a repository whose programs do nothing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pod_programs import ROOT


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One where /usr/bin and with it the distribution's packages are not looked at. Its packaging/build says what VENV is."""
    folder = tmp_path / "repository"
    for name in ("packaging/setup-venv", "packaging/build", "tests/conformance/build-csi-sanity", "tests/conformance/get-go"):
        program(folder / name, 'echo "VENV=$VENV" >"$0.said"' if name == "packaging/build" else "")
    shutil.copy(ROOT / "tests/run.py", folder / "tests")
    return folder


def program(path: Path, script: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def command(repository: Path) -> list[str | Path]:
    return [sys.executable, "-B", repository / "tests/run.py", "--only", "bench"]


def test_the_environment_that_is_named_is_the_one_that_builds(repository: Path, tmp_path: Path) -> None:
    program(tmp_path / "env/bin/python")
    done = subprocess.run(
        command(repository), cwd=tmp_path, env={"VENV": "env", "PATH": "/none"}, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "1 passed, 0 failed"), done.stdout + done.stderr
    assert (repository / "packaging/build.said").read_text() == f"VENV={tmp_path}/env\n"


def test_it_ends_quietly_with_its_reader(repository: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command(repository), env={"PATH": "/none"}, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
