"""Runs work that may block for ever in threads that nobody has to wait for.

A thread that waits for an answer which a FUSE program has already read cannot be killed; only aborting the connection
frees it. So such work runs in a daemon thread, its caller waits for a limited time, and each kind of work of each volume
has its own few threads: a pod can block its own threads, and no others.
"""

import _thread
import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from errno import EAGAIN
from signal import SIGURG
from typing import Any, TypeVar

from driver.linux import syscalls

T = TypeVar("T")

NUDGE = SIGURG  # ignored unless the process handles it; the driver has a handler that does nothing

_RETRY = 1.0  # seconds until the next attempt, where no thread could be made


@dataclass(frozen=True, eq=False)
class _Job:
    work: Callable[[], Any]
    outcome: "asyncio.Future[Any]"
    must_run: bool  # also where its caller gives up, and where no thread can be made for now


class Threads:
    """Runs each job in a daemon thread of its own, at most `most` at one time."""

    def __init__(self, most: int, nudge: float | None = None) -> None:
        """A thread that is at work for `nudge` seconds gets a signal, again and again.

        That ends the close(2) of a lingering TCP socket, which could last for ever. Work that waits for a FUSE program gets
        none: the signal would not end it, and the kernel would send an interrupt to the program.
        """
        self._most = most
        self._nudge = nudge
        self._jobs: list[_Job] = []  # wait for a thread
        self._running = 0
        self._retry: asyncio.TimerHandle | None = None

    @property
    def is_busy(self) -> bool:
        """Whether any work is running or waits for a thread."""
        return self._running > 0 or bool(self._jobs)

    async def run(self, limit: float, work: Callable[[], T]) -> T:
        """Return the result of `work()`, or raise its exception; after `limit` seconds raise TimeoutError.

        The limit includes the wait for a free thread; work that has not begun by then never does. Work that has begun goes on
        alone, and its result is dropped: `work` itself must close what it opens. Raises OSError where no thread can be made.
        """
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        job = _Job(work, outcome, must_run=False)
        self._submit(job)
        try:
            async with asyncio.timeout(limit):
                return await outcome
        finally:
            if job in self._jobs:
                self._jobs.remove(job)

    def finish(self, work: Callable[[], T]) -> "asyncio.Future[T]":
        """Run `work()` as soon as a thread is free, also if nobody waits for it; the future gets its result.

        Nothing is given up: what `work` holds is held until then. A socket that is left to the garbage collector would be
        closed in whichever thread that runs in, and could block it.
        """
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._submit(_Job(work, outcome, must_run=True))
        return outcome

    def _submit(self, job: _Job) -> None:
        self._jobs.append(job)
        self._start_jobs()

    def _start_jobs(self) -> None:
        while self._jobs and self._running < self._most:
            job = self._jobs[0]
            if job.must_run or not job.outcome.done():
                try:
                    self._start(job)
                except RuntimeError as error:  # the node's or the container's limit of tasks is reached
                    if job.must_run:
                        self._retry_later()
                        return
                    job.outcome.set_exception(OSError(EAGAIN, f"no thread can be made: {error}"))
            del self._jobs[0]

    def _retry_later(self) -> None:
        def retry() -> None:
            self._retry = None
            self._start_jobs()

        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(_RETRY, retry)

    def _start(self, job: _Job) -> None:
        loop = asyncio.get_running_loop()
        nudging: asyncio.TimerHandle | None = None
        thread = 0  # the kernel's number of it, when it has begun

        def body() -> None:
            nonlocal thread
            thread = _thread.get_native_id()
            result, error = None, None
            try:
                result = job.work()
            except BaseException as caught:
                error = caught
            try:
                loop.call_soon_threadsafe(ended, result, error)
            except RuntimeError:
                pass  # the loop is closed: the driver is stopping

        def ended(result: Any, error: BaseException | None) -> None:
            if nudging is not None:
                nudging.cancel()
            self._running -= 1
            self._start_jobs()
            if job.outcome.done():
                return  # its caller has given up
            if error is not None:
                job.outcome.set_exception(error)
            else:
                job.outcome.set_result(result)

        def nudge(after: float) -> None:
            nonlocal nudging
            if thread:
                try:
                    # By its number, which the kernel checks; pthread_kill(3) of a thread that has ended is undefined.
                    syscalls.tgkill(os.getpid(), thread, NUDGE)
                except ProcessLookupError:
                    return  # it has ended just now
            nudging = loop.call_later(after, nudge, after)

        # threading.Thread.start() would wait until the thread has begun: on a busy machine it held the event loop for 4 ms
        # in one of a hundred calls, and for 40 ms at worst.
        _thread.start_new_thread(body, ())
        self._running += 1
        if self._nudge is not None:
            nudging = loop.call_later(self._nudge, nudge, self._nudge)
