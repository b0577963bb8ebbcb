"""For all tests: the packages of this repository are imported from where they lie, and signals are as in a terminal."""

import os
import signal
import sys
from pathlib import Path

import pytest
from sidebyside import Scheduling

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# Read when gRPC is imported: with it, a process that forks itself afterwards has no gRPC that works. As in the driver (cli.py).
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

# A shell starts background jobs with these ignored, and programs that the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

_crashed: list[object] = []


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Scheduling:
    return Scheduling(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object, error: object) -> None:
    """Note a process of pytest-xdist that crashed: in a test it fails that test, and between tests it fails the run."""
    if error:
        _crashed.append(node)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _crashed and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
