"""Has one-shot processes do in containers what namespace.py describes, within limits. This is the driver's side."""

import asyncio
import os
from collections.abc import Callable, Sequence
from errno import ETIMEDOUT
from typing import Any

from driver.blocking.calls import Bound
from driver.blocking.processes import NotAsked, Process, Starter
from driver.blocking.threads import Threads
from driver.model import limits
from fusermount3_proxy.wire import fdpass


def keep_until_the_end(*fds: int) -> None:
    """Do nothing, in a process. Its fds are closed when it ends."""


class Late(TimeoutError):
    """Reports that a process takes too long. One that is to mount may do so yet: late() tells."""

    def __init__(self, process: Process, answer: "asyncio.Future[Any]") -> None:
        super().__init__(ETIMEDOUT, os.strerror(ETIMEDOUT))
        self._process, self._answer = process, answer

    async def late(self) -> tuple[Any, list[int]]:
        """Wait until the process of Visits.mount() has ended. Return its result, None where it has none, and the fds of that."""
        while not self._process.ended.done():
            self._process.give_up()  # root of the container's user namespace may have stopped it meanwhile
            await asyncio.wait([self._process.ended], timeout=limits.VISIT_WAIT)
        return (self._answer.result() if self._answer.exception() is None else None), self._process.take_fds()


class Visits:
    """Makes these calls. An allocation has a few processes for mounting, and as many for all else, so that neither keeps the other."""

    def __init__(self, starter: Starter) -> None:
        """`starter` is the one whose processes may enter namespaces."""
        self._starter = starter
        self._has_spare = False
        self._mounting = Bound(starter, limits.VISITS, limits.VISITS_OF_AN_ALLOCATION)
        self._asking = Bound(starter, limits.VISITS, limits.VISITS_OF_AN_ALLOCATION)

    def keep_spare(self) -> None:
        """Keep a process ready from now on. A node without fuse devices does without."""
        if not self._has_spare:
            self._has_spare = True
            self._starter.keep_spare()

    async def mount(
        self,
        allocation: str,
        limit: float,
        function: Callable[..., Any],
        *arguments: object,
        fds: Sequence[int],
        give_up: "asyncio.Future[None] | None" = None,
    ) -> tuple[Any, list[int]]:
        """Call a function of namespace.py that mounts, as call() does. It is late, too, when `give_up` is settled before it has ended.

        A process that waits for the lock of a mountpoint mounts when it gets that: not even SIGKILL keeps it from that. So a process that
        is late is ended only before that point, and its answer is waited for (Late.late()).
        """
        return await self._call(self._mounting, allocation, limit, function, arguments, fds, give_up)

    async def call(
        self, allocation: str, limit: float, function: Callable[..., Any], *arguments: object, fds: Sequence[int] = ()
    ) -> tuple[Any, list[int]]:
        """Call a function of namespace.py in a process of its own. Return its result, and the fds that it returns, now the caller's.

        Raises the OSError that it raises; Late if it takes longer than `limit` seconds, and then its process is killed; and NotAsked if
        there is no room for a process within that time, because others wait in the container's file systems.
        """
        return await self._call(self._asking, allocation, limit, function, arguments, fds)

    async def drop(self, allocation: str, fds: list[int]) -> None:
        """Close fds of a container's files: who closes the last one of a file can have to wait for its file system."""
        if not fds:
            return
        try:
            with await self._asking.acquire(allocation, limits.VISIT_WAIT) as process:
                answer = process.do(keep_until_the_end, fds=fds)
                fdpass.close_all(fds)  # the process has the last ones now, and closes them by ending
                await asyncio.wait([answer], timeout=limits.VISIT_WAIT)
                await asyncio.wait([process.ended], timeout=limits.PROBE_WAIT)
        except NotAsked:
            await Threads(1).run_to_end(lambda: fdpass.close_all(fds))

    async def _call(
        self,
        bound: Bound,
        allocation: str,
        limit: float,
        function: Callable[..., Any],
        arguments: Sequence[object],
        fds: Sequence[int],
        give_up: "asyncio.Future[None] | None" = None,
    ) -> tuple[Any, list[int]]:
        with await bound.acquire(allocation, limit) as process:
            answer = process.do(function, *arguments, fds=fds)
            first: list[asyncio.Future[Any]] = [answer] if give_up is None else [answer, give_up]
            # Unlike wait_for(), this does not cancel the answer.
            await asyncio.wait(first, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                if bound is self._mounting:
                    process.give_up()
                raise Late(process, answer)
            if bound is self._asking:
                # Until it has ended it has copies of the fds, which keep the file systems busy that they are on.
                await asyncio.wait([process.ended], timeout=limits.PROBE_WAIT)
            return answer.result(), process.take_fds()
