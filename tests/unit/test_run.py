"""Tests tests/run, in a repository whose programs do nothing."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pod_programs import ROOT


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Make one where /usr/bin and with it the distribution's packages are not looked at. Its packaging/build says what VENV is."""
    folder = tmp_path / "repository"
    for name in ("packaging/setup-venv", "packaging/build", "tests/conformance/build-csi-sanity", "tests/conformance/get-go"):
        program(folder / name, 'echo "VENV=$VENV" >"$0.said"' if name == "packaging/build" else "")
    shutil.copy(ROOT / "tests/run.py", folder / "tests")
    return folder


def program(path: Path, script: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def command(repository: Path, only: str = "bench", *more: str) -> list[str | Path]:
    return [sys.executable, "-B", repository / "tests/run.py", "--only", only, *more]


# Stands in for Python: says which module it runs, takes a moment, and leaves a report of two tests that have passed.
PYTHON = """
trap 'echo "interrupted $2" >>"$EVENTS"; exit 1' INT
echo "begins $2 $3"
echo "begins $2" >>"$EVENTS"
for _ in $STEPS_OF_A_STAGE; do sleep 0.1; done
for argument; do
    case $argument in
    --junitxml=*) echo '<testsuite tests="2" failures="0" errors="0" skipped="0"/>' >"${argument#*=}" ;;
    esac
done
echo "ends $2" >>"$EVENTS"
echo "ends $2 $3"
"""


@pytest.fixture
def environment(repository: Path, tmp_path: Path) -> dict[str, str]:
    program(tmp_path / "env/bin/python", PYTHON)
    return {"VENV": f"{tmp_path}/env", "PATH": "/usr/bin:/bin", "EVENTS": f"{tmp_path}/events", "STEPS_OF_A_STAGE": "1 2 3"}


def test_the_output_of_stages_that_run_at_once_is_not_mixed(repository: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        command(repository, "format,lint,unit,system,bench", "--no-setup"), env=environment, capture_output=True, text=True, timeout=60
    )
    lines = done.stdout.splitlines()
    assert (done.returncode, lines[-1]) == (0, "9 passed, 0 failed"), done.stdout + done.stderr
    events = Path(environment["EVENTS"]).read_text().splitlines()
    assert set(events[:2]) == {"begins pytest", "begins ruff"}, events
    # What measures time is alone.
    assert events[-4:] == ["begins pytest", "ends pytest", "begins bench", "ends bench"], events
    begun = [line for line in lines if line.startswith("begins ")]
    assert len(begun) == 6
    for line in begun:
        assert lines[lines.index(line) + 1] == line.replace("begins", "ends"), done.stdout
    assert len(re.findall(r"^\[\d/6\] .*: ok, 0:0\d$", done.stdout, re.MULTILINE)) == 6


def test_what_failed_keeps_those_alone_that_need_it(repository: Path, environment: dict[str, str]) -> None:
    program(repository / "packaging/build", "exit 1")
    done = subprocess.run(
        command(repository, "format,conformance,bench"), env=environment | {"PATH": "/none"}, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "1 passed, 1 failed"), done.stdout + done.stderr
    assert "tests/run: packaging/build failed" in done.stdout
    assert "failed:\n  dist/\n" in done.stdout
    assert "] format: ruff format: ok" in done.stdout
    assert "conformance" not in done.stdout and "bench" not in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_all_that_runs_is_interrupted_and_waited_for(repository: Path, environment: dict[str, str], number: signal.Signals) -> None:
    events = Path(environment["EVENTS"])
    events.touch()
    given = environment | {"STEPS_OF_A_STAGE": "x " * 600}
    with subprocess.Popen(command(repository, "format,unit,bench", "--no-setup"), env=given, stdout=subprocess.PIPE, text=True) as run:
        try:
            deadline = time.monotonic() + 60
            while events.read_text().count("begins") < 2:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            run.send_signal(number)
            out, _ = run.communicate(timeout=60)
        finally:
            run.kill()
    assert sorted(events.read_text().splitlines()[2:]) == ["interrupted pytest", "interrupted ruff"]
    assert (run.returncode, out.splitlines()[-1]) == (130, "0 passed, 2 failed"), out


def test_the_environment_that_is_named_is_the_one_that_builds(repository: Path, tmp_path: Path) -> None:
    program(tmp_path / "env/bin/python")
    done = subprocess.run(
        command(repository), cwd=tmp_path, env={"VENV": "env", "PATH": "/none"}, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "1 passed, 0 failed"), done.stdout + done.stderr
    assert (repository / "packaging/build.said").read_text() == f"VENV={tmp_path}/env\n"


@pytest.mark.parametrize("stage", ["engines", "kernels", "suites"])
@pytest.mark.parametrize(("arguments", "runs"), [([], False), (["--all"], True), (["--only", "STAGE"], True)])
def test_a_long_stage_runs_with_all_or_when_it_is_named(
    repository: Path, environment: dict[str, str], arguments: list[str], runs: bool, stage: str
) -> None:
    given = environment | {"STEPS_OF_A_STAGE": ""}
    whole = [sys.executable, "-B", repository / "tests/run.py", "--no-setup", *(stage if each == "STAGE" else each for each in arguments)]
    done = subprocess.run(whole, env=given, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (f"] {stage}: " in done.stdout) is runs, done.stdout


def test_it_ends_quietly_with_its_reader(repository: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command(repository), env={"PATH": "/none"}, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
