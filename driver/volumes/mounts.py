"""The FUSE mounts of one volume: which may be there, which are there after a restart, and what remains of former ones.

waiting ── mount ──> mounted ── unmount, or the program's death ──> waiting
                        └── the program is dead, its mount is still attached ──> dead ──> waiting
"""

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from driver.linux import mounttable
from driver.model import limits
from driver.model.errors import Code, VolumeError
from driver.model.fusemount import DetachedMount, FuseMount
from driver.model.policy import MountArguments, VolumePolicy, lacking
from driver.model.state import End, Past, State
from driver.mounts.attempt import MountAttempt
from driver.mounts.connections import Connection
from driver.mounts.detached import DetachedLife
from driver.mounts.device import OpenDevice
from driver.mounts.fusemount import adopted
from driver.mounts.kernel import TargetKernel
from driver.mounts.life import MountLife
from driver.mounts.target import TargetPlace, foreign
from driver.observe import metrics
from driver.observe.logs import VolumeLog
from driver.observe.troubles import Troubles
from fusermount3_proxy.wire.mountinfo import Mount, is_placeholder


class VolumeMounts:
    """The mounts of one volume, all at its target path. There is one at the most, since requests.py refuses a second one.

    Each task that changes the mounts holds `place.lock`.
    """

    def __init__(
        self, target: str, kernel: TargetKernel, past: Past, log: VolumeLog, troubles: Troubles, on_change: Callable[[], None]
    ) -> None:
        """Begin without a mount. `on_change` is called when the mounts or the past have changed."""
        self.place = TargetPlace(target, kernel, log, troubles)
        self.past = past
        self._lives: list[MountLife] = []
        self._detached: list[DetachedLife] = []  # oldest first
        self._kernel = kernel
        self._log = log
        self._troubles = troubles
        self._on_change = on_change

    @property
    def mounts(self) -> tuple[FuseMount, ...]:
        """Return the mounts, for the record."""
        return tuple(life.mount for life in self._lives)

    @property
    def detached(self) -> tuple[DetachedMount, ...]:
        """Return what was unmounted lazily or is being so, for the record."""
        unmounting = [life.unmounting for life in self._lives if life.unmounting is not None]
        return (*(life.recorded for life in self._detached), *unmounting)

    @property
    def devices(self) -> set[str | None]:
        """Return the names of the device nodes of all mounts, detached ones too."""
        return {mount.device for mount in (*self.mounts, *(life.mount for life in self._detached))}

    def count_detached(self) -> int:
        """Return how many lazily unmounted file systems are still in use."""
        return sum(1 for life in self._detached if life.is_used)

    @property
    def current(self) -> MountLife | None:
        """Return the mount that applications see."""
        return self._lives[-1] if self._lives else None

    @property
    def is_held(self) -> bool:
        """Return whether some process is known to hold the fd that serves the mount."""
        return self.current is not None and self.current.is_held

    @property
    def state(self) -> State:
        """Return what applications see."""
        return State.WAITING if self.current is None else self.current.state

    # ---- mount

    async def mount(self, mountpoint: bytes, arguments: MountArguments, mounter: int) -> int:
        """Mount FUSE on the placeholder for the uid `mounter`. Return the fd that serves it, which the caller closes.

        Raises OSError, and TimeoutError where mount(2) does not return in time.
        """
        opened = self._kernel.open_device()
        fd = -1
        try:
            fd = os.dup(opened.fd)  # the attempt closes the other one
            attempt = self.place.begin_attach(opened, mountpoint, arguments, False, partial(self._mounted, mounter))
        except BaseException:
            if fd >= 0:
                os.close(fd)
            self._kernel.discard_device(opened)
            raise
        try:
            async with asyncio.timeout(limits.MOUNT_WAIT):
                errno = await asyncio.shield(attempt.ended)
            if errno != 0:
                raise OSError(errno, os.strerror(errno))
            return fd
        except BaseException:
            # If mount(2) succeeds after this, no process holds the fd, and the mount is detached as that of a dead program.
            attempt.give_up()
            os.close(fd)
            raise

    def open_device(self) -> OpenDevice:
        """Open a device for begin_mount() or discard(). Raises OSError."""
        return self._kernel.open_device()

    def discard(self, opened: OpenDevice) -> None:
        """Close what open_device() has opened and nobody mounts."""
        self._kernel.discard_device(opened)

    def begin_mount(self, opened: OpenDevice, mountpoint: bytes, arguments: MountArguments, mounter: int) -> MountAttempt:
        """Begin to mount `opened` for a program that answers INIT first. Raises OSError as TargetPlace.begin_attach() does."""
        return self.place.begin_attach(opened, mountpoint, arguments, True, partial(self._mounted, mounter))

    def _mounted(self, mounter: int | None, mount: FuseMount) -> None:
        metrics.mounted(is_recovery=self.past.last_end is End.DIED)
        self.past = self.past.mounted()
        self._follow(replace(mount, mounter=mounter))

    def _follow(self, mount: FuseMount) -> None:
        life = MountLife(
            mount,
            self.place,
            self._kernel,
            self._log,
            self._troubles,
            on_death=self._died,
            on_end=self._ended,
            on_change=self._on_change,
            on_missing=self._repair_missing,
        )
        self._lives.append(life)
        try:
            life.begin()
            self.place.begin_rebinding(mount)
            self._on_change()
        except BaseException:
            # This is a mistake in the driver's own code. The caller of this method detaches the mount.
            self._lives.remove(life)
            life.stop()
            self.place.end_rebinding()
            raise

    def _died(self) -> None:
        self.past = self.past.died()

    def _ended(self, life: MountLife, end: End, connection: Connection | None) -> None:
        self._lives.remove(life)
        self.place.end_rebinding()
        metrics.unmounted(end)
        self.past = self.past.ended(end, life.mount.mountpoint)
        if connection is not None:
            self._follow_detached(life.mount, connection)
        self._on_change()

    def _follow_detached(self, mount: FuseMount, connection: Connection | None) -> None:
        life = DetachedLife(mount, connection, self._kernel, self._log, self._detached_ended)
        self._detached.append(life)
        life.begin()
        if len(self._detached) > limits.DETACHED_MAX:
            unused = [each for each in self._detached if not each.is_used]  # whose programs take their time to end
            if not unused:
                self._log.activity(f"more than {limits.DETACHED_MAX} lazily unmounted file systems are in use; the oldest is ended")
            (unused or self._detached)[0].abort()

    def _detached_ended(self, life: DetachedLife) -> None:
        self._detached.remove(life)
        self._on_change()

    def has_detached(self, mountpoint: bytes) -> bool:
        """Return whether a file system that was mounted at `mountpoint` is followed after a lazy unmount."""
        return any(life.mount.mountpoint == mountpoint for life in self._detached)

    def end_detached(self, mountpoint: bytes | None = None, may_end: Callable[[FuseMount], bool] = lambda mount: True) -> bool:
        """End what was unmounted lazily, at `mountpoint` or everywhere, and `may_end` allows. Return whether anything was ended."""
        found = [life for life in self._detached if mountpoint in (None, life.mount.mountpoint) and may_end(life.mount)]
        ended = [life.abort() for life in found]
        return any(ended)

    # ---- what a former driver, or somebody on the node, has left

    def adopt(self, stack: list[Mount], known: FuseMount | None, policy: VolumePolicy) -> None:
        """Take over what a former driver has mounted at the target: `stack`, topmost last and not empty.

        `known` is what a record says of the mount. Raises OSError, and VolumeError where the topmost mount is neither FUSE nor the
        placeholder.
        """
        if known is not None and mounttable.contains(stack, known.device_number):
            self._follow(known)
            if stack[-1].device != known.device_number:
                raise VolumeError(Code.FAILED_PRECONDITION, foreign(self.place.path, stack[-1]))
        elif is_placeholder(stack[-1]):
            self.place.adopt_placeholder(stack[-1])
        elif not stack[-1].is_fuse:
            raise VolumeError(Code.FAILED_PRECONDITION, foreign(self.place.path, stack[-1]))
        else:  # mounted by the Go plugin's driver, or by a driver that was killed before it could record the mount
            self._mounted(None, adopted(stack))
            self._log.info("adopting the FUSE file system that is mounted there already")
        life = self.current
        if life is not None and life.mount.device is None:
            self._warn_of_missing_options(policy, stack[-1])

    def _warn_of_missing_options(self, policy: VolumePolicy, mount: Mount) -> None:
        # Remounting would take writing away from a program that was promised it.
        if lacks := lacking(policy, mount.options, mount.super_options):
            text = f"the FUSE file system that was mounted there before is not {', '.join(lacks)}; it will be when its program mounts again"
            self._troubles.begin("adopted", text, logging.WARNING)

    def adopt_detached(self, recorded: tuple[DetachedMount, ...]) -> None:
        """Follow again what was unmounted lazily under a former driver, where it is still in use."""
        for each in recorded:
            if each.mount.device_number in {mount.device_number for mount in self.mounts}:
                continue  # that driver was killed before it unmounted anything
            device = each.mount.device
            try:
                if device is not None and self._kernel.has_device(device) and not self._kernel.is_device_held(device):
                    continue  # its program has ended
                connection = self._kernel.find_connection(each.mount.device_number, each.connection)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._log.warning(f"a lazily unmounted file system is not followed any more: {error}")
                continue
            self._follow_detached(each.mount, connection)

    def was_unmounted(self, known: FuseMount) -> None:
        """Note that a mount that is recorded is not at the target: it was unmounted while no driver ran."""
        try:
            is_held = known.device is not None and self._kernel.is_device_held(known.device)
        except OSError:
            is_held = False
        end = End.ASKED if is_held else End.DIED
        metrics.unmounted(end)
        self.past = self.past.ended(end, known.mountpoint)

    async def republish(self) -> None:
        """Repair the target and check the mounts; kubelet's periodic publish calls this. Raises nothing that pods can cause."""
        if not self.place.lock.locked():  # else somebody changes the mounts just now, and the next republish comes soon
            async with self.place.lock:
                await self._repair_or_report()
        self.check_unless_held()
        self.place.check_sub_paths()

    async def _repair_or_report(self) -> None:
        try:
            try:
                await self.repair()
            except FileNotFoundError:
                self.place.make()
                await self.repair()
        except NotADirectoryError:
            self._troubles.begin("target", not_a_directory(self.place.path))
        except OSError as error:
            reason = error.strerror or f"it takes longer than {limits.MOUNT_WAIT:g} s"
            self._troubles.begin("target", f"cannot repair {self.place.path}: {reason}")

    async def repair(self) -> None:
        """Restore what somebody on the node has changed at the target. Needs the lock.

        Asks no FUSE program, and reads the mount table only where something differs. Raises OSError.
        """
        life = self.current
        if not self.place.may_be_repaired:
            return
        if self.place.shows(None if life is None else life.mount):
            self._troubles.end("target")
            return
        stack = self.place.mounts()
        was_unmounted = False
        if life is not None:
            if mounttable.contains(stack, life.mount.device_number):
                self._troubles.begin("target", foreign(self.place.path, stack[-1]))
                return
            was_unmounted = life.late_end is None
            life.end(life.late_end or End.ASKED)
        await self.place.repair(stack, was_unmounted)

    async def _repair_missing(self) -> None:
        try:
            await self.repair()
        except OSError:
            pass  # the next republish repairs it, or reports why it cannot

    # ---- unmount

    def forget_left(self, mountpoint: bytes) -> bool:
        """Return whether `mountpoint` is what a dead program left, and forget it.

        libfuse's helper would unmount a dead mount; here that is done already, and the first unmount succeeds all the same:
        fuse3 (Rust) closes its fd before it calls the helper, and scripts clean up after a crash.
        """
        if self._lives or mountpoint != self.past.left:
            return False
        self.past = self.past.cleaned_up()
        self._on_change()
        return True

    async def unpublish(self) -> None:
        """Unmount all, and remove the target's directory. Raises OSError, TimeoutError; a second call goes on from there."""
        async with self.place.lock:
            self.end_detached()
            if self.place.attempt is not None:
                try:
                    await self.place.end_attempt(self.place.attempt)
                except TimeoutError:
                    pass  # without its target, which is removed now, it cannot mount
            life = self.current
            try:
                await self.place.remove(None if life is None else life.mount)
            except FileNotFoundError:
                pass  # it is removed already
            except OSError as error:
                # The directory may stay where the mount does not.
                if life is not None and not isinstance(error, TimeoutError) and self.place.is_detached(life.mount):
                    life.end(End.UNPUBLISHED)
                raise
            if life is not None:
                life.end(End.UNPUBLISHED)
                self.end_detached()  # end() has added the file system of a lazy unmount that took long

    # ---- checks

    @property
    def is_busy(self) -> bool:
        """Return whether a thread or process mounts or unmounts just now."""
        return self.place.is_busy

    async def usage(self) -> tuple[int, ...]:
        """Return statvfs(3) of what applications see. Raises as BoundedCall.call()."""
        return await self.place.usage(None if self.current is None else self.current.mount)

    def check(self) -> None:
        """Check in the background whether the program of a mount has ended."""
        for life in self._lives:
            life.check()

    def check_unless_held(self) -> None:
        """Check the mounts whose fd no process is known to hold."""
        for life in self._lives:
            life.check_unless_held()

    def stop(self) -> None:
        """Check no more, and leave everything as it is: the driver stops."""
        if self.place.attempt is not None:
            self.place.attempt.give_up()
        for life in self._lives:
            life.stop()
        for detached in self._detached:
            detached.stop()
        self.place.end_rebinding()


def not_a_directory(target: str) -> str:
    """Return what to say of a target that is no directory."""
    return f"{target} is not a directory but a file or a symlink: look at it and remove it by hand"
