"""Work in a process of its own: its result, its error, its end, and what it has of the driver."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from errno import EIO, ENOTCONN, ETIMEDOUT

import pytest
from open_fds import nothing_leaked

from driver import apart

DEADLINE = 20.0


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    with nothing_leaked():
        yield
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.parametrize("result", [True, False, 7, 1 << 64, (1, 2, 1 << 64)])
def test_the_result_is_the_works(result: int | tuple[int, ...]) -> None:
    found = apart.call(DEADLINE, lambda: result)
    assert (found, type(found)) == (result, type(result))


def test_it_is_another_process() -> None:
    assert apart.call(DEADLINE, os.getppid) == os.getpid()


def test_an_oserror_is_the_works() -> None:
    def fails() -> int:
        raise OSError(ENOTCONN, "anything", "/target")

    with pytest.raises(OSError) as caught:
        apart.call(DEADLINE, fails)
    assert (caught.value.errno, caught.value.filename) == (ENOTCONN, "/target")


def test_an_error_without_a_number_is_one_too() -> None:
    def fails() -> int:
        raise OSError("x")

    with pytest.raises(OSError) as caught:
        apart.call(DEADLINE, fails)
    assert caught.value.errno == EIO


@pytest.mark.parametrize("how", [lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: 1 // 0], ids=["killed", "mistake"])
def test_one_that_ends_without_a_word_has_no_result(how: object, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TimeoutError):
        apart.call(DEADLINE, how)  # type: ignore[arg-type]


def test_it_is_killed_at_its_limit() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError) as caught:
        apart.call(0.1, lambda: time.sleep(DEADLINE) or 0)
    assert caught.value.errno == ETIMEDOUT
    assert time.monotonic() - began < DEADLINE / 2


def test_it_has_the_standard_streams_and_none_of_the_drivers_fds() -> None:
    held = [os.open("/dev/null", os.O_RDWR) for _ in range(5)]
    high = os.dup2(held[0], 1500) if os.sysconf("SC_OPEN_MAX") > 1500 else held[0]
    try:
        # The listing has one itself; the last one is what the result is told by.
        found = apart.call(DEADLINE, lambda: tuple(sorted(int(name) for name in os.listdir("/proc/self/fd"))))
    finally:
        for fd in {*held, high}:
            os.close(fd)
    assert found[:3] == (0, 1, 2)
    assert len(found) == 5


def test_many_fds_are_no_obstacle() -> None:
    """select(2) knows 1024."""
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        assert apart.call(DEADLINE, lambda: 7) == 7
    finally:
        for fd in held:
            os.close(fd)


def test_from_many_threads_at_once() -> None:
    found: list[int] = []
    threads = [threading.Thread(target=lambda n=n: found.append(apart.call(DEADLINE, lambda: n))) for n in range(20)]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert sorted(found) == list(range(20))
