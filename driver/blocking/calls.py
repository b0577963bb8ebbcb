"""Makes calls that a FUSE program may never answer in processes, and limits the number of these processes.

Each process takes more than a mebibyte of memory, and a pod may have any number of volumes, so all calls for one pod share a
few processes. If a server that many pods use fails, the programs of all these pods hang, so the number of processes for all
calls of one kind is limited, too.
"""

import asyncio
import errno
import os
from collections import Counter, deque
from collections.abc import Callable
from typing import TypeVar

from driver.blocking.processes import NO_PROCESS, NotAsked, Process, Starter
from driver.model import limits

T = TypeVar("T", bound=bool | int | str | tuple[object, ...] | None)


class Bound:
    """Limits the number of processes for calls of one kind: for each pod, and for all pods together."""

    def __init__(self, starter: Starter, most: int, of_a_pod: int = limits.PROCESSES_OF_A_POD) -> None:
        self._of_a_pod = of_a_pod
        self._starter = starter
        self._most = most
        self._used: Counter[str] = Counter()  # the number of processes by pod
        self._starting = 0  # how many of these are not started yet
        self._waiting: deque[tuple[str, asyncio.Future[None]]] = deque()  # the callers that wait for room, with their pods

    async def acquire(self, pod: str, limit: float) -> Process:
        """Return a new process for a pod. It counts until it has ended.

        Raises NotAsked if there is no room within `limit` seconds, or if no process can be started, which may take
        limits.PROCESS_WAIT more.
        """
        await self._take_room(pod, limit)
        self._starting += 1
        try:
            process = await self._starter.process()
        except BaseException:
            self._give_room_back(pod)
            raise
        finally:
            self._starting -= 1
        process.ended.add_done_callback(lambda _: self._give_room_back(pod))
        return process

    async def _take_room(self, pod: str, limit: float) -> None:
        if self._has_room(pod):
            self._used[pod] += 1
            return
        waiter: tuple[str, asyncio.Future[None]] = (pod, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout(limit):
                await waiter[1]
        except BaseException as error:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            else:
                self._give_room_back(pod)
            if isinstance(error, TimeoutError):
                raise NotAsked(errno.EAGAIN, self._reason(pod)) from None
            raise

    def _give_room_back(self, pod: str) -> None:
        """Give the room of one process back, and wake the callers that have room now, the longest waiting ones first.

        These may be two: a pod without any process left may now use the second half (_has_room()).
        """
        self._used[pod] -= 1
        if not self._used[pod]:
            del self._used[pod]
        for waiter in list(self._waiting):
            if self._has_room(waiter[0]) and not waiter[1].done():
                self._waiting.remove(waiter)
                self._used[waiter[0]] += 1
                waiter[1].set_result(None)

    def _has_room(self, pod: str) -> bool:
        used = self._used.get(pod, 0)
        if used >= self._of_a_pod:
            return False
        # The second half is for pods that have no process. Otherwise a few pods could use all processes, and the programs of
        # other pods could not be asked.
        return self._used.total() < (self._most // 2 if used else self._most)

    def _reason(self, pod: str) -> str:
        if self._starting:
            return NO_PROCESS
        if self._used.get(pod, 0) >= self._of_a_pod:
            return "other programs of the same pod do not answer"
        return "too many FUSE programs of this node do not answer"


class Bounds:
    """Holds the bound of each kind of call, and the starter. The driver has one object of this class.

    `checks` and `checks_without_lock` are separate. If a server that many pods use fails, the programs that hang fill all other
    bounds, but `checks` stays free: most of the programs that it asks about have died, and the kernel answers at once.
    """

    def __init__(self, starter: Starter) -> None:
        self.starter = starter  # for mount(2) in a process, which needs no bound: each volume has one mount at most
        self.questions = Bound(starter, limits.PROCESSES_FOR_USAGE)  # how full a file system is
        self.rebinds = Bound(starter, limits.PROCESSES_FOR_REBINDING)  # rebinding subPath mounts
        self.checks = Bound(starter, limits.PROCESSES_FOR_CHECKS)  # whether a program has died after its lock was released
        self.checks_without_lock = Bound(starter, limits.PROCESSES_FOR_CHECKS_WITHOUT_LOCK)


class BoundedCall:
    """Makes calls of one kind for one volume, one at a time. So a program that never answers occupies at most one process."""

    __slots__ = ("_bound", "_running")  # each volume has some

    def __init__(self, bound: Bound) -> None:
        """Make calls within `bound`, which all calls of the same kind share."""
        self._bound = bound
        self._running: asyncio.Future[None] | None = None  # settled when the process of the present call has ended

    async def call(self, pod: str, limit: float, function: Callable[..., T], *arguments: object) -> T:
        """Call `function(*arguments)` in a process of its own. Returns its result, or raises the OSError that it raised.

        `pod` is the pod whose share of processes is used, and `limit` is in seconds. Raises TimeoutError if the process of a
        former call has not ended within the limit, or if this call's process does not answer within the limit after it was
        asked. Raises NotAsked if other calls occupy all processes for the whole limit, if no process can be started (which may
        take limits.PROCESS_WAIT more), or if the process ended without a result.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + limit
        while self._running is not None:
            await asyncio.wait([self._running], timeout=end - loop.time())
            if self._running is not None and loop.time() >= end:
                raise _timed_out()
        self._running = loop.create_future()
        try:
            process = await self._bound.acquire(pod, end - loop.time())
        except BaseException:
            self._end()
            raise
        process.ended.add_done_callback(lambda _: self._end())
        with process:
            answer = process.do(function, *arguments)
            await asyncio.wait([answer], timeout=limit)  # unlike wait_for(), this does not cancel the answer
            if not answer.done():
                raise _timed_out()
            return answer.result()

    def _end(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.set_result(None)


def _timed_out() -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
