"""Real processes; what they are to mount is a function of the test."""

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from errno import EBUSY, EINTR, EINVAL
from pathlib import Path

import pytest
from open_fds import nothing_leaked
from pod_programs import ROOT

from driver.mountprocess import MountProcess

DEADLINE = 20.0  # seconds


def run(main: Coroutine[object, object, None]) -> None:
    with nothing_leaked():
        asyncio.run(asyncio.wait_for(main, DEADLINE))


def raises(error: BaseException) -> Callable[[], None]:
    def mount() -> None:
        raise error

    return mount


@pytest.mark.parametrize(
    ("mount", "errno"),
    [
        (lambda: None, 0),
        (raises(OSError(EBUSY, "busy")), EBUSY),
        (raises(OSError("without a number")), EINVAL),
        (raises(ValueError("embedded null byte")), EINVAL),
        (raises(SystemExit(0)), EINVAL),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), EINTR),
    ],
    ids=["mounts", "fails", "no errno", "another exception", "exit", "killed by the kernel"],
)
def test_its_end_is_the_errno_of_the_mount(mount: Callable[[], None], errno: int) -> None:
    async def main() -> None:
        told: list[bool] = []
        process = MountProcess(0, mount, lambda: told.append(process.ended.done()))
        assert await process.ended == errno
        # Whoever waits for its end finds everything done.
        assert told == [False]
        assert not process.is_killed

    run(main())


def test_one_that_does_not_end_is_killed() -> None:
    async def main() -> None:
        process = MountProcess(0, lambda: time.sleep(1000), lambda: None)
        await asyncio.sleep(0.05)
        assert not process.ended.done()
        process.kill()
        assert await process.ended == EINTR
        assert process.is_killed
        process.kill()  # and again, when it has ended

    run(main())


def test_it_has_its_fd_and_the_standard_streams_alone() -> None:
    async def main() -> None:
        others = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
        reader, writer = os.pipe()
        high = os.dup2(writer, 1000)
        process = MountProcess(high, lambda: write(high, os.listdir("/proc/self/fd")), lambda: None)
        assert await process.ended == 0
        names = os.read(reader, 1000).decode().split()
        for fd in (*others, reader, writer, high):
            os.close(fd)
        # One more is the listing's own.
        assert len(names) == 5 and {"0", "1", "2", "1000"} < set(names)

    def write(fd: int, names: list[str]) -> None:
        os.write(fd, " ".join(names).encode())

    run(main())


def test_it_does_not_outlive_the_driver(tmp_path: Path) -> None:
    """Killed with SIGKILL, the driver can end nothing itself."""
    code = f"""
import asyncio, os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from driver.mountprocess import MountProcess
async def main():
    def mount():
        os.write(3, str(os.getpid()).encode())
        time.sleep(1000)
    MountProcess(3, mount, lambda: None)
    await asyncio.sleep(1000)
asyncio.run(main())
"""
    reader, writer = os.pipe()
    with subprocess.Popen([sys.executable, "-c", f"import os; os.dup2({writer}, 3)\n{code}"], pass_fds=[writer]) as driver:
        os.close(writer)
        child = int(os.read(reader, 100))
        # Who adopts it would have to reap it: here that is this process.
        assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER
        pidfd = os.pidfd_open(child)
        driver.kill()
    info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    os.close(pidfd)
    os.close(reader)
    assert info is not None and info.si_status == signal.SIGKILL
