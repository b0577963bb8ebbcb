"""Notices the end of the program that serves one FUSE mount, whichever process holds its fd by then (device.py)."""

import asyncio
from collections.abc import Awaitable, Callable
from weakref import WeakMethod

from driver.model import limits
from driver.mounts.kernel import DeviceKernel

# __fput() tells inotify before it drops the lock, a moment that lasts where the closing process has to wait for a processor.
# The pauses double, so a drop after t seconds is noticed before 2 t. A process that waits in flock(2) would be woken at once, but
# a program that lives can open and close its device node as often as it likes, and each time another process would have to wait.
_STEPS = tuple(0.001 * 2**number for number in range(10))  # seconds


class DeathWatch:
    """Watches one mount for the end of its program, until stop() is called."""

    def __init__(self, device: str | None, kernel: DeviceKernel, has_ended: Callable[[], Awaitable[bool]]) -> None:
        """Watch the mount whose device node is `device`; None where that is not known.

        `has_ended`, a method, is called when no process seems to hold the fd any more. It makes sure, detaches the mount, and
        returns whether the mount has ended. Its object owns this one, and is not kept alive by it.
        """
        self._device = device
        self._kernel = kernel
        self._has_ended = WeakMethod(has_ended)  # otherwise only the garbage collector could free the two
        self._watch_id: int | None = None
        self._checking: asyncio.Task[None] | None = None
        self._check_again = asyncio.Event()

    def begin(self) -> None:
        """Have the kernel tell of the last close. Raises OSError where it cannot; then the mount is checked from time to time."""
        try:
            if self._device is not None:
                self._watch_id = self._kernel.watch_device(self._device, self.check)
        finally:
            if self._watch_id is None:
                self.check()

    def is_held(self) -> bool | None:
        """Return whether the program's fd is open; None where this process has no fd left to find out with."""
        try:
            return self._device is not None and self._kernel.is_device_held(self._device)
        except OSError:
            return None

    def check(self) -> None:
        """Check in the background whether the program has died."""
        self._check_again.set()
        if self._checking is None or self._checking.done():
            self._checking = asyncio.get_running_loop().create_task(self._check())

    def stop(self) -> None:
        """Stop watching."""
        if self._watch_id is not None:
            self._kernel.unwatch(self._watch_id)
            self._watch_id = None
        if self._checking is not None and self._checking is not asyncio.current_task():
            self._checking.cancel()
        self._checking = None

    async def _check(self) -> None:
        """Check until the program has ended, or the kernel will tell of it; where nobody will, check again and again."""
        steps = iter(_STEPS)
        while True:
            self._check_again.clear()
            is_held = self.is_held()
            # The connection may end a moment after the lock: who asks then waits for that.
            if is_held is False and ((has_ended := self._has_ended()) is None or await has_ended()):
                return
            step = next(steps, None)
            if step is not None and not is_held:
                # Wake-ups are ignored here: each check needs a process, and a program that lives without its lock could cause many.
                await asyncio.sleep(step)
                continue
            if step is None and is_held and self._watch_id is not None and not self._check_again.is_set():
                return
            try:
                await asyncio.wait_for(self._check_again.wait(), step or limits.CHECK_INTERVAL)
                steps = iter(_STEPS)
            except TimeoutError:
                pass
