"""Coroutines that use driver.workerpool, each with an event loop of its own; the driver has one for all its life."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from driver import workerpool

T = TypeVar("T")

DEADLINE = 20.0  # seconds


def run(main: Coroutine[object, object, T]) -> T:
    """The result of `main`. The starter is left with nothing to do, since its answer would find no loop."""

    async def session() -> T:
        try:
            return await asyncio.wait_for(main, DEADLINE)
        finally:
            while workerpool._known_starter()._is_making:
                await asyncio.sleep(0.001)

    return asyncio.run(session())


async def done_apart(function: Callable[..., Any], *arguments: object) -> Any:
    """What `function(*arguments)` returns, done by a worker."""
    worker = await workerpool.worker()
    try:
        return await worker.do(function, *arguments)
    finally:
        worker.release()
