"""Work that may block for ever, in threads that nobody has to wait for.

A thread that waits for an answer which a FUSE program has already read cannot be killed; only aborting the connection
frees it. So such work runs in a daemon thread, its caller waits for a limited time, and each kind of work of each volume
has its own few threads: a pod can make its own hang, and nobody else's.
"""

import _thread
import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Threads:
    """At most `most` threads at one time."""

    __slots__ = ("_most", "_running", "_waiting")  # each volume has some

    def __init__(self, most: int) -> None:
        self._most = most
        self._running = 0
        self._waiting: list[asyncio.Future[None]] = []

    async def run(self, limit: float, work: Callable[[], T], patience: float = 0) -> T:
        """The result of `work()`, or its exception; TimeoutError after `limit` seconds, when its thread goes on alone.

        Waits, within the limit, for a thread where all are at work. `work` owns what it opens, since nobody takes a
        result that comes late. Raises OSError where no thread can be made.

        For `patience` seconds it waits without letting anything else run, which costs less where the work is short. A pod
        that makes its work last holds everybody up as long: only for what a pod cannot ask for again and again.
        """
        future = self._start(work, patience) if patience > 0 and self._running < self._most else None
        if future is not None and future.done():
            return future.result()
        async with asyncio.timeout(limit):
            while future is None:
                if self._running < self._most:
                    future = self._start(work, 0)
                else:
                    await self._one_ends()
            return await future

    async def _one_ends(self) -> None:
        ended = asyncio.get_running_loop().create_future()
        self._waiting.append(ended)
        try:
            await ended
        finally:
            self._waiting.remove(ended)

    def _start(self, work: Callable[[], T], patience: float) -> "asyncio.Future[T]":
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        outcome: list[tuple[T | None, BaseException | None]] = []
        has_ended = _thread.allocate_lock()
        has_ended.acquire()
        is_patient = patience > 0

        def settle() -> None:
            if not outcome:
                return  # both sides saw the end
            result, error = outcome.pop()
            self._running -= 1
            for waiting in self._waiting:
                if not waiting.done():
                    waiting.set_result(None)
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]

        def body() -> None:
            result, error = None, None
            try:
                result = work()
            except BaseException as caught:
                error = caught
            outcome.append((result, error))
            has_ended.release()
            if is_patient:
                return
            try:
                loop.call_soon_threadsafe(settle)
            except RuntimeError:
                pass  # the driver is stopping

        try:
            # threading.Thread would wait until it has begun, which takes longer than most of the work.
            _thread.start_new_thread(body, ())
        except RuntimeError as error:  # the node's or the container's limit of tasks
            raise OSError(11, f"no thread can be made: {error}") from None
        self._running += 1
        if is_patient:
            in_time = has_ended.acquire(timeout=patience)
            is_patient = False
            if in_time or has_ended.acquire(blocking=False):  # it may have ended just before it was told to say so
                settle()
        return future
