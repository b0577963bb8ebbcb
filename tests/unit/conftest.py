"""Defines fixtures for all unit tests, and runs those that are coroutines."""

import inspect
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from open_fds import nothing_leaked
from standin_driver import fuse_fd
from with_processes import run, the_starter

from driver.blocking.processes import Starter


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine in an event loop of its own, within a deadline."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}))
    return True


@pytest.fixture(autouse=True, scope="session")
def usual_signals() -> Iterator[None]:
    """Reset signals that `nohup` or a shell's `&` has made this process ignore. Programs that tests start would ignore them too."""
    ignored = [number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.default_int_handler)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a short path, because the address of a Unix socket has at most 107 bytes."""
    monkeypatch.chdir(tmp_path)
    return Path(".")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a driver's socket, which need not exist."""
    return tmp_path / "fuse.sock"


@pytest.fixture
def fuse(tmp_path: Path) -> Iterator[int]:
    """Return the fd that a stand-in for the driver sends as the FUSE device."""
    with fuse_fd(tmp_path) as fd:
        yield fd


@pytest.fixture
def starter() -> Starter:
    """Return the starter of the processes of driver.blocking.processes."""
    return the_starter()


@pytest.fixture
def nothing_is_left(starter: Starter) -> Iterator[None]:
    """Check that calls in processes leave no fd open."""
    with nothing_leaked():
        yield
