"""Calls in processes of their own: their results and errors, their limits, and how many processes they have."""

import asyncio
import signal
import time
from collections.abc import Callable
from errno import EAGAIN, EIO, ENOTCONN, ETIMEDOUT
from typing import Any

import apart_jobs
import pytest
from with_workers import DEADLINE, run

from driver import apart, workerpool
from driver.apart import Bound, Caller
from driver.workerpool import NotAsked
from fusermount3_proxy import limits

pytestmark = pytest.mark.usefixtures("nothing_is_left")

SHARE = "pod"


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


def test_the_path_of_an_error_may_be_of_any_length() -> None:
    """A pod says how deep a directory of its file system lies."""
    with pytest.raises(OSError) as caught:
        call(DEADLINE, apart_jobs.fails_at, b"name/" * 2000)
    assert (caught.value.errno, caught.value.filename) == (ENOTCONN, None)


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
        await all_work(bound)
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
        workers = [await bound.worker(pod, DEADLINE) for pod in ("hung", "hanging", "one", "another")]
        waiting = [asyncio.create_task(bound.worker(pod, DEADLINE)) for pod in ("one", "another")]
        await asyncio.sleep(0)
        bound.give_back("another")
        workers += await asyncio.wait_for(asyncio.gather(*waiting), DEADLINE / 4)
        for worker in workers:
            worker.release()

    run(main())


def test_the_second_half_of_them_is_for_pods_that_have_none() -> None:
    """A few pods cannot keep all."""

    async def main() -> None:
        bound = Bound(2 * limits.PROCESSES_OF_A_POD)
        callers = [Caller(bound) for _ in range(limits.PROCESSES_OF_A_POD + 1)]
        pods = [*[SHARE] * limits.PROCESSES_OF_A_POD, "another"]
        stuck = [asyncio.create_task(caller.call(pod, DEADLINE, apart_jobs.sleeps)) for pod, caller in zip(pods, callers, strict=True)]
        await all_work(bound)
        with pytest.raises(NotAsked, match="too many FUSE programs of this node do not answer"):
            await Caller(bound).call("another", 0.1, apart_jobs.same, 7)
        assert await Caller(bound).call("a third", DEADLINE, apart_jobs.same, 7) == 7
        for task in stuck:
            task.cancel()
        for caller in callers:
            await ended(caller)

    run(main())


async def all_work(bound: Bound = apart.QUESTIONS) -> None:
    """Wait until all who have been called have a process."""
    await asyncio.sleep(0)
    while bound._unmade:
        await asyncio.sleep(0.001)


def test_where_no_process_comes_nobody_is_taken_for_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The node is out of memory, or the like. Nobody's turn is lost by that, and nobody blames the pod's other programs."""
    monkeypatch.setattr(limits, "WORKER_WAIT", 1.0)
    starter = workerpool._known_starter().pidfd

    async def main() -> None:
        signal.pidfd_send_signal(starter, signal.SIGSTOP)
        try:
            calls = [Caller().call(SHARE, 0.2, apart_jobs.same, 7) for _ in range(limits.PROCESSES_OF_A_POD + 1)]
            found = await asyncio.gather(*calls, return_exceptions=True)
        finally:
            signal.pidfd_send_signal(starter, signal.SIGCONT)
        assert not workerpool._known_starter()._waiting
        assert not apart.QUESTIONS._taken
        for error in found:
            assert isinstance(error, NotAsked)
            assert not isinstance(error, TimeoutError)
            assert error.errno == EAGAIN
            assert error.strerror is not None
            assert error.strerror.startswith("no process can be had for it")
        assert await Caller().call(SHARE, DEADLINE, apart_jobs.same, 7) == 7

    run(main())


def test_that_another_kind_has_no_process_is_not_why_this_one_has_none() -> None:
    starter = workerpool._known_starter().pidfd

    async def main() -> None:
        callers = [Caller() for _ in range(limits.PROCESSES_OF_A_POD)]
        stuck = [asyncio.create_task(caller.call(SHARE, DEADLINE, apart_jobs.sleeps)) for caller in callers]
        await all_work()
        signal.pidfd_send_signal(starter, signal.SIGSTOP)
        try:
            look = asyncio.create_task(Caller(apart.LOOKS).call(SHARE, DEADLINE, apart_jobs.same, 7))
            with pytest.raises(NotAsked, match="other programs of the same pod do not answer"):
                await Caller().call(SHARE, 0.1, apart_jobs.same, 7)
        finally:
            signal.pidfd_send_signal(starter, signal.SIGCONT)
        assert await look == 7
        for task in stuck:
            task.cancel()
        for caller in callers:
            await ended(caller)

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
