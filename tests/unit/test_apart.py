"""Work in a process of its own: its result, its error, its end, and what it has of the driver."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from errno import EIO, EMFILE, ENOTCONN, ETIMEDOUT

import apart_jobs
import pytest
from open_fds import nothing_leaked
from pod_programs import ROOT

from driver import apart

DEADLINE = 20.0


@pytest.fixture(autouse=True, scope="module")
def starter() -> None:
    apart.begin()


@pytest.fixture(autouse=True)
def nothing_is_left(starter: None) -> Iterator[None]:
    with nothing_leaked():
        yield


@pytest.mark.parametrize("result", [True, False, None, 7, 1 << 64, (1, 2, 1 << 64)])
def test_the_result_is_the_works(result: object) -> None:
    found = apart.call(DEADLINE, apart_jobs.same, result)
    assert (found, type(found)) == (result, type(result))


def test_it_is_no_child_of_the_driver() -> None:
    assert apart.call(DEADLINE, apart_jobs.parent) != os.getpid()


def test_an_oserror_is_the_works() -> None:
    with pytest.raises(OSError) as caught:
        apart.call(DEADLINE, apart_jobs.fails)
    assert (caught.value.errno, caught.value.filename) == (ENOTCONN, "/target")


def test_an_error_without_a_number_is_one_too() -> None:
    with pytest.raises(OSError) as caught:
        apart.call(DEADLINE, apart_jobs.fails_without_a_number)
    assert caught.value.errno == EIO


@pytest.mark.parametrize("how", [apart_jobs.dies, apart_jobs.is_a_mistake])
def test_one_that_ends_without_a_word_has_no_result(how: Callable[[], int]) -> None:
    with pytest.raises(TimeoutError):
        apart.call(DEADLINE, how)
    assert apart.call(DEADLINE, apart_jobs.same, 7) == 7


def test_it_is_killed_at_its_limit() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError) as caught:
        apart.call(0.1, apart_jobs.sleeps)
    assert caught.value.errno == ETIMEDOUT
    assert time.monotonic() - began < DEADLINE / 2


def test_it_has_the_standard_streams_and_none_of_the_drivers_fds() -> None:
    """What another pod has queued in one of them would block it, and what it had would look open to others."""
    held = [os.open("/dev/null", os.O_RDWR) for _ in range(5)]
    high = os.dup2(held[0], 1500) if os.sysconf("SC_OPEN_MAX") > 1500 else held[0]
    try:
        found = apart.call(DEADLINE, apart_jobs.fds)
    finally:
        for fd in {*held, high}:
            os.close(fd)
    assert found[:3] == (0, 1, 2)
    assert len(found) == 5  # one to tell the result by, and the listing's own


def test_nobody_has_a_copy_of_what_the_driver_opened_since() -> None:
    """Not even for the moment in which a process starts: the driver's own close is the last one."""
    reader, writer = os.pipe()
    jobs = [apart.start(apart_jobs.sleeps) for _ in range(5)]
    os.close(writer)
    assert os.read(reader, 1) == b""
    os.close(reader)
    for job in jobs:
        job.kill()
        while not job.read():
            pass
        with pytest.raises(InterruptedError):
            job.result()
        job.close()


def test_it_may_be_given_an_fd() -> None:
    reader, writer = os.pipe()
    job = apart.start(apart_jobs.writes, "it is", fds=[writer])
    os.close(writer)
    assert os.read(reader, 100).startswith(b"it is ")
    job.kill()
    assert job.read()
    job.close()
    os.close(reader)


def test_many_fds_are_no_obstacle() -> None:
    """select(2) knows 1024."""
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        assert apart.call(DEADLINE, apart_jobs.same, 7) == 7
    finally:
        for fd in held:
            os.close(fd)


def test_from_many_threads_at_once() -> None:
    found: list[object] = []
    threads = [threading.Thread(target=lambda n=n: found.append(apart.call(DEADLINE, apart_jobs.same, n))) for n in range(20)]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert sorted(found) == list(range(20))  # type: ignore[type-var]


def script(*lines: str) -> list[str]:
    start = f"import os, signal, sys, time; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests/unit')!r}]"
    return [sys.executable, "-c", "\n".join([start, "import apart_jobs", "from driver import apart", "apart.begin()", *lines])]


def test_it_does_not_outlive_the_driver() -> None:
    """Killed with SIGKILL, the driver can end nothing itself."""
    reader, writer = os.pipe()
    lines = f"job = apart.start(apart_jobs.writes, '', fds=[{writer}]); os.close({writer}); time.sleep(1000)"
    with subprocess.Popen(script(lines), pass_fds=[writer]) as driver:
        os.close(writer)
        assert os.read(reader, 100)
        driver.kill()
    assert os.read(reader, 100) == b""  # nobody has the other end any more
    os.close(reader)


def test_the_end_of_its_starter_is_told() -> None:
    """Without it no death is noticed."""
    lines = [
        "import select",
        "pidfd = apart.begin()",
        "with open(f'/proc/self/task/{os.getpid()}/children') as file: [os.kill(int(pid), signal.SIGKILL) for pid in file.read().split()]",
        "select.select([pidfd], [], [], 20)",
        "try: apart.call(20, apart_jobs.same, 7)",
        "except OSError: print('told')",
    ]
    done = subprocess.run(script(*lines), stdout=subprocess.PIPE, timeout=DEADLINE)
    assert (done.returncode, done.stdout) == (0, b"told\n")


def test_one_that_there_is_no_fd_left_for_is_ended() -> None:
    """Nobody else could end it."""
    reader, writer = os.pipe()
    lines = [
        "import resource",
        f"os.dup2({writer}, 10)",
        f"os.close({writer})",
        # Room for the pipe, and not for the pidfd.
        "used = len(os.listdir('/proc/self/fd')) - 1",
        "taken = [os.open('/dev/null', os.O_RDONLY) for _ in range(max(0, 20 - used))]",
        "resource.setrlimit(resource.RLIMIT_NOFILE, (22, 22))",
        "free = []",
        "try:",
        "    while True: free.append(os.open('/dev/null', os.O_RDONLY))",
        "except OSError: [os.close(free.pop()) for _ in range(2)]",
        "try: apart.start(apart_jobs.writes, '', fds=[10])",
        "except OSError as error: print(error.errno, flush=True)",
        "os.close(10)",
        "time.sleep(20)",
    ]
    with subprocess.Popen(script(*lines), stdout=subprocess.PIPE, pass_fds=[writer]) as driver:
        os.close(writer)
        assert driver.stdout is not None
        assert int(driver.stdout.readline()) == EMFILE
        while os.read(reader, 100):  # to the end: nobody has it
            pass
        driver.kill()
    os.close(reader)
