"""One mount of a fuse device: where it is attached, and what the driver holds of it."""

import asyncio
import os
from collections.abc import Callable
from errno import EINVAL

from driver.devices import attached, namespace
from driver.devices.kernel import CallersKernel
from driver.devices.records import DeviceRecord
from driver.devices.visits import Visits
from driver.linux import syscalls
from driver.model import limits
from driver.model.fusemount import FuseMount
from driver.model.peer import Peer
from driver.model.policy import Refused
from driver.model.state import Detach, End
from driver.mounts.connections import Connection
from driver.mounts.life import MountLife
from driver.observe.logs import VolumeLog
from driver.observe.troubles import Troubles


class CallersPlace:
    """The mountpoint of one mount, in the mount namespace of the process that asked for it (mounts.place.Place)."""

    def __init__(self, record: DeviceRecord, kept: int, visits: Visits) -> None:
        """Own `kept`, the fd by which it is unmounted (namespace.py); -1 where it is not known yet."""
        self.lock = asyncio.Lock()
        self.peer: Peer | None = None  # for whom detach() unmounts; None where its program has died
        self.path: bytes | None = None  # where the peer must see it; None where it has named it by its device number
        self._record = record
        self._kept = kept
        self._is_root = record.is_root
        self._visits = visits
        self._dropping: asyncio.Task[None] | None = None
        self._share = f"{record.allocation} {record.container}"  # a container's processes keep no other one from unmounting

    def is_detached(self, mount: FuseMount) -> bool:
        return False  # only a process in the mount namespace can see that

    async def is_gone(self, mount: FuseMount, had_lock: bool) -> bool:
        record = self._record
        arguments = (record.namespace, (record.pid,), mount.device_number, record.uid, record.gid)
        gone, _ = await self._visits.call(self._share, limits.PROBE_WAIT, attached.is_gone, *arguments)
        return bool(gone)

    async def detach(self, mount: FuseMount, how: Detach) -> None:
        if self.peer is not None:
            await self._unmount(self.peer, mount, how)
            return
        if self._kept < 0:
            await self._reopen()
        if self._kept < 0:
            return  # it is not there any more
        arguments = (self._record.namespace, (self._record.pid,), mount.device_number, self._is_root)
        await self._visits.call(self._share, limits.VISIT_WAIT, attached.detach, *arguments, fds=[self._kept])

    async def _unmount(self, peer: Peer, mount: FuseMount, how: Detach) -> None:
        if self._kept < 0:
            await self._reopen()
        if self._kept < 0:
            raise OSError(EINVAL, os.strerror(EINVAL))
        flags = syscalls.MNT_DETACH if how is Detach.LAZY else 0
        arguments = (peer.pid, mount.device_number, flags, self._is_root, self.path)
        fds = [peer.connection, self._kept]
        (result, *refusal), _ = await self._visits.call(self._share, limits.VISIT_WAIT, attached.unmount, *arguments, fds=fds)
        if result == namespace.REFUSED:
            raise refused(refusal)

    async def reopen(self) -> int:
        """Open the mount again after a restart of the driver: the fd beneath it has gone with the former one. Needs the lock.

        Return a pidfd of the first process of its container, which the caller owns, or -1. Raises OSError.
        """
        record = self._record
        arguments = (record.namespace, (record.pid,), record.mount.device_number, record.uid, record.gid)
        _, fds = await self._visits.call(self._share, limits.VISIT_WAIT, attached.reopen, *arguments)
        if not fds:
            return -1
        self._kept, *process = fds
        self._is_root = True
        return process[0] if process else -1

    async def _reopen(self) -> None:
        process = await self.reopen()
        if process >= 0:
            os.close(process)

    async def drop(self) -> None:
        """Close the kept fd, which keeps the file system busy that the mountpoint is on. A second call waits for the end of the first."""
        if self._dropping is None:
            kept, self._kept = self._kept, -1
            work = self._visits.drop(self._share, [kept] if kept >= 0 else [])
            self._dropping = asyncio.get_running_loop().create_task(work)
        await asyncio.shield(self._dropping)


class DeviceMount:
    """One mount, from the moment it is attached until nobody uses it any more."""

    def __init__(
        self,
        record: DeviceRecord,
        kept: int,
        kernel: CallersKernel,
        visits: Visits,
        log: VolumeLog,
        on_end: Callable[["DeviceMount", End, Connection | None], None],
    ) -> None:
        """Follow a mount after begin(). `on_end` is called when it is detached, as MountLife says."""
        self.record = record
        self.kernel = kernel
        self.place = CallersPlace(record, kept, visits)
        self.troubles = Troubles(log)
        self._on_end = on_end
        self.life = MountLife(
            record.mount,
            self.place,
            kernel,
            log,
            self.troubles,
            on_death=lambda: None,
            on_end=self._ended,
            on_change=lambda: None,
            on_missing=self._missing,
        )

    # What `status` and `device list` show.

    @property
    def mountpoint(self) -> bytes:
        """Return the path that the program asked for."""
        return self.record.mount.mountpoint

    @property
    def fstype(self) -> str:
        """Return the type in mount tables."""
        return self.record.mount.fstype

    @property
    def source(self) -> str:
        """Return the source in mount tables."""
        return self.record.mount.source

    @property
    def since(self) -> float:
        """Return when it was mounted, in seconds since 1970."""
        return self.record.since

    @property
    def mounter(self) -> int | None:
        """Return the uid that asked for it, as the node sees it."""
        return self.record.mount.mounter

    @property
    def container(self) -> str:
        """Return the name of its container (namespace.py)."""
        return self.record.container

    def begin(self) -> None:
        """Watch for the end of the program."""
        self.life.begin()

    def end_with_container(self) -> None:
        """Follow it no more: the first process of its container has ended, and the mount namespace ends with it."""
        if not self.life.has_ended:
            self.life.end(End.DIED)

    def _ended(self, life: MountLife, end: End, connection: Connection | None) -> None:
        self._on_end(self, end, connection)

    async def _missing(self) -> None:
        raise AssertionError("is_detached() is never true")


def refused(refusal: list[object]) -> Refused:
    """Return what a process answers that refuses: its errno and its text, which follow namespace.REFUSED."""
    errno, text = refusal
    assert isinstance(errno, int) and isinstance(text, str)
    return Refused(text, errno)
