"""A volume's target path as a place for mounts: the placeholder, and the FUSE mount that comes and goes on it."""

import asyncio
import logging
import os
from collections.abc import Callable
from errno import EIO, ENOENT

from driver.linux import mounttable
from driver.model import limits
from driver.model.fusemount import FuseMount
from driver.model.policy import MountArguments
from driver.model.state import Detach
from driver.mounts.attempt import MountAttempt
from driver.mounts.device import OpenDevice
from driver.mounts.kernel import TargetKernel
from driver.mounts.subpathrebinder import SubPathRebinder
from driver.observe.logs import VolumeLog
from driver.observe.troubles import Troubles
from fusermount3_proxy.wire.mountinfo import Mount, is_placeholder


class TargetPlace:
    """Attaches and detaches the FUSE mounts of one target path. Each task that changes the target holds `lock`."""

    def __init__(self, path: str, kernel: TargetKernel, log: VolumeLog, troubles: Troubles) -> None:
        self.path = path
        self.lock = asyncio.Lock()
        self.placeholder: str | None = None  # its identity (mounttable.identity_at), where it is known
        self._first: str | None = None  # that of the placeholder on a directory which no container has seen
        self.attempt: MountAttempt | None = None  # a mount(2) that has not returned
        self._kernel = kernel
        self._log = log
        self._troubles = troubles
        self._rebinder: SubPathRebinder | None = None
        self._is_removed = False

    # ---- attach

    def begin_attach(
        self,
        opened: OpenDevice,
        mountpoint: bytes,
        arguments: MountArguments,
        waits_for_init: bool,
        on_mounted: Callable[[FuseMount], None],
    ) -> MountAttempt:
        """Begin to mount `opened` on the placeholder.

        When mount(2) has succeeded, `on_mounted` is called and the fd of `opened` is closed. When it has failed, `opened` is
        discarded. The attempt's errno is 0 only in the first case.
        Needs the lock at the start alone: while `attempt` is set nothing else mounts. Raises OSError where the target is gone,
        and then `opened` is still the caller's.
        """
        before = self._kernel.device_number()

        def end(errno: int) -> int:
            self.attempt = None
            is_followed = False
            try:
                if not self._is_removed:  # after remove() the target may belong to another volume
                    # A process can be killed right after it has mounted, so what is at the target decides then.
                    if errno == 0 or (waits_for_init and self._shows_fuse()):
                        on_mounted(self._kernel.mounted(opened, before, mountpoint, arguments))
                        is_followed = True
                        errno = 0
                elif errno == 0:
                    errno = ENOENT
            except ConnectionAbortedError as error:  # somebody has unmounted it on the node already
                errno = error.errno or EIO
            except OSError as error:
                self._undo()
                errno = error.errno or EIO
            except BaseException:
                # A mistake of the driver's own: nobody would notice the end of this mount, and no other program could mount.
                self._undo()
                raise
            finally:
                if is_followed:
                    opened.close()  # not earlier: if this fd is the last one, the watch must notice its close
                else:
                    self._kernel.discard_device(opened)
            return errno

        self.attempt = self._kernel.begin_mount(opened, arguments, waits_for_init, end)
        return self.attempt

    def _undo(self) -> None:
        try:
            if self._shows_fuse():
                self._kernel.unmount()
        except OSError as error:
            self._log.error(f"a new mount at {self.path} cannot be unmounted, and no program can mount until it is: {error.strerror}")

    def _shows_fuse(self) -> bool:
        stack = self._kernel.mounts()
        return bool(stack) and stack[-1].is_fuse

    async def end_attempt(self, attempt: MountAttempt) -> None:
        """Give up an attempt of begin_attach(), and wait for its end. Raises TimeoutError."""
        attempt.give_up()
        # An attempt that does not end in this time sleeps where no signal reaches it; end() runs when it ends.
        await asyncio.wait_for(asyncio.shield(attempt.ended), limits.PROBE_WAIT)

    # ---- check and repair

    @property
    def is_busy(self) -> bool:
        """Return whether a process or a thread mounts or unmounts here just now."""
        return self.attempt is not None or self._kernel.is_busy

    @property
    def may_be_repaired(self) -> bool:
        """Return whether repair() may change what is mounted here: nothing else changes it just now, and it is not removed."""
        return not self.is_busy and not self._is_removed

    def shows(self, mount: FuseMount | None) -> bool:
        """Return whether `mount`, or the placeholder where it is None, is the topmost file system here. Raises OSError."""
        if mount is not None:
            return self._kernel.device_number() == mount.device_number
        return self.placeholder is not None and self._kernel.identity() == self.placeholder

    def mounts(self) -> list[Mount]:
        """Return the mounts here, topmost last. Raises OSError."""
        return self._kernel.mounts()

    async def repair(self, stack: list[Mount], was_unmounted: bool) -> None:
        """Mount the placeholder again where `stack`, what is mounted here, is empty. Raises OSError.

        A foreign file system stays and is a trouble as long as it is there. `was_unmounted` says that the mount of a FUSE
        program is missing: it was unmounted on the node.
        """
        if not stack:
            await self.remount_placeholder()
        elif is_placeholder(stack[-1]):
            await self._kernel.restore_access()
            self.adopt_placeholder(stack[-1])  # not known yet where a former driver has mounted it
        if not stack or was_unmounted:
            text = "the volume was unmounted on the node: containers that ran then may not see what is mounted now until they restart"
            self._troubles.begin("unmounted", text, logging.WARNING)
        if not stack or is_placeholder(stack[-1]):
            self._troubles.end("target")
        else:
            self._troubles.begin("target", foreign(self.path, stack[-1]))

    def make(self) -> bool:
        """Make the directory; return False where it is there. Raises OSError."""
        return self._kernel.make_directory()

    def remove_empty(self) -> None:
        """Remove the directory that make() has made just now, where nothing is mounted."""
        try:
            os.rmdir(self.path)
        except OSError:
            pass  # somebody else uses it by now; the next publish finds it

    def mount_placeholder(self) -> None:
        """Mount the placeholder on the directory that make() has made just now. Raises OSError."""
        self.placeholder = self._first = self._kernel.mount_placeholder()

    def mount_placeholder_in_thread(self) -> str:
        """Mount the placeholder on a directory that was there; the result is for keep_placeholder(). Call it in a thread.

        Raises OSError, NotADirectoryError.
        """
        return self._kernel.mount_placeholder()

    def keep_placeholder(self, identity: str) -> None:
        """Keep what mount_placeholder_in_thread() has returned."""
        self.placeholder = identity

    async def remount_placeholder(self) -> None:
        """Mount the placeholder on a directory that was there. Raises OSError, NotADirectoryError, TimeoutError."""
        self.placeholder = await self._kernel.remount_placeholder()

    def adopt_placeholder(self, placeholder: Mount) -> None:
        """Take `placeholder`, which was topmost here a moment ago, for this volume's. Raises OSError.

        If somebody on the node has unmounted it meanwhile, or an application has changed its access, nothing is adopted,
        and the next republish repairs the target.
        """
        identity = self._kernel.identity()
        is_ours = mounttable.device_of_identity(identity) == placeholder.device and self._kernel.is_untouched(placeholder.device)
        self.placeholder = identity if is_ours else None

    async def usage(self, mount: FuseMount | None) -> tuple[int, ...]:
        """Return statvfs(3) of what is here, with `mount` or without one. Raises as BoundedCall.call()."""
        # The placeholder is the driver's own, and needs no process that can be left behind. It is not
        # opened while a program has mounted: that mount would be busy for a container that unmounts it just now.
        if mount is None and self.placeholder is not None:
            found = self._kernel.placeholder_usage(self.placeholder)
            if found is not None:
                return found
        return await self._kernel.usage()

    # ---- detach (Place)

    def is_detached(self, mount: FuseMount) -> bool:
        """Return whether `mount` is known to be neither here nor beneath something that is here."""
        number = mount.device_number
        try:
            return self._kernel.device_number() != number and not mounttable.contains(self._kernel.mounts(), number)
        except FileNotFoundError:
            return True
        except OSError:
            return False

    async def is_gone(self, mount: FuseMount, had_lock: bool) -> bool:
        """Ask the kernel whether `mount` has lost its program or its place; as Place.is_gone()."""
        return await self._kernel.is_gone(mount.device_number, had_lock)

    async def detach(self, mount: FuseMount, how: Detach) -> None:
        """Detach `mount` in every container; the placeholder stays. As Place.detach()."""
        await self._kernel.detach(mount, how)

    async def remove(self, mount: FuseMount | None) -> None:
        """Unmount everything here and remove the directory. Raises OSError, NotOurs, TimeoutError."""
        self._is_removed = True
        if mount is None and self.shows(None):
            if self.placeholder == self._first:
                # No container has seen the directory beneath, so no pod can lock it, and a thread would cost more than all of it.
                self._kernel.remove_at_once()
            else:
                # A container that started while the target was bare can lock the directory, and rmdir(2) would wait for it.
                await self._kernel.remove_placeholder()
        else:
            await self._kernel.remove(mount)

    # ---- subPath

    def begin_rebinding(self, mount: FuseMount) -> None:
        """Give kubelet's subPath binds the file system of `mount`, in the background."""
        self._rebinder = SubPathRebinder(mount, self._kernel, self._log, self._troubles)
        self._rebinder.check()

    def check_sub_paths(self) -> None:
        """Try again where a bind could not be made."""
        if self._rebinder is not None:
            self._rebinder.check()

    def end_rebinding(self) -> None:
        """Leave the binds as they are."""
        if self._rebinder is not None:
            self._rebinder.stop()
            self._rebinder = None


def foreign(target: str, mount: Mount) -> str:
    """Return what to say of a target where something else has been mounted."""
    return f"{target}: a {mount.fstype} file system that the driver did not mount is there"
