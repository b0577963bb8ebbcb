"""Tests the one-shot processes: what they share with the driver, and how they end."""

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from errno import EINTR, EMFILE, ENOBUFS
from pathlib import Path

import process_jobs
import pytest
from pod_programs import ROOT
from with_processes import DEADLINE, done_apart, run, until

from driver.blocking.processes import NotAsked, Starter, _wait_until_readable

pytestmark = pytest.mark.usefixtures("nothing_is_left")


def pid_of(starter: Starter) -> int:
    with open(f"/proc/self/fdinfo/{starter.pidfd}") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pid:"))


def test_it_is_no_child_of_the_driver(starter: Starter) -> None:
    assert run(done_apart(starter, process_jobs.parent)) != os.getpid()


def test_it_has_the_standard_streams_and_none_of_the_drivers_fds(starter: Starter) -> None:
    """A copy of an fd would keep a connection open, and closing it could block because of what a pod has queued in it."""
    held = [os.open("/dev/null", os.O_RDWR) for _ in range(5)]
    high = os.dup2(held[0], 1500) if os.sysconf("SC_OPEN_MAX") > 1500 else held[0]
    try:
        found = run(done_apart(starter, process_jobs.fds))
    finally:
        for fd in {*held, high}:
            os.close(fd)
    assert found[:3] == (0, 1, 2)
    assert len(found) == 5  # the streams, the socket for the result, and the fd of the listing


async def test_nobody_has_a_copy_of_what_the_driver_opened_since(starter: Starter) -> None:
    """Not even a process that is just starting has one, so the driver's own close is the last one."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    processes = [await starter.process() for _ in range(5)]
    at_work = [process.do(process_jobs.sleeps) for process in processes]
    os.close(writer)
    assert os.read(reader, 1) == b""
    os.close(reader)
    for process, answer in zip(processes, at_work, strict=True):
        process.kill()
        with pytest.raises(NotAsked):
            await answer


async def test_it_may_be_given_an_fd_and_does_not_keep_it(starter: Starter) -> None:
    reader, writer = os.pipe()
    with await starter.process() as process:
        answer = process.do(process_jobs.says, "it is", fds=[writer])
        os.close(writer)
        await answer
    assert os.read(reader, 100) == b"it is"
    assert os.read(reader, 100) == b""
    os.close(reader)


async def test_an_fd_that_it_is_given_goes_to_nobody_else(starter: Starter) -> None:
    """The starter must never hold an fd of a pod's: if it were the last to close it, it could block, and no process could start."""
    reader, writer = os.pipe()
    pipe = os.fstat(writer).st_ino
    process = await starter.process()
    answer = process.do(process_jobs.keeps, fds=[writer])
    os.close(writer)
    folder = f"/proc/{pid_of(starter)}/fd"
    assert f"pipe:[{pipe}]" not in {os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder)}
    process.kill()
    with pytest.raises(NotAsked):
        await answer
    assert os.read(reader, 1) == b""
    os.close(reader)


async def test_one_that_is_killed_has_no_result(starter: Starter) -> None:
    reader, writer = os.pipe()
    with await starter.process() as process:
        answer = process.do(process_jobs.writes, "it is", fds=[writer])
        os.close(writer)
        assert os.read(reader, 100)
        process.kill()
        with pytest.raises(NotAsked) as caught:
            await answer
    assert caught.value.errno == EINTR
    assert os.read(reader, 100) == b""
    os.close(reader)


async def test_one_that_is_let_go_without_an_answer_is_killed(starter: Starter) -> None:
    with await starter.process() as process:
        answer = process.do(process_jobs.sleeps)
    await process.ended
    with pytest.raises(NotAsked):
        await answer
    with await starter.process() as process:
        pass  # it was not asked anything
    await process.ended


@pytest.mark.parametrize("is_stopped", [False, True])
@pytest.mark.parametrize("job", [process_jobs.says_and_waits, process_jobs.waits_beyond])
async def test_one_that_is_given_up_ends_unless_it_is_beyond_the_point_of_no_return(
    starter: Starter, job: Callable[..., str], is_stopped: bool
) -> None:
    """One that is to mount may have mounted already, and nobody else knows."""
    (said, says), (told, tells) = os.pipe(), os.pipe()
    with await starter.process() as process:
        answer = process.do(job, fds=[says, told])
        assert os.read(said, 1)
        if is_stopped:
            signal.pidfd_send_signal(process._pidfd, signal.SIGSTOP)
        process.give_up()
    if job is process_jobs.says_and_waits:
        with pytest.raises(NotAsked):
            await answer
    else:
        await asyncio.sleep(0.05)
        assert not answer.done()
        os.write(tells, b"x")
        assert await answer == "late"
    await process.ended
    for fd in (said, says, told, tells):
        os.close(fd)


async def test_the_answer_of_one_that_ends_at_once_is_read(starter: Starter) -> None:
    """The event loop may see its end before its answer."""
    for number in range(20):
        with await starter.process() as process:
            answer = process.do(process_jobs.same, number)
            time.sleep(0.01)
            assert await answer == number


async def test_one_that_answers_counts_until_it_has_ended(starter: Starter) -> None:
    """A process may wait for the pod's FUSE program after its answer, when it closes a copy of a mount."""
    process = await starter.process()
    assert await process.do(process_jobs.same, 7) == 7
    await process.ended
    process.kill()  # this is not an error


async def test_one_that_ended_before_it_was_asked_has_no_answer(starter: Starter) -> None:
    process = await starter.process()
    process.kill()
    await asyncio.sleep(0.05)
    with pytest.raises(NotAsked):
        await process.do(process_jobs.same, 7)
    assert await done_apart(starter, process_jobs.same, 7) == 7


def test_many_fds_are_no_obstacle(starter: Starter) -> None:
    """select(2) supports only 1024."""
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        assert run(done_apart(starter, process_jobs.same, 7)) == 7
    finally:
        for fd in held:
            os.close(fd)


async def test_who_gives_up_before_there_is_a_process_leaves_none(starter: Starter) -> None:
    waiting = [asyncio.create_task(starter.process()) for _ in range(5)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    assert await done_apart(starter, process_jobs.same, 7) == 7
    children = Path(f"/proc/{pid_of(starter)}/task/{pid_of(starter)}/children")
    await until(lambda: children.read_text() == "")


async def test_the_spare_process_is_used_once_and_followed_by_another() -> None:
    spared = Starter()
    spared.keep_spare()
    try:
        pids = set()
        for _ in range(3):
            while spared._spare is None or not spared._spare.done():
                await asyncio.sleep(0.001)
            process = spared._spare.result()
            signal.pidfd_send_signal(spared.pidfd, signal.SIGSTOP)  # it cannot fork a process now
            used = await spared.process()
            signal.pidfd_send_signal(spared.pidfd, signal.SIGCONT)
            assert used is process
            pids.add(await used.do(process_jobs.pid))
        assert len(pids) == 3
    finally:
        await end(spared)


async def test_a_spare_process_that_has_ended_is_not_used() -> None:
    spared = Starter()
    spared.keep_spare()
    try:
        assert await done_apart(spared, process_jobs.same, 7) == 7  # there is no spare process yet
        await until(lambda: spared._spare is not None and spared._spare.done())
        spared._spare.result().kill()
        await spared._spare.result().ended
        assert await done_apart(spared, process_jobs.same, 7) == 7
    finally:
        await end(spared)


async def end(spared: Starter) -> None:
    """End a starter that a test has made, and its spare process."""
    await until(lambda: spared._spare is not None and spared._spare.done())
    pid = pid_of(spared)
    spared._requests.close()
    os.waitpid(pid, 0)
    await spared._spare.result().ended
    os.close(spared.pidfd)


async def test_one_whose_starter_is_stopped_is_waited_for_without_blocking(starter: Starter) -> None:
    signal.pidfd_send_signal(starter.pidfd, signal.SIGSTOP)
    try:
        waiting = [asyncio.create_task(done_apart(starter, process_jobs.same, number)) for number in range(100)]
        await asyncio.sleep(0.1)
    finally:
        signal.pidfd_send_signal(starter.pidfd, signal.SIGCONT)
    assert await asyncio.gather(*waiting) == list(range(100))


def script(*lines: str) -> list[str]:
    """Return the command of a process that forks a starter, as the driver does, and runs `lines` in a coroutine."""
    start = f"import asyncio, os, signal, sys, time; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests/unit')!r}]"
    imports = "from driver.blocking.processes import Starter; from with_processes import done_apart"
    body = ["async def main():", *(f"    {line}" for line in lines), "asyncio.run(main())"]
    return [
        sys.executable,
        "-c",
        "\n".join([start, "import process_jobs", imports, "starter = Starter()", *body]),
    ]


def test_a_mistake_is_logged_with_its_traceback(starter: Starter, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(OSError):
        run(done_apart(starter, process_jobs.is_a_mistake))
    assert "internal error while working in a process of its own" in caplog.text
    assert "in is_a_mistake" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_the_traceback_of_a_mistake_may_be_of_any_length(starter: Starter, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(OSError):
        run(done_apart(starter, process_jobs.is_a_long_mistake))
    assert "\U0001f41b" * 100 in caplog.text


def test_it_does_not_outlive_the_driver() -> None:
    """A driver that is killed with SIGKILL cannot end its processes itself."""
    reader, writer = os.pipe()
    lines = [
        "process = await starter.process()",
        f"answer = process.do(process_jobs.writes, '', fds=[{writer}])",
        f"os.close({writer})",
        "await answer",
    ]
    with subprocess.Popen(script(*lines), pass_fds=[writer]) as driver:
        os.close(writer)
        assert os.read(reader, 100)
        driver.send_signal(signal.SIGKILL)
    assert os.read(reader, 100) == b""  # all copies of the other end are closed
    os.close(reader)


def test_the_end_of_the_starter_is_noticed() -> None:
    """Without a starter the driver cannot notice a program's death."""
    lines = [
        "import select",
        "with open(f'/proc/self/task/{os.getpid()}/children') as file: [os.kill(int(pid), signal.SIGKILL) for pid in file.read().split()]",
        "select.select([starter.pidfd], [], [], 20)",
        "try: await done_apart(starter, process_jobs.same, 7)",
        "except OSError: print('noticed')",
    ]
    done = subprocess.run(script(*lines), stdout=subprocess.PIPE, timeout=DEADLINE)
    assert (done.returncode, done.stdout) == (0, b"noticed\n")


def test_a_mistake_that_ends_its_starter_is_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("driver.blocking.starter.START", None)  # the new starter fails when it takes the length of this
    broken = Starter()
    pid = pid_of(broken)
    assert select.select([broken.pidfd], [], [], DEADLINE)[0]
    broken.report_end()
    assert "TypeError" in caplog.text
    broken.report_end()  # it reports only once
    os.close(broken.pidfd)
    broken._requests.close()
    os.waitpid(pid, 0)


@pytest.mark.parametrize("free", [0, 1, 2])
def test_where_no_fd_is_left_none_is_made(free: int) -> None:
    """There is no fd for the socket pair, only one for it, or no third one for the pidfd that arrives later."""
    lines = [
        "import resource",
        # After this only the call in question needs new fds.
        "with await starter.process() as process: assert await process.do(process_jobs.same, 7) == 7",
        "await process.ended",
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))",
        "taken = []",
        "def take_all():",
        "    try:",
        "        while True: taken.append(os.open('/dev/null', os.O_RDONLY))",
        "    except OSError: pass",
        "take_all()",
        f"for _ in range({free}): os.close(taken.pop())",
        "call = asyncio.create_task(done_apart(starter, process_jobs.same, 7))",
        "await asyncio.sleep(0)",
        "take_all()",
        "try: await call",
        "except OSError as error: print(error.errno, flush=True)",
        "for _ in range(2): os.close(taken.pop())",
        "print(await done_apart(starter, process_jobs.same, 7))",
    ]
    done = subprocess.run(script(*lines), stdout=subprocess.PIPE, text=True, timeout=DEADLINE)
    assert (done.stdout.split(), done.returncode) == ([str(EMFILE), "7"], 0)


async def test_a_process_that_cannot_be_asked_ends_and_keeps_no_place(starter: Starter, monkeypatch: pytest.MonkeyPatch) -> None:
    process = await starter.process()

    def fail(*_: object) -> None:
        raise OSError(ENOBUFS, os.strerror(ENOBUFS))

    with monkeypatch.context() as failing, process:
        failing.setattr(socket, "send_fds", fail)
        with pytest.raises(NotAsked):
            await process.do(process_jobs.same, 1)
    await asyncio.wait_for(process.ended, 20)


async def test_a_start_that_is_given_up_when_the_process_is_there(starter: Starter) -> None:
    """Nothing is reported where both happen in one turn of the event loop."""
    loop = asyncio.get_running_loop()
    reported: list[dict[str, object]] = []
    loop.set_exception_handler(lambda _, context: reported.append(context))
    (first, first_end), (ours, theirs) = socket.socketpair(), socket.socketpair()
    for end in (first, ours):
        end.setblocking(False)
    start = loop.create_task(_wait_until_readable(ours))
    loop.add_reader(first, start.cancel)
    await asyncio.sleep(0)
    first_end.send(b"x")
    theirs.send(b"x")
    with pytest.raises(asyncio.CancelledError):
        await start
    loop.remove_reader(first)
    for end in (first, first_end, ours, theirs):
        end.close()
    assert reported == []
