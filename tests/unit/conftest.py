"""What holds for all unit tests."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from open_fds import nothing_leaked
from standin_driver import fuse_fd
from with_processes import the_starter

from driver.blocking.processes import Starter


@pytest.fixture(autouse=True, scope="session")
def usual_signals() -> Iterator[None]:
    """What `nohup` or a shell's `&` made these tests ignore, the programs that they start would ignore too."""
    ignored = [number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.default_int_handler)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a short name: a Unix socket's address holds 107 bytes."""
    monkeypatch.chdir(tmp_path)
    return Path(".")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a driver's socket is, or will be."""
    return tmp_path / "fuse.sock"


@pytest.fixture
def fuse(tmp_path: Path) -> Iterator[int]:
    """What a stand-in for the driver sends as the FUSE device."""
    with fuse_fd(tmp_path) as fd:
        yield fd


@pytest.fixture
def starter() -> Starter:
    """What starts the processes of driver.processes."""
    return the_starter()


@pytest.fixture
def nothing_is_left(starter: Starter) -> Iterator[None]:
    """No fd is left of what a test has those processes do."""
    with nothing_leaked():
        yield
