"""What the mount core asks of the Linux kernel, as one small object, so that tests can put another one in its place.

Each target path has an object of its own; linuxkernel.py is the real one. A method that is not a coroutine asks no FUSE program,
and returns at once unless it says otherwise. All raise OSError as the kernel reports it.
"""

from collections.abc import Callable
from typing import Protocol

from driver.model.fusemount import FuseMount
from driver.model.policy import MountArguments
from driver.model.state import Detach
from driver.mounts.attempt import MountAttempt
from driver.mounts.connections import Connection
from driver.mounts.device import OpenDevice
from fusermount3_proxy.wire.mountinfo import Mount


class DeviceKernel(Protocol):
    """The device nodes of mounts (device.py)."""

    def has_device(self, name: str) -> bool:
        """Return whether the device node is there."""

    def is_device_held(self, name: str) -> bool:
        """Return whether some process still holds the fd of the device node."""

    def remove_device(self, name: str) -> None:
        """Remove the device node."""

    def watch_device(self, name: str, callback: Callable[[], None]) -> int:
        """Call back at the last close of the device node. Return what unwatch() takes."""

    def unwatch(self, watch: int) -> None:
        """Undo watch_device()."""

    def connection(self, device_number: str) -> Connection:
        """Return the FUSE connection of a file system that is mounted here. Raises FileNotFoundError where it is not."""

    def find_connection(self, device_number: str, identity: str) -> Connection | None:
        """Return a FUSE connection that another driver had opened; None where it is not known which one that is now.

        Raises FileNotFoundError where it has ended.
        """

    def is_connection_used(self, device_number: str, connection: Connection | None) -> bool:
        """Return whether somebody uses the file system of a connection: it is mounted, or a file in it is open."""


class TargetKernel(DeviceKernel, Protocol):
    """One target path, and what is mounted there."""

    @property
    def is_busy(self) -> bool:
        """Return whether a thread of this target mounts, detaches or removes."""

    def open_device(self) -> OpenDevice:
        """Make a device node and open it."""

    def discard_device(self, opened: OpenDevice) -> None:
        """Close and remove a device that was never mounted."""

    def device_number(self) -> str:
        """Return MAJOR:MINOR of the topmost file system at the target."""

    def identity(self) -> str:
        """Return what tells the topmost file system at the target from all others that were ever there."""

    def mounts(self) -> list[Mount]:
        """Return the mounts at the target, topmost last."""

    def make_directory(self) -> bool:
        """Make the target's directory; return False where it is there. No pod can lock the directory above, which is kubelet's."""

    def mount_placeholder(self) -> str:
        """Mount the placeholder and return its identity. Raises NotADirectoryError where the target is a file or a symlink.

        Call it in a thread, unless the directory was made just now: containers that see it can lock it.
        """

    def is_untouched(self, placeholder: str) -> bool:
        """Return whether the placeholder with this device number is at the target, with the access that it was mounted with."""

    async def restore_access(self) -> None:
        """Give the placeholder its owner and mode again, in a thread: applications can change both, and can block the thread."""

    async def remount_placeholder(self) -> str:
        """Do what mount_placeholder() does on a directory that was there: in a thread, since containers that see it can lock it.

        Raises NotADirectoryError where the target is a file or a symlink, and TimeoutError where the thread goes on alone.
        """

    def begin_mount(
        self, opened: OpenDevice, arguments: MountArguments, waits_for_init: bool, on_end: Callable[[int], int]
    ) -> MountAttempt:
        """Begin to mount `opened` at the target; `on_end` is called when mount(2) has returned."""

    def mounted(self, opened: OpenDevice, before: str, mountpoint: bytes, arguments: MountArguments) -> FuseMount:
        """Return what begin_mount() has mounted over the file system `before`; raise OSError where it has mounted nothing."""

    def unmount(self) -> None:
        """Detach the topmost mount, and do nothing else: for a new mount whose program has not got its fd."""

    async def is_gone(self, device_number: str, had_lock: bool) -> bool:
        """Ask, in a process, whether a mount has lost its program or is not at the target. Raises as BoundedCall.call()."""

    async def usage(self) -> tuple[int, ...]:
        """Ask, in a process, for statvfs(3) of the target. Raises as BoundedCall.call()."""

    def placeholder_usage(self, identity: str) -> tuple[int, ...] | None:
        """Return statvfs(3) of the placeholder; None where something else is at the target."""

    async def detach(self, mount: FuseMount, how: Detach) -> None:
        """Detach a mount in a thread, everywhere. Raises TimeoutError where the thread goes on alone."""

    async def remove(self, mount: FuseMount | None) -> None:
        """Unmount everything at the target and remove its directory, in a thread. Raises as detach() does, and NotOurs."""

    def remove_at_once(self) -> None:
        """Remove a target where only the placeholder is mounted, on a directory that no container has seen: no pod can block that."""

    async def remove_placeholder(self) -> None:
        """Do what remove_at_once() does where containers may have seen the directory, in a thread. Raises as detach() does."""

    def has_sub_paths(self) -> bool:
        """Return whether kubelet has bound subPaths of the volume."""

    async def rebind_sub_paths(self, device_number: str) -> int:
        """Rebind, in a process, kubelet's subPath mounts that show another file system. Return how many. Raises as call()."""
