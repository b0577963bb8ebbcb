"""Works in many directories that pods can lock, one after another in one thread.

The driver's start does this for all restored volumes: with a thread for each, the start with 1,000 volumes would take 0.1 s longer.
Where a directory is locked, the thread hangs there, and another one goes on with the other directories.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from driver.blocking.directories import Directories
from driver.blocking.threads import Threads
from driver.model import limits

_PATIENCE = 0.02  # seconds in one directory after which another thread goes on; the work there usually takes 0.1 ms


@dataclass(frozen=True, eq=False)
class Work:
    """Some work in a directory. All functions raise nothing."""

    path: str  # of the directory
    do: Callable[[], Any]  # runs in the thread; returns its error, too
    end: Callable[[Any], object]  # runs in the event loop, with what do() has returned, or TimeoutError where it takes too long
    discard: Callable[[Any], object]  # runs in the thread, with what do() has returned too late


class _Worker:
    """One thread, which works in one directory after another."""

    def __init__(self, waiting: "deque[list[Work]]") -> None:
        """Begin with `waiting`, the work in each directory. Other workers take theirs from it, too."""
        self.now: list[Work] = []  # the work in the directory where the thread is
        self.threads = Threads(1)
        self._waiting = waiting
        self._done: deque[tuple[Work, Any]] = deque()
        self._ended_works: set[Work] = set()
        self.ended = self.threads.run_to_end(self._run)

    def _run(self) -> None:
        while self._waiting:
            try:
                self.now = self._waiting.popleft()
            except IndexError:  # another thread has taken the last
                return
            for work in self.now:
                self._done.append((work, work.do()))

    def end(self) -> None:
        """End the work that the thread has done."""
        while self._done:
            work, result = self._done.popleft()
            self._ended_works.add(work)
            work.end(result)

    def give_up(self, directories: Directories) -> None:
        """Leave the thread in its directory: who works there next waits for it."""
        directories.put(self.now[0].path, self.threads)
        for work in self.now:
            if work not in self._ended_works:
                work.end(TimeoutError())
        self.ended.add_done_callback(lambda ended: self.threads.run_to_end(self._discard))

    def _discard(self) -> None:
        while self._done:
            work, result = self._done.popleft()
            work.discard(result)


async def do_in_turn(works: Iterable[Work], directories: Directories) -> None:
    """Do all work. A thread that hangs becomes the thread of its directory.

    Takes _PATIENCE for each directory in which a thread hangs, and limits.RESTORE_WAIT once.
    """
    by_path: dict[str, list[Work]] = {}
    for work in works:
        by_path.setdefault(work.path, []).append(work)
    waiting = deque(by_path.values())
    workers: list[_Worker] = []
    while waiting:
        worker = _Worker(waiting)
        workers.append(worker)
        left = -1
        while not worker.ended.done() and not (worker.now and left == len(waiting)):
            left = len(waiting)
            await asyncio.wait({worker.ended}, timeout=_PATIENCE)
            worker.end()  # what is done need not wait for the rest
    if workers:
        await asyncio.wait({worker.ended for worker in workers}, timeout=limits.RESTORE_WAIT)
    for worker in workers:
        worker.end()
        if not worker.ended.done():
            worker.give_up(directories)
