"""Has one-shot processes do in containers what namespace.py describes, within limits. This is the driver's side."""

import asyncio
import os
from collections.abc import Callable, Sequence
from errno import ETIMEDOUT
from typing import Any

from driver.blocking.calls import Bound
from driver.blocking.processes import Starter
from driver.model import limits


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
        self, allocation: str, limit: float, function: Callable[..., Any], *arguments: object, fds: Sequence[int]
    ) -> tuple[Any, list[int]]:
        """Call a function of namespace.py that mounts, as call() does."""
        return await self._call(self._mounting, allocation, limit, function, arguments, fds)

    async def call(
        self, allocation: str, limit: float, function: Callable[..., Any], *arguments: object, fds: Sequence[int] = ()
    ) -> tuple[Any, list[int]]:
        """Call a function of namespace.py in a process of its own. Return its result, and the fds that it returns, now the caller's.

        Raises the OSError that it raises; Late if it takes longer than `limit` seconds, and then its process is killed; and NotAsked if
        there is no room for a process within that time, because others wait in the container's file systems.
        """
        return await self._call(self._asking, allocation, limit, function, arguments, fds)

    async def _call(
        self, bound: Bound, allocation: str, limit: float, function: Callable[..., Any], arguments: Sequence[object], fds: Sequence[int]
    ) -> tuple[Any, list[int]]:
        with await bound.acquire(allocation, limit) as process:
            answer = process.do(function, *arguments, fds=fds)
            await asyncio.wait([answer], timeout=limit)  # unlike wait_for(), this does not cancel the answer
            if not answer.done():
                raise Late(process.ended)
            return answer.result(), process.take_fds()
