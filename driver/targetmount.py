"""What is mounted at one target: the placeholder, and on it the FUSE mount that comes and goes.

waiting ── mount ──> mounted ── unmount, or the program's death ──> waiting
                        └── the program is gone, its mount is not yet ──> dead ──> waiting
"""

import asyncio
import os
from collections.abc import Callable
from enum import Enum

from driver import fusemount
from driver.bounded import Threads
from driver.closewatch import CloseWatch
from driver.fusemount import FuseMount, Workspace
from driver.logs import VolumeLog
from driver.policy import KernelMount
from fusermount3_proxy import limits

# __fput() tells inotify before it drops the lock, so the first look may come too early.
_DEATH_LOOKS = (0, 0.001, 0.01, 0.1, 0.5)


class State(Enum):
    """What an application sees at the target."""

    WAITING = "waiting"  # the placeholder
    MOUNTED = "mounted"  # the FUSE file system
    DEAD = "dead"  # ENOTCONN, for as long as the driver needs to notice and take it off


class TargetMount:
    """The mount of one target. Whoever changes it holds `lock`."""

    def __init__(self, target: str, workspace: Workspace, watch: CloseWatch, log: VolumeLog, on_change: Callable[[], None]) -> None:
        """`on_change` is called when `record` has changed."""
        self.lock = asyncio.Lock()
        self.record: FuseMount | None = None
        self.placeholder: str | None = None  # its device number, where it is known
        self.state = State.WAITING
        self.left: bytes | None = None  # the mountpoint of a program that has gone, while nobody has unmounted it
        self._target = target
        self._workspace = workspace
        self._watch = watch
        self._log = log
        self._on_change = on_change
        self._watch_id: int | None = None
        # A program that does not answer holds one of each for ever, and so each has one.
        self._prober = Threads(1)
        self._remover = Threads(1)
        self._reaper: asyncio.Task[None] | None = None
        self._look_again = asyncio.Event()

    def mount(self, mountpoint: bytes, kernel: KernelMount) -> int:
        """Mount FUSE on the placeholder. Returns the fd to serve it by. Raises OSError."""
        record, fd = fusemount.mount_fuse(self._workspace.nodes, self._target, mountpoint, kernel)
        self.take_over(record)
        return fd

    def take_over(self, record: FuseMount) -> None:
        """Look after a FUSE mount that is at the target."""
        self.record = record
        self.state = State.MOUNTED
        self.left = None
        self._reaper = None
        if record.node is not None:
            try:
                self._watch_id = self._watch.add(self._workspace.nodes.path(record.node), self.look)
            except OSError as error:
                self._log.error(f"the end of the FUSE program will be noticed late: {error}")
        if self._watch_id is None:
            self.look()
        self._on_change()

    async def is_dead(self) -> bool:
        """Whether nobody serves the mount any more.

        The lock of the device node says that somebody does. A hostile program could unlock its own, and a cloned fd has
        no lock, so its absence is confirmed by the kernel.
        """
        record = self.record
        if record is None or self._is_held(record):
            return False
        try:
            return await self._prober.run(limits.PROBE_WAIT, lambda: fusemount.is_gone(self._target, record))
        except OSError:
            return False

    async def take_off(self, plain: bool) -> None:
        """Unmount the FUSE mount, if there is one; `plain` as for fusemount.take_off(). Raises OSError, TimeoutError."""
        record = self.record
        if record is None:
            return
        await self._remover.run(limits.TAKE_OFF_WAIT, lambda: fusemount.take_off(self._workspace, self._target, record, plain))
        self._forget()

    async def remove_target(self) -> None:
        """Unmount all, and remove the target's directory. Raises OSError, TimeoutError."""
        record = self.record
        if record is None and fusemount.device_at(self._target) == self.placeholder:
            # Nothing of a pod's: it cannot block, and a thread would cost more than all of it.
            fusemount.remove_target(self._workspace, self._target, None)
            return
        await self._remover.run(limits.TAKE_OFF_WAIT, lambda: fusemount.remove_target(self._workspace, self._target, record))
        self._forget()

    def look(self) -> None:
        """Look whether the program has died, now or soon, and take its mount off then."""
        record = self.record
        if record is None:
            return
        self._look_again.set()
        if self._reaper is None or self._reaper.done():
            self._reaper = asyncio.get_running_loop().create_task(self._reap(record))

    def look_unless_held(self) -> None:
        """The same, where nobody is known to hold the program's fd."""
        if self.record is not None and not self._is_held(self.record):
            self.look()

    def release(self) -> None:
        """The driver stops: look no more, and leave everything as it is."""
        if self._watch_id is not None:
            self._watch.remove(self._watch_id)
            self._watch_id = None
        if self._reaper is not None and self._reaper is not asyncio.current_task():
            self._reaper.cancel()
        self._reaper = None

    def _forget(self) -> None:
        self.release()
        if self.record is not None and self.record.node is not None:
            self._workspace.nodes.remove(self.record.node)
        self.record = None
        self.state = State.WAITING
        self._on_change()

    def _is_held(self, record: FuseMount) -> bool:
        try:
            return record.node is not None and self._workspace.nodes.is_held(record.node)
        except OSError:  # no fd left to ask with
            return True

    async def _reap(self, record: FuseMount) -> None:
        """Take `record` off when its program has died. Where nobody would tell of that, look again and again."""
        while True:
            self._look_again.clear()
            for delay in _DEATH_LOOKS:
                await asyncio.sleep(delay)
                if not self._is_held(record):
                    break
            else:
                if self._watch_id is not None:
                    return  # it tells
            async with self.lock:
                if self.record is not record or await self._take_off_if_dead():
                    return
            try:
                await asyncio.wait_for(self._look_again.wait(), limits.LOOK_AGAIN)
            except TimeoutError:
                pass

    async def _take_off_if_dead(self) -> bool:
        record = self.record
        if record is None or not await self.is_dead():
            return False
        self.state = State.DEAD
        try:
            await self.take_off(plain=False)
        except OSError as error:
            self._log.error(f"the FUSE program has gone, and its mount at {os.fspath(self._target)} cannot be taken off: {error}")
            return False
        self.left = record.mountpoint
        self._log.info("the FUSE program has gone; its mount is taken off, and another one can mount")
        return True
