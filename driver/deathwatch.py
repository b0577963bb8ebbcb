"""Notices the end of the program that serves one FUSE mount, whoever holds its fd by then (driver/device.py)."""

import asyncio
from collections.abc import Awaitable, Callable

from driver.device import DeviceNodes
from driver.filewatch import FileWatch
from fusermount3_proxy import limits

# __fput() tells inotify before it drops the lock, a moment that lasts where the closing process has to wait for a processor.
# Each look comes at most twice as late as the lock was dropped. The kernel would wake who waits in flock(2); but a program
# that lives can open and close its own device node as often as it likes, and would keep a process waiting for each.
_STEPS = (0, *(0.001 * 2**number for number in range(10)))  # seconds


class DeathWatch:
    """Looks after one mount, from when it is there until stop()."""

    __slots__ = ("_files", "_has_ended", "_look_again", "_looking", "_node", "_nodes", "_watch_id")

    def __init__(self, node: str | None, nodes: DeviceNodes, files: FileWatch, has_ended: Callable[[], Awaitable[bool]]) -> None:
        """`node` is the mount's device node, None where that is not known. `has_ended` is called when nobody may hold the fd
        any more: it makes sure, does what is to be done then, and returns whether that is all.
        """
        self._node = node
        self._nodes = nodes
        self._files = files
        self._has_ended = has_ended
        self._watch_id: int | None = None
        self._looking: asyncio.Task[None] | None = None
        self._look_again: asyncio.Event | None = None  # from the first look on: most mounts never need it

    def begin(self) -> None:
        """Have the kernel tell of the last close. Raises OSError where it does not; then it is looked from time to time."""
        try:
            if self._node is not None:
                self._watch_id = self._files.on_last_close(self._nodes.path(self._node), self.look)
        finally:
            if self._watch_id is None:
                self.look()

    def is_held(self) -> bool | None:
        """Whether the program's fd is known to be open; None where there is no fd left to ask with."""
        try:
            return self._node is not None and self._nodes.is_held(self._node)
        except OSError:
            return None

    def look(self) -> None:
        """Look whether the program has died, now or soon."""
        if self._look_again is None:
            self._look_again = asyncio.Event()
        self._look_again.set()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look(self._look_again))

    def stop(self) -> None:
        """Look no more."""
        if self._watch_id is not None:
            self._files.remove(self._watch_id)
            self._watch_id = None
        if self._looking is not None and self._looking is not asyncio.current_task():
            self._looking.cancel()
        self._looking = None

    async def _look(self, look_again: asyncio.Event) -> None:
        """Until it has ended, or the kernel will tell. Where nobody would tell of it, again and again."""
        is_told = True
        while True:
            look_again.clear()
            is_held: bool | None = None
            for step in _STEPS if is_told else (0,):
                await asyncio.sleep(step)
                is_held = self.is_held()
                # The connection may end a moment after the lock: who asks then waits for that.
                if is_held is False and await self._has_ended():
                    return
            if is_held and self._watch_id is not None and not look_again.is_set():
                return  # it tells
            try:
                await asyncio.wait_for(look_again.wait(), limits.LOOK_AGAIN)
                is_told = True
            except TimeoutError:
                is_told = False
