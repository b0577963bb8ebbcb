"""What is mounted at one target: the placeholder, and on it the FUSE mount that comes and goes.

waiting ── mount ──> mounted ── unmount, or the program's death ──> waiting
                        └── the program is gone, its mount is not yet ──> dead ──> waiting
"""

import asyncio
import os
from collections.abc import Callable
from enum import Enum

from driver import fusemount, subpaths, takeoff
from driver.apart import Busy, Caller
from driver.bounded import Threads
from driver.closewatch import CloseWatch
from driver.device import Opened
from driver.fusemount import FuseMount
from driver.history import History
from driver.logs import VolumeLog
from driver.metrics import End, Operation, Timer
from driver.mountprocess import MountProcess
from driver.paths import VolumePaths
from driver.policy import KernelMount
from driver.takeoff import Workspace
from fusermount3_proxy import limits

# __fput() tells inotify before it drops the lock, and drops the lock before it ends the connection: a look may come too early.
_DEATH_LOOKS = (0, 0.001, 0.01, 0.1, 0.5)


class State(Enum):
    """What an application sees at the target."""

    WAITING = "waiting"  # the placeholder
    MOUNTED = "mounted"  # the FUSE file system
    DEAD = "dead"  # ENOTCONN, for as long as the driver needs to notice and take it off


class TargetMount:
    """The mount of one target. Whoever changes it holds `lock`."""

    def __init__(
        self, paths: VolumePaths, workspace: Workspace, watch: CloseWatch, log: VolumeLog, history: History, on_change: Callable[[], None]
    ) -> None:
        """`on_change` is called when `record` has changed."""
        self.lock = asyncio.Lock()
        self.record: FuseMount | None = None
        self.placeholder: str | None = None  # its device number, where it is known
        self.state = State.WAITING
        self.process: MountProcess | None = None  # mounts for a program that answers INIT first (sync-init)
        self._paths = paths
        self._target = paths.target_path
        self.left: bytes | None = None  # the mountpoint of a program that has gone, while nobody has unmounted it
        self._workspace = workspace
        self._watch = watch
        self._log = log
        self._history = history
        self._on_change = on_change
        self._watch_id: int | None = None
        # A program that does not answer holds one of each for ever, and so each has one.
        self._prober = Caller()
        self._remover = Threads(1)
        self._renewer = Caller()
        self._renewing: asyncio.Task[None] | None = None
        self._has_old_sub_paths = False
        self._is_removed = False
        self._reaper: asyncio.Task[None] | None = None
        self._look_again: asyncio.Event | None = None  # from the first look on: most volumes never need it

    def mount(self, mountpoint: bytes, kernel: KernelMount) -> int:
        """Mount FUSE on the placeholder. Returns the fd to serve it by. Raises OSError."""
        record, fd = fusemount.mount_fuse(self._workspace.nodes, self._target, mountpoint, kernel)
        self._history.mounted()
        self.take_over(record)
        return fd

    def put_right(self) -> bool:
        """Where somebody has unmounted on the node what was here, mount the placeholder again, and know of the FUSE mount.

        Returns whether all is right then. Needs the lock. Asks no FUSE program, and reads the mount table only where
        something differs. Raises OSError.
        """
        if self.process is not None or self.is_taking_off:
            return False  # what is there changes just now
        record = self.record
        if fusemount.device_at(self._target) == (self.placeholder if record is None else record.device):
            return True
        stack = fusemount.mounts_at(self._target)
        if record is not None:
            if any(mount.device == record.device for mount in stack):
                return False  # something is mounted over it
            self._forget(End.ASKED)
        is_bare = not stack
        if is_bare:
            self.placeholder = fusemount.mount_placeholder(self._target)
        elif fusemount.is_placeholder(stack[-1]):
            self.placeholder = stack[-1].device  # not known yet, where a former driver had mounted it
        if is_bare or record is not None:
            text = "it was unmounted on the node: containers that ran then may not see what is mounted now until they restart"
            self._log.warning(text)
            self._history.trouble("unmounted", text)
        return is_bare or fusemount.is_placeholder(stack[-1])

    def open(self) -> Opened:
        """A /dev/fuse for mount_opened() or discard(). Raises OSError."""
        return self._workspace.nodes.open()

    def discard(self, opened: Opened) -> None:
        """Close what open() has opened."""
        self._workspace.nodes.discard(opened)

    def mount_opened(self, opened: Opened, mountpoint: bytes, kernel: KernelMount) -> MountProcess:
        """Mount on the placeholder, and take as long as the program takes to answer INIT. Returns the process that does.

        When that ends the mount is known here, or `opened` is discarded. Needs the lock at the start alone: as long as
        `process` is there nothing else mounts. Raises OSError where the target is gone, and then `opened` is the caller's still.
        """
        before = fusemount.device_at(self._target)

        def end() -> None:
            self.process = None
            if self._is_removed:  # what is at the target now is of another volume
                self.discard(opened)
                return
            # Told by what is there, since a process can be killed when it has just mounted.
            try:
                record = fusemount.record_of(opened, self._target, before, mountpoint, kernel)
            except OSError:
                record = None  # nothing is mounted, or the target is gone
            if record is None:
                self.discard(opened)
                return
            self._history.mounted()
            self.take_over(record)
            os.close(opened.fd)  # after the watch was set, which hears of it where it is the last one

        self.process = MountProcess(opened.fd, self._target, kernel, end)
        return self.process

    async def end_process(self, process: MountProcess) -> None:
        """Kill a process of mount_opened(), and wait for its end. Raises TimeoutError."""
        process.kill()
        # A process that gave no sign for so long sleeps where no signal reaches it; it is looked after when it ends.
        await asyncio.wait_for(asyncio.shield(process.ended), limits.PROBE_WAIT)

    def take_over(self, record: FuseMount) -> None:
        """Look after a FUSE mount that is at the target."""
        self.record = record
        self.state = State.MOUNTED
        self.left = None
        self._reaper = None
        self._history.no_trouble("watch", "subPath")
        self._has_old_sub_paths = True  # for all that is known here
        if record.node is not None:
            try:
                self._watch_id = self._watch.add(self._workspace.nodes.path(record.node), self.look)
            except OSError as error:
                text = f"the end of the FUSE program will be noticed late: {error}"
                self._log.error(text)
                self._history.trouble("watch", text)
        if self._watch_id is None:
            self.look()
        self.renew_sub_paths()
        self._on_change()

    async def is_dead(self) -> bool:
        """Whether nobody serves the mount any more.

        The lock of the device node says that somebody does. A hostile program could unlock its own, and a cloned fd has
        no lock, so its absence is confirmed by the kernel.
        """
        record = self.record
        if record is None or self._is_held(record) is not False:
            return False
        try:
            # A share of its own: this is seldom asked of programs that live, and must not wait for what is asked of those.
            share = f"{self._paths.owner} looks"
            is_gone = await self._prober.call(share, limits.PROBE_WAIT, fusemount.is_gone, self._target, record.device)
        except OSError:
            return False
        if is_gone and self.state is not State.DEAD:
            self.state = State.DEAD
            self._history.died()
        return is_gone

    async def take_off(self, plain: bool) -> None:
        """Unmount the FUSE mount, if there is one; `plain` as for takeoff.take_off(). Raises OSError, TimeoutError."""
        record = self.record
        if record is None:
            return
        took = Timer(Operation.UNMOUNT)
        await self._remover.run(limits.TAKE_OFF_WAIT, lambda: self._take_off(record, plain))
        took.stop()
        self._forget(End.DIED if self.state is State.DEAD else End.ASKED)

    @property
    def is_taking_off(self) -> bool:
        """Whether a thread is at it."""
        return self._remover.is_busy

    def _take_off(self, record: FuseMount, plain: bool) -> None:
        takeoff.take_off(self._workspace, self._target, record, plain, self._log.refusal)
        try:
            subpaths.remove_layers(self._paths)
        except OSError as error:  # the next mount does it
            self._log.warning(f"former layers of subPath binds cannot be removed: {error}")

    async def remove_target(self) -> None:
        """Unmount all, and remove the target's directory. Raises OSError, TimeoutError."""
        record = self.record
        self._is_removed = True
        if record is None and fusemount.device_at(self._target) == self.placeholder:
            # Nothing of a pod's: it cannot block, and a thread would cost more than all of it.
            takeoff.remove_target(self._workspace, self._target, None)
            return
        tell = self._log.refusal
        await self._remover.run(limits.TAKE_OFF_WAIT, lambda: takeoff.remove_target(self._workspace, self._target, record, tell))
        self._forget(End.UNPUBLISHED)

    def look(self) -> None:
        """Look whether the program has died, now or soon, and take its mount off then."""
        record = self.record
        if record is None:
            return
        if self._look_again is None:
            self._look_again = asyncio.Event()
        self._look_again.set()
        if self._reaper is None or self._reaper.done():
            self._reaper = asyncio.get_running_loop().create_task(self._reap(record, self._look_again))

    def look_unless_held(self) -> None:
        """The same, where nobody is known to hold the program's fd."""
        if self.record is not None and not self._is_held(self.record):
            self.look()

    def renew_sub_paths(self) -> None:
        """Give kubelet's subPath binds the present file system, in the background: its program has to answer for that.

        Where it failed, a later call tries again.
        """
        if not subpaths.has_any(self._paths):
            self._has_old_sub_paths = False  # those that are made later show what is mounted then
        if self.record is not None and self._has_old_sub_paths and (self._renewing is None or self._renewing.done()):
            self._renewing = asyncio.get_running_loop().create_task(self._renew_sub_paths(self.record))

    async def _renew_sub_paths(self, record: FuseMount) -> None:
        try:
            folder = subpaths.folder(self._paths)
            share = self._paths.owner
            done = await self._renewer.call(share, limits.SUB_PATH_WAIT, subpaths.renew, folder, self._target, record.device)
        except OSError as error:
            if self.record is record:
                text = str(error)
                if isinstance(error, TimeoutError):
                    text = str(error.strerror) if isinstance(error, Busy) else "the FUSE program does not answer"
                self._log.warning(text := f"containers with a subPath of the volume do not see the new mount yet: {text}")
                self._history.trouble("subPath", text)
            return
        if self.record is record:
            self._has_old_sub_paths = False
            self._history.no_trouble("subPath")
        if done:
            self._log.doing(f"subPath binds that show the new mount: {done}")

    def release(self) -> None:
        """The driver stops: look no more, and leave everything as it is."""
        if self._watch_id is not None:
            self._watch.remove(self._watch_id)
            self._watch_id = None
        if self._reaper is not None and self._reaper is not asyncio.current_task():
            self._reaper.cancel()
        self._reaper = None
        if self._renewing is not None:
            self._renewing.cancel()
            self._renewing = None

    def _forget(self, end: End) -> None:
        self.release()
        self._history.no_trouble("adopted")
        if self.record is not None:
            self._history.ended(end)
        if self.record is not None and self.record.node is not None:
            self._workspace.nodes.remove(self.record.node)
        self.record = None
        self.state = State.WAITING
        self._on_change()

    def _is_held(self, record: FuseMount) -> bool | None:
        """Whether the program's fd is known to be open; None where there is no fd left to ask with."""
        try:
            return record.node is not None and self._workspace.nodes.is_held(record.node)
        except OSError:
            return None

    async def _reap(self, record: FuseMount, look_again: asyncio.Event) -> None:
        """Take `record` off when its program has died. Where nobody would tell of that, look again and again."""
        is_told = True
        while True:
            look_again.clear()
            is_held: bool | None = None
            for delay in _DEATH_LOOKS if is_told else _DEATH_LOOKS[:1]:
                await asyncio.sleep(delay)
                is_held = self._is_held(record)
                if is_held is not False:
                    continue
                async with self.lock:
                    if self.record is not record or await self._take_off_if_dead():
                        return
            if is_held and self._watch_id is not None and not look_again.is_set():
                return  # it tells
            try:
                await asyncio.wait_for(look_again.wait(), limits.LOOK_AGAIN)
                is_told = True
            except TimeoutError:
                is_told = False

    async def _take_off_if_dead(self) -> bool:
        record = self.record
        if record is None or not await self.is_dead():
            return False
        try:
            await self.take_off(plain=False)
        except OSError as error:
            self._log.error(f"the FUSE program has gone, and its mount at {os.fspath(self._target)} cannot be taken off: {error}")
            return False
        self.left = record.mountpoint
        self._log.doing("the FUSE program has gone; its mount is taken off, and another one can mount")
        return True
