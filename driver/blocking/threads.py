"""Runs work that may block for ever in daemon threads, for which nobody has to wait.

A thread cannot be killed while it waits for a FUSE program to answer a request that the program has read; only aborting the
FUSE connection ends the wait. So such work runs in a daemon thread, and its caller waits for a limited time. Each kind of work
of each volume has a few threads of its own, so a pod can block only its own threads.
"""

import _thread
import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from errno import EAGAIN
from functools import partial
from signal import SIGURG
from typing import Any, TypeVar

from driver.linux import syscalls

T = TypeVar("T")

NUDGE = SIGURG  # the driver handles it with a function that does nothing: an ignored signal interrupts no system call

_RETRY = 1.0  # seconds until the next attempt to start a thread, if the last one failed


@dataclass(frozen=True, eq=False)
class _Job:
    work: Callable[[], Any]
    outcome: "asyncio.Future[Any]"
    must_run: bool  # run it even if its caller has given up, and try again if no thread can be started
    discard: Callable[[Any], object] | None = None  # what to do with a result for which nobody waits any more


@dataclass(eq=False)
class _Running:
    thread: int = 0  # the kernel's id of the thread, once it runs
    nudging: asyncio.TimerHandle | None = None


class Threads:
    """Runs each job in a daemon thread of its own, and a limited number of jobs at the same time."""

    def __init__(self, most: int, nudge: float | None = None) -> None:
        """Run at most `most` jobs at the same time, and send NUDGE to a thread each time it has worked for `nudge` more seconds.

        The signal ends the close(2) of a lingering TCP socket, which could last for ever. Leave `nudge` out for work that waits
        for a FUSE program: the signal would not end it, and the kernel would send an interrupt request to the program.
        """
        self._most = most
        self._nudge = nudge
        self._jobs: list[_Job] = []  # those that wait for a thread
        self._running = 0
        self._retry: asyncio.TimerHandle | None = None

    @property
    def is_busy(self) -> bool:
        """Return whether a job is running or waits for a thread."""
        return self._running > 0 or bool(self._jobs)

    async def run(self, limit: float, work: Callable[[], T], discard: Callable[[T], object] | None = None) -> T:
        """Return the result of `work()`, or raise its exception. Raises TimeoutError after `limit` seconds.

        The limit includes the wait for a free thread. Work that has not begun by then does not begin. Work that has begun goes
        on. Its late result is dropped after `discard(result)`, which runs in a thread, too, and raises nothing; without `discard`,
        `work` itself must close what it opens. Raises OSError if no thread can be started.
        """
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        job = _Job(work, outcome, must_run=False, discard=discard)
        self._submit(job)
        try:
            async with asyncio.timeout(limit):
                return await outcome
        finally:
            if job in self._jobs:
                self._jobs.remove(job)

    def run_to_end(self, work: Callable[[], T]) -> "asyncio.Future[T]":
        """Run `work()` as soon as a thread is free, even if nobody waits for it. Returns a future for its result.

        The job keeps what `work` holds until it has run. A socket that were dropped instead would be closed by the garbage
        collector, in whichever thread that runs in, and could block that thread.
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
                except RuntimeError as error:  # the limit of tasks of the node or the container is reached
                    if job.must_run:
                        self._retry_later()
                        return
                    job.outcome.set_exception(OSError(EAGAIN, f"cannot start a thread: {error}"))
            del self._jobs[0]

    def _retry_later(self) -> None:
        def retry() -> None:
            self._retry = None
            self._start_jobs()

        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(_RETRY, retry)

    def _start(self, job: _Job) -> None:
        loop = asyncio.get_running_loop()
        running = _Running()

        def body() -> None:
            running.thread = _thread.get_native_id()
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
            if running.nudging is not None:
                running.nudging.cancel()
            self._running -= 1
            self._start_jobs()
            if job.outcome.done():  # its caller has given up
                if job.discard is not None and error is None:
                    self.run_to_end(partial(job.discard, result))
                return
            if error is not None:
                job.outcome.set_exception(error)
            else:
                job.outcome.set_result(result)

        # threading.Thread.start() waits until the thread runs. On a busy machine that held the event loop for 4 ms in one of a
        # hundred calls, and for 40 ms at worst.
        _thread.start_new_thread(body, ())
        self._running += 1
        self._nudge_later(running)

    def _nudge_later(self, running: _Running) -> None:
        if self._nudge is not None:
            running.nudging = asyncio.get_running_loop().call_later(self._nudge, self._nudge_thread, running)

    def _nudge_thread(self, running: _Running) -> None:
        running.nudging = None
        if running.thread:
            try:
                # The kernel checks the id. The behaviour of pthread_kill(3) is undefined if the thread has ended.
                syscalls.tgkill(os.getpid(), running.thread, NUDGE)
            except ProcessLookupError:
                return
        self._nudge_later(running)
