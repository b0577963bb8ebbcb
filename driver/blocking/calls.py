"""Bounds the questions that a pod's FUSE program may never answer, each of which is asked in a process of its own.

Each process has memory of its own, more than a mebibyte of it, and a pod may have any number of volumes: so the calls for
one pod's share a few. Where a server that many pods use is gone, all of them hang: so the calls of one kind have a number
of processes between them, too.
"""

import asyncio
import errno
import os
from collections import Counter, deque
from collections.abc import Callable
from typing import TypeVar

from driver.blocking.processes import NO_PROCESS, NotAsked, Process, Starter
from driver.model import limits

T = TypeVar("T", bound=bool | int | tuple[int, ...] | None)


class Bound:
    """Limits how many processes the calls of one kind have: those of a pod, and those of all."""

    def __init__(self, starter: Starter, most: int) -> None:
        self._starter = starter
        self._most = most
        self._taken: Counter[str] = Counter()  # by pods that have any
        self._unmade = 0  # those of them that wait for their process
        self._waiting: deque[tuple[str, asyncio.Future[None]]] = deque()  # those for whom there is no room

    async def acquire(self, pod: str, limit: float) -> Process:
        """Start a process, which counts until it has ended.

        Raises NotAsked where there is no room for `limit` seconds, or where none can be made, which may take limits.PROCESS_WAIT.
        """
        await self._take(pod, limit)
        self._unmade += 1
        try:
            process = await self._starter.process()
        except BaseException:
            self._give_back(pod)
            raise
        finally:
            self._unmade -= 1
        process.ended.add_done_callback(lambda _: self._give_back(pod))
        return process

    async def _take(self, pod: str, limit: float) -> None:
        if self._has_room(pod):
            self._taken[pod] += 1
            return
        one: tuple[str, asyncio.Future[None]] = (pod, asyncio.get_running_loop().create_future())
        self._waiting.append(one)
        try:
            async with asyncio.timeout(limit):
                await one[1]
        except BaseException as error:
            if one in self._waiting:
                self._waiting.remove(one)
            else:
                self._give_back(pod)
            if isinstance(error, TimeoutError):
                raise NotAsked(errno.EAGAIN, self._reason(pod)) from None
            raise

    def _give_back(self, pod: str) -> None:
        """Give one back. Those who have waited longest and for whom there is room now get theirs.

        That may be two: the pod that has none now may have one of the second half.
        """
        self._taken[pod] -= 1
        if not self._taken[pod]:
            del self._taken[pod]
        for one in list(self._waiting):
            if self._has_room(one[0]) and not one[1].done():
                self._waiting.remove(one)
                self._taken[one[0]] += 1
                one[1].set_result(None)

    def _has_room(self, pod: str) -> bool:
        its = self._taken.get(pod, 0)
        if its >= limits.PROCESSES_OF_A_POD:
            return False
        # The second half is for pods that have none: else a few pods could have all of them, and nobody else's were asked.
        return self._taken.total() < (self._most // 2 if its else self._most)

    def _reason(self, pod: str) -> str:
        if self._unmade:
            return NO_PROCESS
        if self._taken.get(pod, 0) >= limits.PROCESSES_OF_A_POD:
            return "other programs of the same pod do not answer"
        return "too many FUSE programs of this node do not answer"


class Bounds:
    """Holds the bound of each kind of call. The driver has one of these.

    Where a server that many pods use is gone, all kinds are full but `checks`: what that asks about has mostly died, and answers.
    """

    def __init__(self, starter: Starter) -> None:
        self.starter = starter  # for a mount, of which each volume has one at most
        self.questions = Bound(starter, limits.PROCESSES_FOR_USAGE)  # how full a file system is
        self.rebinds = Bound(starter, limits.PROCESSES_FOR_REBINDING)  # of subPath binds
        self.checks = Bound(starter, limits.PROCESSES_FOR_CHECKS)  # whether a program has died whose lock is gone
        self.checks_without_lock = Bound(starter, limits.PROCESSES_FOR_CHECKS_WITHOUT_LOCK)


class BoundedCall:
    """Makes calls of one kind for one volume, one at a time: what its pod's program never answers keeps one process at most."""

    __slots__ = ("_at_work", "_bound")  # each volume has some

    def __init__(self, bound: Bound) -> None:
        """`bound` is that of all calls of the kind."""
        self._bound = bound
        self._at_work: asyncio.Future[None] | None = None

    async def call(self, pod: str, limit: float, function: Callable[..., T], *arguments: object) -> T:
        """Return the result of `function(*arguments)`, done in a process of its own, or raise the OSError that it raised.

        Raises TimeoutError where a former call's process has not ended for `limit` seconds from now, or this one's has not
        answered for as long from the start of its work. Raises NotAsked where others keep all processes for `limit` seconds
        from now; where none can be made, which may take limits.PROCESS_WAIT more; and where it has ended without a result.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + limit
        while self._at_work is not None:
            await asyncio.wait([self._at_work], timeout=end - loop.time())
            if self._at_work is not None and loop.time() >= end:
                raise _timed_out()
        self._at_work = loop.create_future()
        try:
            process = await self._bound.acquire(pod, end - loop.time())
        except BaseException:
            self._end()
            raise
        process.ended.add_done_callback(lambda _: self._end())
        with process:
            answer = process.do(function, *arguments)
            await asyncio.wait([answer], timeout=limit)  # which does not cancel it
            if not answer.done():
                raise _timed_out()
            return answer.result()

    def _end(self) -> None:
        at_work, self._at_work = self._at_work, None
        if at_work is not None:
            at_work.set_result(None)


def _timed_out() -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
