"""What is mounted at one target: the placeholder, and on it the FUSE mount that comes and goes.

waiting ── mount ──> mounted ── unmount, or the program's death ──> waiting
                        └── the program is gone, its mount is not yet ──> dead ──> waiting
"""

import asyncio
import logging
import os
from collections.abc import Callable

from driver.blocking.calls import BoundedCall, Bounds
from driver.blocking.processes import NotAsked
from driver.blocking.threads import Threads
from driver.linux import mounttable, syscalls
from driver.linux.filewatch import FileWatch
from driver.model import limits
from driver.model.fusemount import FuseMount
from driver.model.paths import VolumePaths
from driver.model.policy import MountArguments
from driver.model.state import End, State
from driver.mounts import fusemount, subpathrenewal, subpaths, takeoff
from driver.mounts.deathwatch import DeathWatch
from driver.mounts.device import OpenDevice
from driver.mounts.history import History
from driver.mounts.mountprocess import MountProcess
from driver.mounts.subpathrenewal import SubPathRenewal
from driver.mounts.workspace import Workspace
from driver.observe.logs import VolumeLog
from driver.observe.metrics import Operation, Timer
from driver.observe.troubles import Troubles
from fusermount3_proxy.wire.mountinfo import Mount


class TargetMount:
    """The mount of one target. Whoever changes it holds `lock`."""

    def __init__(
        self,
        paths: VolumePaths,
        workspace: Workspace,
        files: FileWatch,
        bounds: Bounds,
        log: VolumeLog,
        history: History,
        troubles: Troubles,
        on_change: Callable[[], None],
    ) -> None:
        """`on_change` is called when `record` has changed."""
        self.lock = asyncio.Lock()
        self.record: FuseMount | None = None
        self.placeholder: str | None = None  # its identity (mounttable.identity_at), where it is known
        self.state = State.WAITING
        self.process: MountProcess | None = None  # mounts for a program that answers INIT first (sync-init)
        self._paths = paths
        self._target = paths.target_path
        self._workspace = workspace
        self._files = files
        self._starter = bounds.starter
        self._log = log
        self._history = history
        self._troubles = troubles
        self._on_change = on_change
        # What looks after `record`, and is there as long.
        self._death: DeathWatch | None = None
        self._renewal: SubPathRenewal | None = None
        # A program that does not answer holds one of each for ever, and so each has one.
        self._prober = BoundedCall(bounds.checks)
        self._prober_without_lock = BoundedCall(bounds.checks_without_lock)
        self._remover = Threads(1)
        self._renewer = BoundedCall(bounds.rebinds)
        self._late: End | None = None  # how the mount ends whose take-off takes longer than its limit
        self._is_removed = False

    def mount(self, mountpoint: bytes, kernel: MountArguments) -> int:
        """Mount FUSE on the placeholder. Returns the fd to serve it by. Raises OSError."""
        record, fd = fusemount.mount_fuse(self._workspace.nodes, self._target, mountpoint, kernel)
        try:
            self._begin(record)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def put_right(self) -> None:
        """Where somebody has unmounted on the node what was here, mount the placeholder again, and know of the FUSE mount.

        Where something else is mounted it stays, and is a trouble as long. Needs the lock. Asks no FUSE program, and reads
        the mount table only where something differs. Raises OSError.
        """
        if self.process is not None or self.is_taking_off or self._is_removed:
            return  # what is there changes just now
        record, is_late = self.record, self._late is not None
        if self._has_placeholder_on_top() if record is None else mounttable.device_number_at(self._target) == record.device:
            self._troubles.end("target")
            return
        stack = mounttable.mounts_at(self._target)
        if record is not None:
            if mounttable.contains(stack, record.device):
                self._troubles.begin("target", foreign(self._target, stack[-1]))
                return
            self._forget(self._late or End.ASKED)
        if not stack:
            self.placeholder = fusemount.mount_placeholder(self._target)
        elif fusemount.is_placeholder(stack[-1]):
            self.placeholder = mounttable.identity_at(self._target)  # not known yet, where a former driver had mounted it
        if not stack or (record is not None and not is_late):
            text = "it was unmounted on the node: containers that ran then may not see what is mounted now until they restart"
            self._troubles.begin("unmounted", text, logging.WARNING)
        if not stack or fusemount.is_placeholder(stack[-1]):
            self._troubles.end("target")
        else:
            self._troubles.begin("target", foreign(self._target, stack[-1]))

    def missed(self, known: FuseMount) -> None:
        """A mount that was recorded is not at the target: it was unmounted while no driver ran, or by one that was killed."""
        try:
            is_held = known.node is not None and self._workspace.nodes.is_held(known.node)
        except OSError:
            is_held = False
        self._history.ended(End.ASKED if is_held else End.DIED, known.mountpoint)

    def open(self) -> OpenDevice:
        """A /dev/fuse for mount_opened() or discard(). Raises OSError."""
        return self._workspace.nodes.open()

    def discard(self, opened: OpenDevice) -> None:
        """Close what open() has opened."""
        self._workspace.nodes.discard(opened)

    def mount_opened(self, opened: OpenDevice, mountpoint: bytes, kernel: MountArguments) -> MountProcess:
        """Mount on the placeholder, and take as long as the program takes to answer INIT. Returns the process that does.

        When that ends the mount is known here, or `opened` is discarded. Needs the lock at the start alone: as long as
        `process` is there nothing else mounts. Raises OSError where the target is gone, and then `opened` is the caller's still.
        """
        before = mounttable.device_number_at(self._target)

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
            except BaseException:
                self._undo(opened.node)
                os.close(opened.fd)
                raise
            if record is None:
                self.discard(opened)
                return
            try:
                self._begin(record)
            finally:
                os.close(opened.fd)  # after the watch was set, which hears of it where it is the last one

        self.process = MountProcess(self._starter, opened.fd, self._target, kernel, end)
        return self.process

    def _begin(self, record: FuseMount) -> None:
        """Note and watch a mount that was made just now; it is unmounted again where that raises anything, which goes on."""
        try:
            self._history.mounted()
            self.take_over(record)
        except BaseException:
            self._undo(record.node)
            raise

    def _undo(self, node: str | None) -> None:
        """Unmount a new mount after a mistake of the driver's own: nobody would notice its end, and no other program could mount."""
        self.release()
        self._death = self._renewal = self.record = None
        self.state = State.WAITING
        try:
            stack = mounttable.mounts_at(self._target)
            if stack and stack[-1].is_fuse:
                syscalls.umount(self._target, syscalls.MNT_DETACH)
        except OSError as error:
            self._log.error(f"a new mount at {self._target} cannot be unmounted, and no program can mount until it is: {error.strerror}")
        if node is not None:
            self._workspace.nodes.remove(node)

    async def end_process(self, process: MountProcess) -> None:
        """Kill a process of mount_opened(), and wait for its end. Raises TimeoutError."""
        process.kill()
        # A process that gave no sign for so long sleeps where no signal reaches it; it is looked after when it ends.
        await asyncio.wait_for(asyncio.shield(process.ended), limits.PROBE_WAIT)

    def take_over(self, record: FuseMount) -> None:
        """Look after a FUSE mount that is at the target."""
        self.record = record
        self.state = State.MOUNTED
        self._death = DeathWatch(record.node, self._workspace.nodes, self._files, lambda: self._has_ended(record))
        try:
            self._death.begin()
        except OSError as error:
            self._troubles.begin("watch", f"the end of the FUSE program will be noticed late: {error}")
        self._renewal = SubPathRenewal(record, self._paths, self._renewer, self._log, self._troubles)
        self._renewal.look()
        self._on_change()

    async def is_dead(self) -> bool:
        """Whether nobody serves the mount any more.

        The lock of the device node says that somebody does. A hostile program could unlock its own, and a cloned fd has
        no lock, so its absence is confirmed by the kernel.
        """
        record, death = self.record, self._death
        if record is None or death is None or death.is_held() is not False:
            return False
        has_lock = record.node is not None and self._workspace.nodes.is_there(record.node)
        prober = self._prober if has_lock else self._prober_without_lock
        try:
            is_gone = await prober.call(self._paths.owner, limits.PROBE_WAIT, fusemount.is_gone, self._target, record.device)
        except NotAsked as error:
            self._troubles.begin("look", f"whether its FUSE program lives cannot be told: {error.strerror}", logging.WARNING)
            return False
        except OSError:
            self._troubles.end("look")
            return False
        self._troubles.end("look")
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
        end = self._late or (End.DIED if self.state is State.DEAD else End.ASKED)
        try:
            await self._remover.run(limits.DETACH_WAIT, lambda: self._take_off(record, plain))
        except TimeoutError:
            self._late = end
            raise
        except OSError:
            self._late = None
            raise
        took.stop()
        self._forget(end)

    @property
    def is_held(self) -> bool:
        """Whether somebody is known to have the program's fd."""
        return self._death is not None and bool(self._death.is_held())

    @property
    def is_taking_off(self) -> bool:
        """Whether a thread is at it."""
        return self._remover.is_busy

    def _take_off(self, record: FuseMount, plain: bool) -> None:
        takeoff.take_off(self._workspace, self._target, record, plain, self._log.refusal)
        try:
            subpaths.remove_layers(self._paths)
        except OSError as error:  # the next mount does it
            self._log.refusal(f"former layers of subPath binds cannot be removed: {error}")

    async def remove_target(self) -> None:
        """Unmount all, and remove the target's directory. Raises OSError (takeoff.NotOurs, TimeoutError)."""
        record = self.record
        self._is_removed = True
        if record is None and self._has_placeholder_on_top():
            # Nothing of a pod's: it cannot block, and a thread would cost more than all of it.
            takeoff.remove_placeholder(self._target)
            return
        tell = self._log.refusal
        try:
            await self._remover.run(limits.DETACH_WAIT, lambda: takeoff.remove_target(self._workspace, self._target, record, tell))
        except OSError as error:
            # Its directory may stay where its mount does not.
            if not isinstance(error, TimeoutError) and record is not None and self._is_off(record):
                self._forget(End.UNPUBLISHED)
            raise
        self._forget(End.UNPUBLISHED)

    def look(self) -> None:
        """Look whether the program has died, now or soon, and take its mount off then."""
        if self._death is not None:
            self._death.check()

    def look_unless_held(self) -> None:
        """The same, where nobody is known to hold the program's fd."""
        if self._death is not None and not self.is_held:
            self._death.check()

    def renew_sub_paths(self) -> None:
        """Give kubelet's subPath binds the present file system, in the background, where they do not show it yet."""
        if self._renewal is not None:
            self._renewal.look()

    def unmounted_after_end(self, mountpoint: bytes) -> bool:
        """As of History."""
        was_left = self.record is None and self._history.unmounted_after_end(mountpoint)
        if was_left:
            self._on_change()
        return was_left

    def release(self) -> None:
        """The driver stops: look no more, and leave everything as it is."""
        if self._death is not None:
            self._death.stop()
        if self._renewal is not None:
            self._renewal.stop()

    def _has_placeholder_on_top(self) -> bool:
        """Return whether the placeholder, where it is known, is what the target shows. Raises OSError."""
        return self.placeholder is not None and mounttable.identity_at(self._target) == self.placeholder

    def _is_off(self, record: FuseMount) -> bool:
        """Whether a mount is known not to be at the target any more, nor beneath something that is."""
        try:
            return not mounttable.is_at(self._target, record.device)
        except FileNotFoundError:
            return True
        except OSError:
            return False

    def _forget(self, end: End) -> None:
        self.release()
        self._death = self._renewal = None
        self._troubles.end("adopted", "stays", "look", "watch", subpathrenewal.KIND)
        record, self.record = self.record, None
        self.state = State.WAITING
        self._late = None
        if record is not None:
            self._history.ended(end, record.mountpoint)
            if record.node is not None:
                self._workspace.nodes.remove(record.node)
        self._on_change()

    async def _has_ended(self, record: FuseMount) -> bool:
        """Take `record` off where its program has died; False where it lives, or its mount stays."""
        async with self.lock:
            if self.record is not record:
                return True
            if self._is_off(record):
                # Somebody has unmounted it, and so its program did not end by itself.
                try:
                    self.put_right()
                except OSError:
                    pass  # told at the next republish
                return self.record is not record
            if not await self.is_dead():
                return False
            try:
                await self.take_off(plain=False)
            except OSError as error:
                reason = error.strerror or f"it takes longer than {limits.DETACH_WAIT:g} s"
                self._troubles.begin("stays", f"the mount of the FUSE program that has gone cannot be taken off: {reason}")
                return False
        self._log.activity("the FUSE program has gone; its mount is taken off, and another one can mount")
        return True


def foreign(target: str, mount: Mount) -> str:
    """What to say of a target where something else has been mounted."""
    return f"{target}: a {mount.fstype} file system of something else is mounted there"
