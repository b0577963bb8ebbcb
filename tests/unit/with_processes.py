"""Runs coroutines that use driver.blocking.processes, each in an event loop of its own."""

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
    """Return the starter of the processes of all tests."""
    return Starter()


def run(main: Coroutine[object, object, T]) -> T:
    """Return the result of `main` when all its processes have ended, because their ends need the event loop."""
    the_starter()  # it stays
    before = pidfds()

    async def session() -> T:
        try:
            async with asyncio.timeout(DEADLINE):
                return await main
        finally:
            async with asyncio.timeout(DEADLINE):
                while pidfds() > before:
                    await asyncio.sleep(0.001)

    return asyncio.run(session())


def pidfds() -> int:
    """Return how many pidfds this process has: one for the starter, and one for each process that has not ended."""
    return list(open_fds().values()).count("anon_inode:[pidfd]")


async def done_apart(starter: Starter, function: Callable[..., Any], *arguments: object) -> Any:
    """Return the result of `function(*arguments)`, called in a process of its own."""
    with await starter.process() as process:
        return await process.do(function, *arguments)


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop run until a condition is true."""
    deadline = asyncio.get_running_loop().time() + DEADLINE
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.001)
