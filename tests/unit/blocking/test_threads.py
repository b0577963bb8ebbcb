import _thread
import asyncio
import gc
import signal
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest
from with_processes import DEADLINE, until

from driver.blocking import threads
from driver.blocking.threads import Threads

# pytest's warning about an exception that leaves a thread is an error, too.
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Return an event for which work waits. It is set at the end of the test, so that no thread is left."""
    before = _thread._count()
    event = threading.Event()
    yield event
    event.set()
    deadline = time.monotonic() + DEADLINE
    while _thread._count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def hangs(release: threading.Event) -> Callable[[], str]:
    def work() -> str:
        assert release.wait(DEADLINE)
        return "late"

    return work


def run(work: Callable[[], object], limit: float = DEADLINE) -> object:
    async def main() -> object:
        return await Threads(1).run(limit, work)

    return asyncio.run(main())


def test_the_result_is_the_works() -> None:
    assert run(lambda: 7) == 7
    assert run(lambda: None) is None


@pytest.mark.parametrize("error", [OSError(5, "x"), TimeoutError("x"), ValueError("x"), SystemExit(3)])
def test_an_exception_is_the_works(error: BaseException) -> None:
    def work() -> None:
        raise error

    async def main() -> BaseException:
        try:
            await Threads(1).run(DEADLINE, work)
        except BaseException as caught:
            return caught
        raise AssertionError("nothing was raised")

    assert asyncio.run(main()) is error


def test_work_that_hangs_is_left_alone_after_its_limit(release: threading.Event) -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        run(hangs(release), 0.05)
    assert time.monotonic() - began < DEADLINE / 2


def test_a_late_result_goes_nowhere(release: threading.Event) -> None:
    async def main() -> list[dict[str, object]]:
        exceptions: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: exceptions.append(context))
        threads = Threads(1)
        with pytest.raises(TimeoutError):
            await threads.run(0.05, hangs(release))
        release.set()
        # There is only one thread, so the former work has ended when this runs.
        assert await threads.run(DEADLINE, lambda: 7) == 7
        return exceptions

    assert asyncio.run(main()) == []


def test_a_result_after_the_loops_end_is_no_error(release: threading.Event) -> None:
    with pytest.raises(TimeoutError):
        run(hangs(release), 0.05)
    # The thread goes on without an event loop, and ends when the fixture sets the event.
    release.set()


async def test_no_more_than_the_threads_that_there_are_run_at_once(release: threading.Event) -> None:
    threads = Threads(3)
    begun: list[int] = []

    def work(number: int) -> Callable[[], str]:
        def body() -> str:
            begun.append(number)
            return hangs(release)()

        return body

    tasks = [asyncio.ensure_future(threads.run(DEADLINE, work(number))) for number in range(10)]
    await until(lambda: len(begun) == 3)
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert len(begun) == 3
    # When these end, the waiting ones begin.
    release.set()
    assert await asyncio.gather(*tasks) == ["late"] * 10
    assert sorted(begun) == list(range(10))


async def test_the_wait_for_a_thread_counts(release: threading.Event) -> None:
    threads = Threads(1)
    with pytest.raises(TimeoutError):
        await threads.run(0.02, hangs(release))
    ran = threading.Event()
    with pytest.raises(TimeoutError):
        await threads.run(0.05, ran.set)
    release.set()
    assert await threads.run(DEADLINE, lambda: 7) == 7
    assert not ran.is_set()


async def test_nothing_is_kept_of_those_who_waited_for_a_thread_and_gave_up(release: threading.Event) -> None:
    """kubelet calls again and again if a volume cannot be unmounted."""
    threads = Threads(1)
    first = threads.run_to_end(hangs(release))
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await threads.run(0.01, hangs(release))
        assert threads._jobs == []
    release.set()
    assert await first == "late"
    assert not threads.is_busy


async def test_threads_that_hang_are_only_those_of_their_own_object(release: threading.Event) -> None:
    with pytest.raises(TimeoutError):
        await Threads(1).run(0.02, hangs(release))
    assert await Threads(1).run(DEADLINE, lambda: 7) == 7


async def test_a_caller_that_gives_up_leaves_the_thread_to_end(release: threading.Event) -> None:
    threads = Threads(1)
    task = asyncio.ensure_future(threads.run(DEADLINE, hangs(release)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    release.set()
    assert await threads.run(DEADLINE, lambda: 7) == 7


async def test_a_waiting_caller_that_gives_up_costs_no_thread(release: threading.Event) -> None:
    threads = Threads(1)
    first = asyncio.ensure_future(threads.run(DEADLINE, hangs(release)))
    waiting = [asyncio.ensure_future(threads.run(DEADLINE, lambda: 7)) for _ in range(5)]
    await asyncio.sleep(0.01)
    for task in waiting[:4]:
        task.cancel()
    release.set()
    assert await first == "late"
    assert await waiting[4] == 7
    assert await asyncio.gather(*(threads.run(DEADLINE, lambda: 8) for _ in range(3))) == [8, 8, 8]


async def test_where_no_thread_can_be_made_it_says_so_and_goes_on_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(*_: object) -> NoReturn:
        raise RuntimeError("can't start new thread")

    threads = Threads(1)
    with monkeypatch.context() as without:
        without.setattr(_thread, "start_new_thread", no_thread)
        for _ in range(3):
            with pytest.raises(OSError, match="can't start new thread"):
                await threads.run(DEADLINE, lambda: 7)
    assert await threads.run(DEADLINE, lambda: 7) == 7


def test_it_is_tried_again_where_no_thread_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_RETRY", 0.01)
    start = _thread.start_new_thread
    fails = 30

    def may_fail(body: Callable[[], None], arguments: tuple[()]) -> int:
        nonlocal fails
        if fails:
            fails -= 1
            raise RuntimeError("can't start new thread")
        return start(body, arguments)

    monkeypatch.setattr(_thread, "start_new_thread", may_fail)

    async def main() -> None:
        threads = Threads(1)
        all_of_them = [threads.run_to_end(lambda: None) for _ in range(10)]
        assert fails == 20
        await asyncio.wait_for(asyncio.gather(*all_of_them), DEADLINE)

    asyncio.run(main())
    assert fails == 0


async def test_what_must_be_finished_is_finished_although_its_caller_gives_up(release: threading.Event) -> None:
    finished = threading.Event()
    threads = Threads(1)
    first = threads.run_to_end(hangs(release))
    second = threads.run_to_end(finished.set)
    second.cancel()
    await asyncio.sleep(0.01)
    release.set()
    assert await first == "late"
    await until(lambda: not threads.is_busy)
    assert finished.is_set()


async def test_what_must_be_finished_waits_for_a_thread_and_is_held_until_then(release: threading.Event) -> None:
    """The garbage collector would close a dropped socket in whichever thread it runs, which may be the event loop's."""
    done_in: list[threading.Thread] = []

    class Held:
        def close(self) -> None:
            done_in.append(threading.current_thread())

    threads = Threads(1)
    first = threads.run_to_end(hangs(release))
    held = Held()
    second = threads.run_to_end(held.close)
    assert threads.is_busy
    seen = weakref.ref(held)
    del held, threads
    gc.collect()
    assert seen() is not None
    assert not first.done() and not second.done()
    release.set()
    await asyncio.wait_for(second, DEADLINE)
    assert len(done_in) == 1 and threading.current_thread() not in done_in


async def test_the_exception_of_what_must_be_finished_is_in_the_future(release: threading.Event) -> None:
    def fails() -> None:
        raise OSError(5, "x")

    threads = Threads(1)
    with pytest.raises(OSError, match="x"):
        await threads.run_to_end(fails)
    await asyncio.wait_for(threads.run_to_end(lambda: None), DEADLINE)
    assert not threads.is_busy


def test_closing_a_lingering_socket_ends_when_it_is_nudged() -> None:
    """The close of its last copy waits until the peer has read everything, for as long as the owner has set (SO_LINGER)."""
    listener = socket.create_server(("127.0.0.1", 0))
    lingering = socket.create_connection(listener.getsockname())
    other, _ = listener.accept()
    lingering.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            lingering.send(bytes(65536))
    lingering.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 1 << 20))

    async def main() -> None:
        asyncio.get_running_loop().add_signal_handler(threads.NUDGE, lambda: None)
        nudged = Threads(1, nudge=0.1)
        began = time.monotonic()
        await asyncio.wait_for(nudged.run_to_end(lingering.close), DEADLINE)
        assert time.monotonic() - began >= 0.1

    try:
        asyncio.run(main())
    finally:
        other.close()
        listener.close()
    assert signal.getsignal(threads.NUDGE) is signal.SIG_DFL


def test_a_late_result_is_discarded_in_a_thread(release: threading.Event) -> None:
    discarded: list[tuple[str, bool]] = []

    async def main() -> None:
        threads = Threads(1)
        loop_thread = threading.get_ident()
        with pytest.raises(TimeoutError):
            await threads.run(0.01, hangs(release), lambda result: discarded.append((result, threading.get_ident() == loop_thread)))
        release.set()
        await until(lambda: not threads.is_busy and bool(discarded))

    asyncio.run(main())
    assert discarded == [("late", False)]


def test_a_result_that_is_not_late_is_not_discarded() -> None:
    async def main() -> str:
        threads = Threads(1)
        result = await threads.run(DEADLINE, lambda: "in time", lambda result: pytest.fail(result))
        assert not threads.is_busy
        return result

    assert asyncio.run(main()) == "in time"


async def test_a_job_leaves_nothing_for_the_garbage_collector() -> None:
    """Each closed connection is a job."""
    threads = Threads(1, nudge=DEADLINE)
    await threads.run_to_end(lambda: None)
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            await threads.run_to_end(lambda: None)
        await asyncio.sleep(0)
        assert gc.collect() == 0
    finally:
        gc.enable()
