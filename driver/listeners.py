"""Hears of whoever connects to a volume: one epoll instance for all listening sockets, no task, no handle for each.

The event loop watches that instance. Of its own it keeps half a kibibyte for each fd, and every volume has two.
"""

import asyncio
import select
from collections.abc import Callable

from driver.internalerror import report_internal_error

_MOMENT = 0.005  # seconds


class Listeners:
    """Calls back, with the fd, as long as connections wait at it: once a turn of the event loop, so that all have their turn."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._is_quiet = False
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._call)

    def add(self, fd: int, callback: Callable[[int], None]) -> None:
        """Watch a listening socket. Raises OSError."""
        self._epoll.register(fd, select.EPOLLIN)
        self._callbacks[fd] = callback

    def remove(self, fd: int) -> None:
        """Stop watching it, before it is closed; nothing where it is not watched."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    async def quiet(self, limit: float) -> None:
        """Wait until nobody connects for a moment, or for `limit` seconds."""
        end = asyncio.get_running_loop().time() + limit
        self._is_quiet = False
        while not self._is_quiet and asyncio.get_running_loop().time() < end:
            self._is_quiet = True
            await asyncio.sleep(_MOMENT)

    def close(self) -> None:
        """Stop watching everything."""
        asyncio.get_running_loop().remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._callbacks.clear()

    def _call(self) -> None:
        self._is_quiet = False
        for fd, _ in self._epoll.poll(0):
            callback = self._callbacks.get(fd)
            if callback is None:
                continue  # one before it has removed it
            try:
                callback(fd)
            except Exception:  # a mistake in one volume's callback must not stop the other volumes
                report_internal_error("calling back for a listening socket")
