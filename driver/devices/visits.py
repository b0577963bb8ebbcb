"""Has one-shot processes do in containers what namespace.py describes, within limits. This is the driver's side."""

import asyncio
import os
from collections.abc import Callable, Sequence
from errno import ETIMEDOUT
from typing import Any

from driver.blocking.calls import Bound
from driver.blocking.processes import NotAsked, Starter
from driver.blocking.threads import Threads
from driver.model import limits
from fusermount3_proxy.wire import fdpass


def keep_until_the_end(*fds: int) -> None:
    """Do nothing, in a process. Its fds are closed when it ends."""


class Late(TimeoutError):
    """Reports that a process took too long and was killed. Until `ended` is settled, it may do its work after all."""

    def __init__(self, ended: "asyncio.Future[None]") -> None:
        super().__init__(ETIMEDOUT, os.strerror(ETIMEDOUT))
        self.ended = ended


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
        """Call a function of namespace.py that mounts, as call() does. It is late, too, when `give_up` is settled before it has ended."""
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
        try:
            with await self._asking.acquire(allocation, limits.VISIT_WAIT) as process:
                answer = process.do(keep_until_the_end, fds=fds)
                fdpass.close_all(fds)  # the process has the last ones now, and closes them by ending
                await asyncio.wait([answer], timeout=limits.VISIT_WAIT)
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
                raise Late(process.ended)
            return answer.result(), process.take_fds()
