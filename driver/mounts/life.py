"""One FUSE mount, from the moment it is attached until it has ended.

mounted ── its program dies ──> dead ── detached ──> ended
   └─────── somebody unmounts it ──────────────────────┘
"""

import logging
from collections.abc import Awaitable, Callable

from driver.blocking.processes import NotAsked
from driver.model import limits
from driver.model.fusemount import DetachedMount, FuseMount
from driver.model.state import Detach, End, State
from driver.mounts.connections import Connection
from driver.mounts.deathwatch import DeathWatch
from driver.mounts.kernel import DeviceKernel
from driver.mounts.place import Place
from driver.observe.logs import VolumeLog
from driver.observe.metrics import Operation, Timer
from driver.observe.troubles import Troubles

# Kinds of trouble that concern one mount, and end with it.
TROUBLES = ("adopted", "stays", "look", "watch")


class MountLife:
    """Follows one mount: it notices the death of the program, detaches the mount then, and reports how the mount ended.

    The place knows where the mount is attached. The caller of detach() or is_dead() holds `place.lock`.
    """

    def __init__(
        self,
        mount: FuseMount,
        place: Place,
        kernel: DeviceKernel,
        log: VolumeLog,
        troubles: Troubles,
        on_death: Callable[[], None],
        on_end: Callable[["MountLife", End, Connection | None], None],
        on_change: Callable[[], None],
        on_missing: Callable[[], Awaitable[None]],
    ) -> None:
        """Follow `mount`, which is attached at `place`, after begin().

        `on_death` is called when the program is known to have ended. `on_end` is called once, when the mount is detached, with
        the connection of a file system that was unmounted lazily and is still in use. `on_change` is called when `unmounting` changes.
        `on_missing` is called where somebody else has detached the mount. It calls end(), unless the target is being changed at that
        moment; then the mount is checked again.
        """
        self.mount = mount
        self.state = State.MOUNTED
        self.has_ended = False
        self.late_end: End | None = None  # how the mount ends, where a detach() took longer than its limit and goes on
        self._place = place
        self._kernel = kernel
        self._log = log
        self._troubles = troubles
        self._on_death = on_death
        self._on_end = on_end
        self._on_change = on_change
        self._connection: Connection | None = None  # from the beginning of a lazy unmount
        self._on_missing = on_missing
        self._death = DeathWatch(mount.device, kernel, self._program_may_have_ended)

    def begin(self) -> None:
        """Watch for the end of the program, until end() or stop()."""
        try:
            self._death.begin()
        except OSError as error:
            self._troubles.begin("watch", f"the end of the FUSE program will be noticed late: {error}")

    @property
    def is_held(self) -> bool:
        """Return whether some process is known to hold the fd that serves the mount."""
        return bool(self._death.is_held())

    def check(self) -> None:
        """Check in the background whether the program has ended, and detach the mount then."""
        self._death.check()

    def check_unless_held(self) -> None:
        """Check as check() does, unless some process is known to hold the fd."""
        if not self.is_held:
            self.check()

    async def is_dead(self) -> bool:
        """Return whether nobody serves the mount any more. Needs the place's lock.

        The lock of the device node proves that somebody serves it. A missing lock proves nothing, because a hostile program
        could drop it and a cloned fd has none. Then the kernel is asked.
        """
        if self._death.is_held() is not False:
            return False
        had_lock = self.mount.device is not None and self._kernel.has_device(self.mount.device)
        try:
            is_gone = await self._place.is_gone(self.mount, had_lock)
        except NotAsked as error:
            text = f"it is not known whether the FUSE program is alive: {error.strerror}"
            self._troubles.begin("look", text, logging.WARNING)
            return False
        except OSError:
            is_gone = False
        self._troubles.end("look")
        if is_gone and self.state is not State.DEAD:
            self.state = State.DEAD
            self._on_death()
        return is_gone

    async def detach(self, how: Detach) -> None:
        """Detach the mount as Place.detach() does. Needs the place's lock. Raises OSError, TimeoutError."""
        took = Timer(Operation.UNMOUNT)
        end = self.late_end or (End.DIED if self.state is State.DEAD else End.ASKED)
        if how is Detach.LAZY:
            self._begin_lazy_unmount()
        else:
            self._forget_connection()
        try:
            await self._detach(how)
        except TimeoutError:
            self.late_end = end
            raise
        except OSError:
            self.late_end = None
            self._forget_connection()
            raise
        took.stop()
        self.end(end)

    async def _detach(self, how: Detach) -> None:
        try:
            await self._place.detach(self.mount, how)
        except TimeoutError:
            if self._connection is None:
                raise
            # The thread waits for a lock that a user of the file system holds, while that user waits for the program. Until the
            # thread goes on, no program could mount, and the volume could not be unpublished.
            self._log.activity("the FUSE program keeps its users waiting, so the lazy unmount ends its file system")
            self._connection.abort()
            self._forget_connection()
            await self._place.detach(self.mount, Detach.FORCED)

    def _begin_lazy_unmount(self) -> None:
        # Afterwards the number of the file system may be another one's.
        if self._connection is None:
            try:
                self._connection = self._kernel.connection(self.mount.device_number)
            except OSError as error:
                self._log.warning(f"the lazily unmounted file system cannot be followed, and ends with its last user: {error.strerror}")
            # Recorded before the unmount: if the driver is killed after it, the next one finds no mount at the target.
            self._on_change()

    def _forget_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def end(self, end: End) -> None:
        """Follow the mount no more: it is detached.

        `on_end` gets the connection of a file system that was unmounted lazily and is still in use, and owns it then.
        """
        self.has_ended = True
        self.stop()
        self._troubles.end(*TROUBLES)
        if self._connection is not None and not self._is_used(self._connection):
            self._forget_connection()
        connection, self._connection = self._connection, None
        if connection is None and self.mount.device is not None:
            self._kernel.remove_device(self.mount.device)
        self._on_end(self, end, connection)

    def _is_used(self, connection: Connection) -> bool:
        try:
            return self._kernel.is_connection_used(self.mount.device_number, connection)
        except OSError:
            return False

    @property
    def unmounting(self) -> DetachedMount | None:
        """Return what is to be recorded while the mount is unmounted lazily."""
        return None if self._connection is None else DetachedMount(self.mount, self._connection.identity)

    def stop(self) -> None:
        """Watch no more, and leave the mount as it is: the driver stops."""
        self._death.stop()

    async def _program_may_have_ended(self) -> bool:
        """Detach the mount where its program has ended. Return False where it lives, or its mount stays."""
        async with self._place.lock:
            if self.has_ended:
                return True
            if self._place.is_detached(self.mount):
                # Somebody has unmounted it, so its program did not end by itself.
                await self._on_missing()
                return self.has_ended
            if not await self.is_dead():
                return False
            try:
                await self.detach(Detach.FORCED)
            except OSError as error:
                reason = error.strerror or f"it takes longer than {limits.DETACH_WAIT:g} s"
                self._troubles.begin("stays", f"the FUSE program has ended, and its mount cannot be detached: {reason}")
                return False
        self._log.activity("the FUSE program has ended; its mount is detached, and another program can mount")
        return True
