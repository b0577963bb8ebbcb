"""Import the packages of this repository from where they lie, and set signals as in a terminal, for all tests."""

import os
import signal
import sys
from pathlib import Path

import pytest
from sidebyside import Scheduling

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# gRPC reads this when it is imported. With its default, gRPC does not work in a process that forks afterwards. cli.py sets it too.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

# A shell starts background jobs with these ignored, and the programs that the tests start would inherit that.
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
