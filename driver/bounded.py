"""Work that may block for ever, in threads that nobody has to wait for.

A thread that waits for an answer which a FUSE program has already read cannot be killed; only aborting the connection
frees it. So such work runs in a daemon thread, and its caller waits for a limited time.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from fusermount3_proxy import limits

T = TypeVar("T")

_running: set[threading.Thread] = set()


async def run(limit: float, work: Callable[[], T]) -> T:
    """The result of `work()`, or its exception; TimeoutError after `limit` seconds, when its thread goes on alone.

    `work` owns what it opens, since nobody takes a result that comes late. Raises TimeoutError at once where
    limits.THREADS_MAX threads are still at work: whoever made them hang must not take the rest.
    """
    if len(_running) >= limits.THREADS_MAX:
        raise TimeoutError(f"{len(_running)} earlier calls to file systems of pods still hang")
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def body() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as caught:
            error = caught
        _running.discard(threading.current_thread())
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:
            pass  # the driver is stopping

    thread = threading.Thread(target=body, daemon=True)
    _running.add(thread)
    thread.start()
    return await asyncio.wait_for(future, limit)
