"""Processes for work of the driver's: what they have of it, how they end, and how they are handed on."""

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from errno import EINTR, EMFILE
from typing import Any

import apart_jobs
import pytest
from pod_programs import ROOT
from with_workers import DEADLINE, done_apart, run

from driver import fusemount, workerpool

pytestmark = pytest.mark.usefixtures("nothing_is_left")


def test_it_is_no_child_of_the_driver() -> None:
    assert run(done_apart(apart_jobs.parent)) != os.getpid()


def test_it_has_the_standard_streams_and_none_of_the_drivers_fds() -> None:
    """What another pod has queued in one of them would block it, and what it had would look open to others."""
    held = [os.open("/dev/null", os.O_RDWR) for _ in range(5)]
    high = os.dup2(held[0], 1500) if os.sysconf("SC_OPEN_MAX") > 1500 else held[0]
    try:
        found = run(done_apart(apart_jobs.fds))
    finally:
        for fd in {*held, high}:
            os.close(fd)
    assert found[:3] == (0, 1, 2)
    assert len(found) == 5  # one to tell the result by, and the listing's own


async def worker_that_writes(writer: int) -> tuple[workerpool.Worker, "asyncio.Future[None]"]:
    worker = await workerpool.worker()
    return worker, worker.do(apart_jobs.writes, "it is", fds=[writer])


def test_nobody_has_a_copy_of_what_the_driver_opened_since() -> None:
    """Not even for the moment in which a process starts: the driver's own close is the last one."""

    async def main() -> None:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        workers = [await workerpool.worker() for _ in range(5)]
        at_work = [worker.do(apart_jobs.sleeps) for worker in workers]
        os.close(writer)
        assert os.read(reader, 1) == b""
        os.close(reader)
        for worker in workers:
            worker.release()
        for done in at_work:
            with pytest.raises(InterruptedError):
                await done

    run(main())


def test_it_may_be_given_an_fd_and_does_not_keep_it() -> None:
    async def main() -> None:
        reader, writer = os.pipe()
        worker = await workerpool.worker()
        done = worker.do(apart_jobs.says, "it is", fds=[writer])
        os.close(writer)
        await done
        assert os.read(reader, 100) == b"it is"
        assert os.read(reader, 100) == b""
        worker.release()
        os.close(reader)

    run(main())


def test_one_that_is_killed_has_no_result_and_nobody_gets_it() -> None:
    async def main() -> None:
        reader, writer = os.pipe()
        worker, done = await worker_that_writes(writer)
        os.close(writer)
        assert os.read(reader, 100)
        another = asyncio.create_task(workerpool.worker())
        worker.kill()
        with pytest.raises(InterruptedError) as caught:
            await done
        assert caught.value.errno == EINTR
        assert os.read(reader, 100) == b""
        worker.release()
        (await another).release()
        os.close(reader)

    run(main())


def test_one_that_is_killed_when_its_work_is_done_is_not_handed_on() -> None:
    """A client gives up in the moment in which its mount is made: the signal is on its way to who has ended its work."""

    async def main() -> None:
        worker = await workerpool.worker()
        work = worker.do(apart_jobs.same, 7)
        select.select([worker._requests], [], [], DEADLINE)  # its result is there, and not read
        others = [asyncio.create_task(done_apart(apart_jobs.same, number)) for number in range(3)]
        worker.kill()
        assert await work == 7
        worker.release()
        assert await asyncio.gather(*others) == [0, 1, 2]

    run(main())


@pytest.mark.parametrize("work", [fusemount.usage, fusemount.is_gone, apart_jobs.opens])
def test_it_takes_nothing_to_the_next_ones_work(work: Callable[..., Any], tmp_path: Any) -> None:
    """An fd of one volume would keep its mount busy for as long as another one's program makes the process wait."""

    async def main() -> None:
        worker = await workerpool.worker()
        before = await worker.do(apart_jobs.fds)
        for _ in range(3):
            try:
                await worker.do(work, str(tmp_path), *(["0:0"] if work is fusemount.is_gone else []))
            except PermissionError:
                pass  # copies of mounts are for root
        assert await worker.do(apart_jobs.fds) == before
        worker.release()

    run(main())


def test_one_that_ended_while_it_had_nothing_to_do_tells_the_next_user() -> None:
    async def main() -> None:
        worker = await workerpool.worker()
        worker.kill()
        with pytest.raises(OSError):
            while True:  # until the signal has arrived
                await worker.do(apart_jobs.same, 7)
        worker.release()
        assert await done_apart(apart_jobs.same, 7) == 7

    run(main())


def test_many_fds_are_no_obstacle() -> None:
    """select(2) knows 1024."""
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        assert run(done_apart(apart_jobs.same, 7)) == 7
    finally:
        for fd in held:
            os.close(fd)


def test_who_gives_up_before_there_is_a_process_leaves_none() -> None:
    async def main() -> None:
        waiting = [asyncio.create_task(workerpool.worker()) for _ in range(5)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        assert await done_apart(apart_jobs.same, 7) == 7
        await asyncio.sleep(0.1)

    run(main())


def script(*lines: str) -> list[str]:
    """A driver's process, with `lines` in a coroutine of it."""
    start = f"import asyncio, os, signal, sys, time; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests/unit')!r}]"
    imports = "from driver import workerpool; from with_workers import done_apart"
    body = ["async def main():", *(f"    {line}" for line in lines), "asyncio.run(main())"]
    return [
        sys.executable,
        "-c",
        "\n".join([start, "import apart_jobs", imports, "pidfd = workerpool.begin()", *body]),
    ]


def test_a_mistake_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(OSError):
        run(done_apart(apart_jobs.is_a_mistake))
    assert "internal error while working in a process of its own" in caplog.text
    assert "in is_a_mistake" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_the_traceback_of_a_mistake_may_be_of_any_length(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(OSError):
        run(done_apart(apart_jobs.is_a_long_mistake))
    assert "\U0001f41b" * 100 in caplog.text


def test_it_does_not_outlive_the_driver() -> None:
    """Killed with SIGKILL, the driver can end nothing itself."""
    reader, writer = os.pipe()
    lines = [
        "worker = await workerpool.worker()",
        f"done = worker.do(apart_jobs.writes, '', fds=[{writer}])",
        f"os.close({writer})",
        "await done",
    ]
    with subprocess.Popen(script(*lines), pass_fds=[writer]) as driver:
        os.close(writer)
        assert os.read(reader, 100)
        driver.send_signal(signal.SIGKILL)
    assert os.read(reader, 100) == b""  # nobody has the other end any more
    os.close(reader)


def test_the_end_of_its_starter_is_told() -> None:
    """Without it no death is noticed."""
    lines = [
        "import select",
        "with open(f'/proc/self/task/{os.getpid()}/children') as file: [os.kill(int(pid), signal.SIGKILL) for pid in file.read().split()]",
        "select.select([pidfd], [], [], 20)",
        "try: await done_apart(apart_jobs.same, 7)",
        "except OSError: print('told')",
    ]
    done = subprocess.run(script(*lines), stdout=subprocess.PIPE, timeout=DEADLINE)
    assert (done.returncode, done.stdout) == (0, b"told\n")


@pytest.mark.parametrize("free", [0, 1, 2])
def test_where_no_fd_is_left_none_is_made(free: int) -> None:
    """None for the socket pair, or one end of it; or for both, and none for the pidfd when it comes."""
    lines = [
        "import resource",
        # So that nothing but the call in question needs one.
        "assert await done_apart(apart_jobs.same, 7) == 7",
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))",
        "taken = []",
        "def take_all():",
        "    try:",
        "        while True: taken.append(os.open('/dev/null', os.O_RDONLY))",
        "    except OSError: pass",
        "take_all()",
        f"for _ in range({free}): os.close(taken.pop())",
        "call = asyncio.create_task(done_apart(apart_jobs.same, 7))",
        "await asyncio.sleep(0)",
        "take_all()",
        "try: await call",
        "except OSError as error: print(error.errno, flush=True)",
        "for _ in range(2): os.close(taken.pop())",
        "print(await done_apart(apart_jobs.same, 7))",
    ]
    done = subprocess.run(script(*lines), stdout=subprocess.PIPE, text=True, timeout=DEADLINE)
    assert (done.stdout.split(), done.returncode) == ([str(EMFILE), "7"], 0)
