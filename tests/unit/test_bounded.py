import _thread
import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest

from driver import bounded
from driver.bounded import Threads

DEADLINE = 20.0

# An exception that leaves a thread is one too.
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """What work hangs on, until the test's end at the latest. No thread is left then."""
    before = _thread._count()  # threading knows of its own alone
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


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until something holds."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


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
        told: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        threads = Threads(1)
        with pytest.raises(TimeoutError):
            await threads.run(0.05, hangs(release))
        release.set()
        # There is one thread: it has come back when this runs.
        assert await threads.run(DEADLINE, lambda: 7) == 7
        return told

    assert asyncio.run(main()) == []


def test_a_result_after_the_loops_end_is_no_error(release: threading.Event) -> None:
    with pytest.raises(TimeoutError):
        run(hangs(release), 0.05)
    # The thread goes on without a loop, and ends in the fixture.
    release.set()


def test_no_more_than_the_threads_that_there_are_run_at_once(release: threading.Event) -> None:
    async def main() -> None:
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
        # They come back, and the others go on.
        release.set()
        assert await asyncio.gather(*tasks) == ["late"] * 10
        assert sorted(begun) == list(range(10))

    asyncio.run(main())


def test_the_wait_for_a_thread_counts(release: threading.Event) -> None:
    async def main() -> None:
        threads = Threads(1)
        with pytest.raises(TimeoutError):
            await threads.run(0.02, hangs(release))
        ran = threading.Event()
        with pytest.raises(TimeoutError):
            await threads.run(0.05, ran.set)
        release.set()
        assert await threads.run(DEADLINE, lambda: 7) == 7
        assert not ran.is_set()

    asyncio.run(main())


def test_whoever_makes_its_own_threads_hang_takes_nobody_elses(release: threading.Event) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            await Threads(1).run(0.02, hangs(release))
        assert await Threads(1).run(DEADLINE, lambda: 7) == 7

    asyncio.run(main())


def test_a_caller_that_gives_up_leaves_the_thread_to_end(release: threading.Event) -> None:
    async def main() -> None:
        threads = Threads(1)
        task = asyncio.ensure_future(threads.run(DEADLINE, hangs(release)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        release.set()
        assert await threads.run(DEADLINE, lambda: 7) == 7

    asyncio.run(main())


def test_a_waiting_caller_that_gives_up_costs_no_thread(release: threading.Event) -> None:
    async def main() -> None:
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

    asyncio.run(main())


def test_where_no_thread_can_be_made_it_says_so_and_goes_on_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(*_: object) -> NoReturn:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        threads = Threads(1)
        with monkeypatch.context() as without:
            without.setattr(bounded._thread, "start_new_thread", no_thread)
            for _ in range(3):
                with pytest.raises(OSError, match="can't start new thread"):
                    await threads.run(DEADLINE, lambda: 7)
        assert await threads.run(DEADLINE, lambda: 7) == 7

    asyncio.run(main())


def test_with_patience_nothing_else_runs_until_the_work_has_ended() -> None:
    async def main() -> list[str]:
        happened: list[str] = []
        asyncio.get_running_loop().call_soon(happened.append, "another")
        happened.append(await Threads(1).run(DEADLINE, lambda: "the work", patience=DEADLINE))
        await asyncio.sleep(0)
        return happened

    assert asyncio.run(main()) == ["the work", "another"]


def test_with_patience_an_exception_is_the_works() -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await Threads(1).run(DEADLINE, lambda: 1 / 0, patience=DEADLINE)

    asyncio.run(main())


def test_work_that_outlasts_the_patience_is_waited_for_as_usual(release: threading.Event) -> None:
    async def main() -> object:
        began = time.monotonic()
        task = asyncio.ensure_future(Threads(1).run(DEADLINE, hangs(release), patience=0.01))
        await asyncio.sleep(0)
        assert 0.01 <= time.monotonic() - began < DEADLINE
        assert not task.done()
        release.set()
        return await task

    assert asyncio.run(main()) == "late"


def test_work_that_outlasts_its_limit_and_the_patience_is_left_alone(release: threading.Event) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            await Threads(1).run(0.05, hangs(release), patience=0.01)

    asyncio.run(main())


def test_work_that_ends_with_the_patience_is_settled_once() -> None:
    async def main() -> None:
        threads = Threads(1)
        for number in range(300):
            pause = number % 30 * 1e-5
            assert await threads.run(DEADLINE, lambda pause=pause, number=number: (time.sleep(pause), number)[1], patience=1e-4) == number
        assert threads._running == 0

    asyncio.run(main())
