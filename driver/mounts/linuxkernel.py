"""The real kernel behind the mount core: system calls, threads and processes for one target path (see kernel.py).

It also bounds what the target's FUSE program can block: one thread that mounts, one that detaches, and one process for each kind
of question.
"""

import os
from collections.abc import Callable
from errno import ENOENT
from functools import partial

from driver.blocking.calls import Bound, BoundedCall, Bounds
from driver.blocking.threads import Threads
from driver.linux import mounttable, syscalls
from driver.linux.filewatch import FileWatch
from driver.model import limits
from driver.model.fusemount import FuseMount
from driver.model.paths import VolumePaths
from driver.model.policy import MountArguments
from driver.model.state import Detach
from driver.mounts import fusemount, subpaths, takeoff
from driver.mounts.attempt import MountAttempt
from driver.mounts.connections import Connection
from driver.mounts.device import OpenDevice
from driver.mounts.workspace import Workspace
from fusermount3_proxy.wire.mountinfo import Mount


class LinuxKernel:
    """The real TargetKernel; kernel.py says what each method does."""

    def __init__(
        self,
        paths: VolumePaths,
        workspace: Workspace,
        files: FileWatch,
        bounds: Bounds,
        attacher: Callable[[], Threads],
        warn: Callable[[str], object],
    ) -> None:
        """Serve the target of `paths`, where the one thread that `attacher` returns mounts.

        `warn` logs what could not be done after a mount was off the target.
        """
        self._paths = paths
        self._target = paths.target_path
        self._workspace = workspace
        self._files = files
        self._warn = warn
        self._starter = bounds.starter
        self._bounds = bounds
        self._calls: dict[Bound, BoundedCall] = {}
        self._attacher = attacher
        self._detacher = Threads(1)

    def _call(self, bound: Bound) -> BoundedCall:
        # A FUSE program that never answers keeps the call of one kind for ever, so each kind has its own. They are made when they
        # are needed: most volumes that wait for a program need none.
        return self._calls.setdefault(bound, BoundedCall(bound))

    # ---- device nodes

    def has_device(self, name: str) -> bool:
        return self._workspace.devices.is_there(name)

    def is_device_held(self, name: str) -> bool:
        return self._workspace.devices.is_held(name)

    def remove_device(self, name: str) -> None:
        self._workspace.devices.remove(name)

    def watch_device(self, name: str, callback: Callable[[], None]) -> int:
        return self._files.on_last_close(self._workspace.devices.path(name), callback)

    def unwatch(self, watch: int) -> None:
        self._files.remove(watch)

    def open_device(self) -> OpenDevice:
        return self._workspace.devices.open()

    def discard_device(self, opened: OpenDevice) -> None:
        self._workspace.devices.discard(opened)

    # ---- connections

    def connection(self, device_number: str) -> Connection:
        found = self._workspace.connections.open(device_number)
        # Somebody could have unmounted it on the node, and the number be that of another pod's file system.
        if not mounttable.is_at(self._target, device_number):
            found.close()
            raise FileNotFoundError(ENOENT, os.strerror(ENOENT), self._target)
        return found

    def find_connection(self, device_number: str, identity: str) -> Connection | None:
        return self._workspace.connections.find(device_number, identity)

    def is_connection_used(self, device_number: str, connection: Connection | None) -> bool:
        return self._workspace.connections.is_there(device_number, connection)

    # ---- the target

    @property
    def is_busy(self) -> bool:
        return self._attacher().is_busy or self._detacher.is_busy

    def device_number(self) -> str:
        return mounttable.device_number_at(self._target)

    def identity(self) -> str:
        return mounttable.identity_at(self._target)

    def mounts(self) -> list[Mount]:
        return mounttable.mounts_at(self._target)

    def make_directory(self) -> bool:
        try:
            os.mkdir(self._target)
        except FileExistsError:
            return False
        except FileNotFoundError:
            # kubelet has made the directory above the target; other callers may not have.
            os.makedirs(os.path.dirname(self._target), exist_ok=True)
            os.mkdir(self._target)
        return True

    def mount_placeholder(self) -> str:
        return fusemount.mount_placeholder(self._target)

    def is_untouched(self, placeholder: str) -> bool:
        return fusemount.is_untouched(self._target, placeholder)

    async def restore_access(self) -> None:
        await self._attacher().run(limits.MOUNT_WAIT, partial(fusemount.restore_access, self._target))

    async def remount_placeholder(self) -> str:
        return await self._attacher().run(limits.MOUNT_WAIT, partial(fusemount.mount_placeholder, self._target))

    def begin_mount(
        self, opened: OpenDevice, arguments: MountArguments, waits_for_init: bool, on_end: Callable[[int], int]
    ) -> MountAttempt:
        if waits_for_init:
            return MountAttempt.in_process(self._starter, opened.fd, self._target, arguments, on_end)
        return MountAttempt.in_thread(self._attacher(), opened.fd, self._target, arguments, on_end)

    def mounted(self, opened: OpenDevice, before: str, mountpoint: bytes, arguments: MountArguments) -> FuseMount:
        return fusemount.mounted(opened, self._target, before, mountpoint, arguments)

    def unmount(self) -> None:
        syscalls.umount(self._target, syscalls.MNT_DETACH)

    # ---- what a FUSE program can block

    async def is_gone(self, device_number: str, had_lock: bool) -> bool:
        checks = self._bounds.checks if had_lock else self._bounds.checks_without_lock
        return await self._call(checks).call(self._paths.owner, limits.PROBE_WAIT, fusemount.is_gone, self._target, device_number)

    async def usage(self) -> tuple[int, ...]:
        return await self._call(self._bounds.questions).call(self._paths.owner, limits.PROBE_WAIT, fusemount.usage, self._target)

    def placeholder_usage(self, identity: str) -> tuple[int, ...] | None:
        return fusemount.placeholder_usage(self._target, identity)

    async def detach(self, mount: FuseMount, how: Detach) -> None:
        limit = limits.LAZY_WAIT if how is Detach.LAZY else limits.DETACH_WAIT
        await self._detacher.run(limit, partial(self._detach, mount, how))
        if how is Detach.LAZY:
            self._calls = {}  # the program goes on, and what it does not answer must not delay questions to the next one

    def _detach(self, mount: FuseMount, how: Detach) -> None:
        takeoff.take_off(self._workspace, self._target, mount, how, self._warn)
        try:
            subpaths.remove_layers(self._paths)
        except OSError as error:  # the next mount removes them
            self._warn(f"former layers of subPath binds cannot be removed: {error}")

    async def remove(self, mount: FuseMount | None) -> None:
        work = partial(takeoff.remove_target, self._workspace, self._target, mount, self._warn)
        await self._detacher.run(limits.DETACH_WAIT, work)

    def remove_at_once(self) -> None:
        takeoff.remove_placeholder(self._target)

    async def remove_placeholder(self) -> None:
        await self._detacher.run(limits.DETACH_WAIT, partial(takeoff.remove_placeholder, self._target))

    # ---- subPath

    def has_sub_paths(self) -> bool:
        return subpaths.has_any(self._paths)

    async def rebind_sub_paths(self, device_number: str) -> int:
        folder = subpaths.folder(self._paths)
        return await self._call(self._bounds.rebinds).call(
            self._paths.owner, limits.SUB_PATH_WAIT, subpaths.rebind, folder, self._target, device_number
        )
