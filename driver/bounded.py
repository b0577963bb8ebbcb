"""Work that may block for ever, in threads that nobody has to wait for.

A thread that waits for an answer which a FUSE program has already read cannot be killed; only aborting the connection
frees it. So such work runs in a daemon thread, its caller waits for a limited time, and each kind of work of each volume
has its own few threads: a pod can make its own hang, and nobody else's.
"""

import _thread
import asyncio
import os
import signal
from collections.abc import Callable
from errno import EAGAIN
from typing import TypeVar

from driver import syscalls

T = TypeVar("T")

NUDGE = signal.SIGURG  # ignored unless the process handles it, as the driver does by doing nothing

_RETRY = 1.0  # seconds, where no thread could be made


def without(those: tuple[T, ...], one: T) -> tuple[T, ...]:
    """`those` but for `one`. Who is waited for stands in tuples: an empty one costs nothing, and each volume has several."""
    return tuple(each for each in those if each is not one)


class Threads:
    """At most `most` threads at one time."""

    __slots__ = ("_most", "_nudge", "_running", "_unfinished", "_waiting")  # each volume has some

    def __init__(self, most: int, nudge: float | None = None) -> None:
        """A thread that is at work for `nudge` seconds gets a signal, again and again.

        That ends the close(2) of a lingering TCP socket, which could last for ever. It is not for whoever waits for a
        FUSE program: the signal would not end that, and the program would be told.
        """
        self._most = most
        self._nudge = nudge
        self._running = 0
        self._waiting: tuple[asyncio.Future[None], ...] = ()
        self._unfinished: tuple[tuple[Callable[[], None], asyncio.Future[None]], ...] = ()

    @property
    def is_busy(self) -> bool:
        """Whether anything is at work, or waits for a thread."""
        return self._running > 0 or bool(self._unfinished)

    async def run(self, limit: float, work: Callable[[], T]) -> T:
        """The result of `work()`, or its exception; TimeoutError after `limit` seconds, when its thread goes on alone.

        Waits, within the limit, for a thread where all are at work. `work` owns what it opens, since nobody takes a
        result that comes late. Raises OSError where no thread can be made.
        """
        async with asyncio.timeout(limit):
            while self._running >= self._most:
                await self._one_ends()
            return await self._start(work, asyncio.get_running_loop().create_future())

    def finish(self, work: Callable[[], None], patience: float = 0) -> "asyncio.Future[None]":
        """Have `work()` done as soon as a thread is free, whoever waits for it; the result is settled then.

        Nothing is given up: what `work` holds is held until then. A socket left to the garbage collector would be closed
        in whatever thread that runs, and block it.

        For `patience` seconds it waits without letting anything else run, which costs less where the work is short. A pod
        that makes its work last holds everybody up as long: only for what a pod cannot ask for again and again.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if patience > 0 and not self._unfinished and self._running < self._most:
            try:
                return self._start(work, done, patience)
            except OSError:
                pass  # later
        self._unfinished += ((work, done),)
        self._go_on()
        return done

    def _go_on(self) -> None:
        while self._unfinished and self._running < self._most:
            work, done = self._unfinished[0]
            try:
                self._start(work, done)
            except OSError:
                asyncio.get_running_loop().call_later(_RETRY, self._go_on)
                return
            self._unfinished = self._unfinished[1:]

    async def _one_ends(self) -> None:
        ended = asyncio.get_running_loop().create_future()
        self._waiting += (ended,)
        try:
            await ended
        finally:
            self._waiting = without(self._waiting, ended)

    def _start(self, work: Callable[[], T], future: "asyncio.Future[T]", patience: float = 0) -> "asyncio.Future[T]":
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle | None = None
        thread = 0
        outcome: list[tuple[T | None, BaseException | None]] = []
        has_ended = _thread.allocate_lock()
        has_ended.acquire()
        is_patient = patience > 0

        def nudge(after: float) -> None:
            nonlocal timer
            if thread:
                try:
                    # By its number, which the kernel checks; pthread_kill(3) of a thread that has ended is undefined.
                    syscalls.tgkill(os.getpid(), thread, NUDGE)
                except ProcessLookupError:
                    return
            timer = loop.call_later(after, nudge, after)

        def settle() -> None:
            if not outcome:
                return  # both sides saw the end
            result, error = outcome.pop()
            if timer is not None:
                timer.cancel()
            self._running -= 1
            self._go_on()
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
            nonlocal thread
            thread = _thread.get_native_id()
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
            raise OSError(EAGAIN, f"no thread can be made: {error}") from None
        self._running += 1
        if is_patient:
            in_time = has_ended.acquire(timeout=patience)
            is_patient = False
            if in_time or has_ended.acquire(blocking=False):  # it may have ended just before it was told to say so
                settle()
                return future
        if self._nudge is not None:
            timer = loop.call_later(self._nudge, nudge, self._nudge)
        return future
