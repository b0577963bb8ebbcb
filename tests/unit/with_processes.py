"""Coroutines that use driver.processes, each with an event loop of its own; the driver has one for all its life."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import cache
from typing import Any, TypeVar

from open_fds import open_fds

from driver.blocking.processes import Starter

T = TypeVar("T")

DEADLINE = 20.0  # seconds


@cache
def the_starter() -> Starter:
    """What starts the processes of all tests."""
    return Starter()


def run(main: Coroutine[object, object, T]) -> T:
    """The result of `main`, when all processes have ended that it has used: their ends would find no loop."""
    before = pidfds()

    async def session() -> T:
        try:
            return await asyncio.wait_for(main, DEADLINE)
        finally:
            async with asyncio.timeout(DEADLINE):
                while pidfds() > before:
                    await asyncio.sleep(0.001)

    return asyncio.run(session())


def pidfds() -> int:
    """How many processes this one knows that have not ended, with the starter."""
    return list(open_fds().values()).count("anon_inode:[pidfd]")


async def done_apart(starter: Starter, function: Callable[..., Any], *arguments: object) -> Any:
    """What `function(*arguments)` returns, done by a process."""
    with await starter.process() as process:
        return await process.do(function, *arguments)
