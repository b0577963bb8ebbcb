"""Work in a process of its own: its result, its error, its end, and what it has of the driver."""

import asyncio
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from errno import EAGAIN, EINTR, EIO, EMFILE, ENOTCONN, ETIMEDOUT
from typing import Any

import apart_jobs
import pytest
from open_fds import nothing_leaked
from pod_programs import ROOT
from with_workers import DEADLINE, run

from driver import apart, fusemount
from driver.apart import Bound, Caller, NotAsked
from fusermount3_proxy import limits

SHARE = "pod"


@pytest.fixture(autouse=True, scope="module")
def starter() -> None:
    apart.begin()


@pytest.fixture(autouse=True)
def nothing_is_left(starter: None) -> Iterator[None]:
    with nothing_leaked():
        yield


def call(limit: float, function: Callable[..., Any], *arguments: object) -> Any:
    async def main() -> Any:
        caller = Caller()
        try:
            return await caller.call(SHARE, limit, function, *arguments)
        finally:
            await ended(caller)

    return run(main())


async def ended(caller: Caller) -> None:
    """What it has given up has ended, and is forgotten."""
    assert await caller.call(SHARE, DEADLINE, apart_jobs.same, 7) == 7


@pytest.mark.parametrize("result", [True, False, None, 7, 1 << 64, (1, 2, 1 << 64)])
def test_the_result_is_the_works(result: object) -> None:
    found = call(DEADLINE, apart_jobs.same, result)
    assert (found, type(found)) == (result, type(result))


def test_it_is_no_child_of_the_driver() -> None:
    assert call(DEADLINE, apart_jobs.parent) != os.getpid()


def test_an_oserror_is_the_works() -> None:
    with pytest.raises(OSError) as caught:
        call(DEADLINE, apart_jobs.fails)
    assert (caught.value.errno, caught.value.filename) == (ENOTCONN, "/target")


def test_an_error_without_a_number_is_one_too() -> None:
    with pytest.raises(OSError) as caught:
        call(DEADLINE, apart_jobs.fails_without_a_number)
    assert caught.value.errno == EIO


def test_one_that_ends_without_a_word_has_asked_nobody() -> None:
    with pytest.raises(NotAsked) as caught:
        call(DEADLINE, apart_jobs.dies)
    assert caught.value.strerror == "the process that was to ask it has ended"
    assert call(DEADLINE, apart_jobs.same, 7) == 7


def test_an_interrupted_answer_is_the_works() -> None:
    with pytest.raises(InterruptedError):
        call(DEADLINE, apart_jobs.is_interrupted)


def test_a_mistake_is_no_silence_of_the_program() -> None:
    with pytest.raises(OSError) as caught:
        call(DEADLINE, apart_jobs.is_a_mistake)
    assert caught.value.errno == EIO
    assert call(DEADLINE, apart_jobs.same, 7) == 7


def test_it_is_killed_at_its_limit() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError) as caught:
        call(0.1, apart_jobs.sleeps)
    assert caught.value.errno == ETIMEDOUT
    assert time.monotonic() - began < DEADLINE / 2


def test_it_has_the_standard_streams_and_none_of_the_drivers_fds() -> None:
    """What another pod has queued in one of them would block it, and what it had would look open to others."""
    held = [os.open("/dev/null", os.O_RDWR) for _ in range(5)]
    high = os.dup2(held[0], 1500) if os.sysconf("SC_OPEN_MAX") > 1500 else held[0]
    try:
        found = call(DEADLINE, apart_jobs.fds)
    finally:
        for fd in {*held, high}:
            os.close(fd)
    assert found[:3] == (0, 1, 2)
    assert len(found) == 5  # one to tell the result by, and the listing's own


async def worker_that_writes(writer: int) -> tuple[apart.Worker, "asyncio.Future[None]"]:
    worker = await apart.worker()
    return worker, worker.do(apart_jobs.writes, "it is", fds=[writer])


def test_nobody_has_a_copy_of_what_the_driver_opened_since() -> None:
    """Not even for the moment in which a process starts: the driver's own close is the last one."""

    async def main() -> None:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        workers = [await apart.worker() for _ in range(5)]
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
        worker = await apart.worker()
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
        another = asyncio.create_task(apart.worker())
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
        worker = await apart.worker()
        work = worker.do(apart_jobs.same, 7)
        select.select([worker._requests], [], [], DEADLINE)  # its result is there, and not read
        others = [asyncio.create_task(Caller().call(SHARE, DEADLINE, apart_jobs.same, number)) for number in range(3)]
        worker.kill()
        assert await work == 7
        worker.release()
        assert await asyncio.gather(*others) == [0, 1, 2]

    run(main())


def test_the_path_of_an_error_may_be_of_any_length() -> None:
    """A pod says how deep a directory of its file system lies."""
    with pytest.raises(OSError) as caught:
        call(DEADLINE, apart_jobs.fails_at, b"name/" * 2000)
    assert (caught.value.errno, caught.value.filename) == (ENOTCONN, None)


@pytest.mark.parametrize("work", [fusemount.usage, fusemount.is_gone, apart_jobs.opens])
def test_it_takes_nothing_to_the_next_ones_work(work: Callable[..., Any], tmp_path: Any) -> None:
    """An fd of one volume would keep its mount busy for as long as another one's program makes the process wait."""

    async def main() -> None:
        worker = await apart.worker()
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
        worker = await apart.worker()
        worker.kill()
        with pytest.raises(OSError):
            while True:  # until the signal has arrived
                await worker.do(apart_jobs.same, 7)
        worker.release()
        assert await Caller().call(SHARE, DEADLINE, apart_jobs.same, 7) == 7

    run(main())


def test_many_fds_are_no_obstacle() -> None:
    """select(2) knows 1024."""
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        assert call(DEADLINE, apart_jobs.same, 7) == 7
    finally:
        for fd in held:
            os.close(fd)


def test_many_at_once_share_a_few_processes() -> None:
    async def main() -> list[int]:
        return await asyncio.gather(*(Caller().call(SHARE, DEADLINE, apart_jobs.pid) for _ in range(200)))

    assert len(set(run(main()))) < 100


def test_those_that_never_answer_keep_nobody_waiting() -> None:
    """Each keeps its own process, and the limit of the others begins with their work."""

    async def main() -> None:
        callers = [Caller() for _ in range(limits.PROCESSES_THAT_ASK // 2 - limits.PROCESSES_OF_A_POD)]
        stuck = [asyncio.create_task(caller.call(f"pod {n}", DEADLINE, apart_jobs.sleeps)) for n, caller in enumerate(callers)]
        began = time.monotonic()
        assert await asyncio.gather(*(Caller().call("another", 0.5, apart_jobs.same, n) for n in range(50))) == list(range(50))
        assert time.monotonic() - began < DEADLINE / 2
        for task in stuck:
            task.cancel()
        for task in stuck:
            with pytest.raises(asyncio.CancelledError):
                await task
        for caller in callers:
            await ended(caller)

    run(main())


def test_one_pods_calls_share_a_few_processes() -> None:
    """However many volumes it has, whose programs never answer: each process costs memory."""

    async def main() -> None:
        callers = [Caller() for _ in range(limits.PROCESSES_OF_A_POD)]
        stuck = [asyncio.create_task(caller.call(SHARE, DEADLINE, apart_jobs.sleeps)) for caller in callers]
        await all_work()
        with pytest.raises(NotAsked, match="other programs of the same pod do not answer"):
            await Caller().call(SHARE, 0.1, apart_jobs.same, 7)
        assert await Caller().call("another", DEADLINE, apart_jobs.same, 7) == 7
        waiting = asyncio.create_task(Caller().call(SHARE, DEADLINE, apart_jobs.same, 8))
        for task in stuck:
            task.cancel()
        assert await waiting == 8
        for caller in callers:
            await ended(caller)
        await asyncio.sleep(0)
        assert not apart.QUESTIONS._taken

    run(main())


def test_the_calls_of_all_pods_share_some_processes() -> None:
    """A server that many pods use is gone, and all of their programs hang. Calls of another kind go on."""

    async def main() -> None:
        bound = Bound(8)
        callers = [Caller(bound) for _ in range(8)]
        stuck = [asyncio.create_task(caller.call(f"pod {n}", DEADLINE, apart_jobs.sleeps)) for n, caller in enumerate(callers)]
        await all_work()
        with pytest.raises(NotAsked, match="too many FUSE programs of this node do not answer"):
            await Caller(bound).call(SHARE, 0.1, apart_jobs.same, 7)
        assert await Caller(apart.LOOKS).call(SHARE, DEADLINE, apart_jobs.same, 7) == 7
        waiting = [asyncio.create_task(Caller(bound).call(f"pod {n}", DEADLINE, apart_jobs.same, n)) for n in range(3)]
        given_up = asyncio.create_task(Caller(bound).call(SHARE, DEADLINE, apart_jobs.same, 7))
        await asyncio.sleep(0)
        given_up.cancel()
        for task in stuck:
            task.cancel()
        assert await asyncio.gather(*waiting) == [0, 1, 2]
        for caller in callers:
            await ended(caller)
        await asyncio.sleep(0)
        assert not bound._taken
        assert not bound._waiting

    run(main())


def test_whoever_has_room_when_one_is_given_back_gets_one() -> None:
    """Two do where the pod that has none any more may have one of the second half."""

    async def main() -> None:
        bound = Bound(8)
        for pod in ("hung", "hanging", "one", "another"):
            await bound.take(pod, DEADLINE)
        waiting = [asyncio.create_task(bound.take(pod, DEADLINE)) for pod in ("one", "another")]
        await asyncio.sleep(0)
        bound.give_back("another")
        await asyncio.wait_for(asyncio.gather(*waiting), DEADLINE / 4)

    run(main())


def test_the_second_half_of_them_is_for_pods_that_have_none() -> None:
    """A few pods cannot keep all."""

    async def main() -> None:
        bound = Bound(2 * limits.PROCESSES_OF_A_POD)
        callers = [Caller(bound) for _ in range(limits.PROCESSES_OF_A_POD + 1)]
        pods = [*[SHARE] * limits.PROCESSES_OF_A_POD, "another"]
        stuck = [asyncio.create_task(caller.call(pod, DEADLINE, apart_jobs.sleeps)) for pod, caller in zip(pods, callers, strict=True)]
        await all_work()
        with pytest.raises(NotAsked, match="too many FUSE programs of this node do not answer"):
            await Caller(bound).call("another", 0.1, apart_jobs.same, 7)
        assert await Caller(bound).call("a third", DEADLINE, apart_jobs.same, 7) == 7
        for task in stuck:
            task.cancel()
        for caller in callers:
            await ended(caller)

    run(main())


async def all_work() -> None:
    """Wait until all who have been called have a process."""
    await asyncio.sleep(0)
    while apart._known_starter().is_waited_for:
        await asyncio.sleep(0.001)


def test_where_no_process_comes_nobody_is_taken_for_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The node is out of memory, or the like. Nobody's turn is lost by that, and nobody blames the pod's other programs."""
    monkeypatch.setattr(limits, "WORKER_WAIT", 1.0)
    starter = apart._known_starter().pidfd

    async def main() -> None:
        signal.pidfd_send_signal(starter, signal.SIGSTOP)
        try:
            calls = [Caller().call(SHARE, 0.2, apart_jobs.same, 7) for _ in range(limits.PROCESSES_OF_A_POD + 1)]
            found = await asyncio.gather(*calls, return_exceptions=True)
        finally:
            signal.pidfd_send_signal(starter, signal.SIGCONT)
        assert not apart._known_starter()._waiting
        assert not apart.QUESTIONS._taken
        for error in found:
            assert isinstance(error, NotAsked)
            assert not isinstance(error, TimeoutError)
            assert error.errno == EAGAIN
            assert error.strerror is not None
            assert error.strerror.startswith("no process can be had for it")
        assert await Caller().call(SHARE, DEADLINE, apart_jobs.same, 7) == 7

    run(main())


def test_who_has_waited_for_a_former_call_waits_for_the_share_no_longer_than_that() -> None:
    """Whoever asks how a volume is has an answer within twice the limit, and kubelet waits for that."""

    async def main() -> float:
        caller, others = Caller(), [Caller() for _ in range(limits.PROCESSES_OF_A_POD)]
        former = asyncio.create_task(caller.call("another", DEADLINE, apart_jobs.sleeps))
        stuck = [asyncio.create_task(other.call(SHARE, DEADLINE, apart_jobs.sleeps)) for other in others]
        await asyncio.sleep(0.1)
        asyncio.get_running_loop().call_later(0.8, former.cancel)
        began = time.monotonic()
        with pytest.raises(NotAsked):
            await caller.call(SHARE, 1, apart_jobs.same, 7)
        took = time.monotonic() - began
        for task in stuck:
            task.cancel()
        for each in (caller, *others):
            await ended(each)
        return took

    assert run(main()) < 1.6


def test_a_caller_has_one_process_at_a_time() -> None:
    """Also one that was given up, as long as it has not ended."""

    async def main() -> None:
        caller = Caller()
        first = asyncio.create_task(caller.call(SHARE, DEADLINE, apart_jobs.sleeps))
        await asyncio.sleep(0.1)
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            await caller.call(SHARE, 0.1, apart_jobs.same, 7)
        assert time.monotonic() - began < DEADLINE / 2
        first.cancel()
        assert await caller.call(SHARE, DEADLINE, apart_jobs.same, 7) == 7

    run(main())


def test_several_calls_of_a_caller_take_turns() -> None:
    async def main() -> list[int]:
        caller = Caller()
        return await asyncio.gather(*(caller.call(SHARE, DEADLINE, apart_jobs.same, n) for n in range(20)))

    assert run(main()) == list(range(20))


def test_who_gives_up_before_there_is_a_process_leaves_none() -> None:
    async def main() -> None:
        waiting = [asyncio.create_task(apart.worker()) for _ in range(5)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        assert await Caller().call(SHARE, DEADLINE, apart_jobs.same, 7) == 7
        await asyncio.sleep(0.1)

    run(main())


def script(*lines: str) -> list[str]:
    """A driver's process, with `lines` in a coroutine of it."""
    start = f"import asyncio, os, signal, sys, time; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests/unit')!r}]"
    body = ["async def main():", *(f"    {line}" for line in lines), "asyncio.run(main())"]
    return [sys.executable, "-c", "\n".join([start, "import apart_jobs", "from driver import apart", "pidfd = apart.begin()", *body])]


def test_a_mistake_is_told() -> None:
    lines = ["try: await apart.Caller().call('pod', 20, apart_jobs.is_a_mistake)", "except OSError: pass"]
    done = subprocess.run(script(*lines), stderr=subprocess.PIPE, text=True, timeout=DEADLINE)
    assert done.stderr.splitlines()[-1].startswith("ZeroDivisionError")


def test_it_does_not_outlive_the_driver() -> None:
    """Killed with SIGKILL, the driver can end nothing itself."""
    reader, writer = os.pipe()
    lines = [
        "worker = await apart.worker()",
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
        "try: await apart.Caller().call('pod', 20, apart_jobs.same, 7)",
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
        "assert await apart.Caller().call('pod', 20, apart_jobs.same, 7) == 7",
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))",
        "taken = []",
        "def take_all():",
        "    try:",
        "        while True: taken.append(os.open('/dev/null', os.O_RDONLY))",
        "    except OSError: pass",
        "take_all()",
        f"for _ in range({free}): os.close(taken.pop())",
        "call = asyncio.create_task(apart.Caller().call('pod', 20, apart_jobs.same, 7))",
        "await asyncio.sleep(0)",
        "take_all()",
        "try: await call",
        "except OSError as error: print(error.errno, flush=True)",
        "for _ in range(2): os.close(taken.pop())",
        "print(await apart.Caller().call('pod', 20, apart_jobs.same, 7))",
    ]
    done = subprocess.run(script(*lines), stdout=subprocess.PIPE, text=True, timeout=DEADLINE)
    assert (done.stdout.split(), done.returncode) == ([str(EMFILE), "7"], 0)
