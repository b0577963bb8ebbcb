"""A FUSE mount that was unmounted lazily, and whose file system is still in use.

It is at no path that new users could take. Its program goes on serving open files, working directories, and containers that had
bound the mount itself and see the placeholder over it now. It ends with its last user, with its program, or when the driver ends it.
"""

from collections.abc import Callable

from driver.model.fusemount import DetachedMount, FuseMount
from driver.mounts.connections import Connection
from driver.mounts.deathwatch import DeathWatch
from driver.mounts.kernel import DeviceKernel
from driver.observe.logs import VolumeLog


class DetachedLife:
    """Follows one such mount until it has ended."""

    def __init__(
        self,
        mount: FuseMount,
        connection: Connection | None,
        kernel: DeviceKernel,
        log: VolumeLog,
        on_end: Callable[["DetachedLife"], None],
    ) -> None:
        """Follow `mount` after begin(); `on_end` is called once, when it has ended.

        Owns `connection`. Without it abort() cannot end the mount.
        """
        self.mount = mount
        self._connection = connection
        self._kernel = kernel
        self._log = log
        self._on_end = on_end
        self._death = DeathWatch(mount.device, kernel, self._program_may_have_ended)

    @property
    def recorded(self) -> DetachedMount:
        """Return what the next driver needs to follow it."""
        return DetachedMount(self.mount, "" if self._connection is None else self._connection.identity)

    @property
    def is_used(self) -> bool:
        """Return whether somebody still uses the file system; True where that cannot be found out."""
        try:
            return self._kernel.is_connection_used(self.mount.device_number, self._connection)
        except OSError:
            return True

    def begin(self) -> None:
        """Watch for the end of the program, until abort() or stop()."""
        try:
            self._death.begin()
        except OSError as error:
            self._log.warning(f"the end of a lazily unmounted file system will be noticed late: {error.strerror}")
        self._death.check()

    def abort(self) -> bool:
        """End the mount now: its program gets ENODEV, and who still uses it gets errors.

        Return False where that cannot be done: the mount is not followed any more, and ends with its last user.
        """
        is_ended = False
        try:
            if self._connection is not None:
                self._connection.abort()
                is_ended = True
        except OSError as error:
            self._log.error(f"a lazily unmounted file system cannot be ended, and ends with its last user: {error}")
        self._end()
        return is_ended

    def stop(self) -> None:
        """Watch no more, and leave the mount as it is: the driver stops."""
        self._death.stop()

    async def _program_may_have_ended(self) -> bool:
        has_device = self.mount.device is not None and self._kernel.has_device(self.mount.device)
        if not has_device and self.is_used:
            return False  # without a device node, which somebody may have removed, nothing tells of the program's end
        # The lock is gone. If the program has only dropped it, nothing would tell of its end, so it is ended here. If it has ended,
        # abort() does nothing.
        self.abort()
        return True

    def _end(self) -> None:
        self.stop()
        if self._connection is not None:
            self._connection.close()
        if self.mount.device is not None:
            self._kernel.remove_device(self.mount.device)
        self._on_end(self)
