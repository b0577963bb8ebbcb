"""What pods ask of one volume: mounts, at once or when their program is ready to answer INIT, and unmounts (fdserver.Handler)."""

import asyncio
import os
from dataclasses import dataclass
from errno import EAGAIN, EBUSY, EINVAL
from typing import Any

from driver.model import limits
from driver.model.peer import Peer
from driver.model.policy import MountArguments, Refused, VolumePolicy, mount_arguments
from driver.mounts.device import OpenDevice
from driver.mounts.mountprocess import MountProcess
from driver.mounts.targetmount import TargetMount
from driver.observe.logs import VolumeLog
from driver.observe.metrics import Operation, Timer
from fusermount3_proxy.wire.protocol import MountRequest, UnmountRequest, from_wire


@dataclass
class PreparedMount:
    """A /dev/fuse that a client has, and that is mounted when it says so; PodRequests' mount_prepared() or discard_prepared()."""

    requests: "PodRequests"
    request: MountRequest
    peer: Peer
    kernel: MountArguments
    opened: OpenDevice
    is_handed_on: bool = False  # who closes `opened` is somebody else

    @property
    def fd(self) -> int:
        """The fd to serve it by, for the client."""
        return self.opened.fd

    async def mount(self, client_gone: "asyncio.Future[None]") -> None:
        """Mount it, as long as the client waits. Raises Refused."""
        await self.requests.mount_prepared(self, client_gone)

    def discard(self) -> None:
        """Close it, unless it was mounted or tried to."""
        self.requests.discard_prepared(self)


class PodRequests:
    """The requests for one target's mount, one after another. Whoever sets `is_closing` has all further ones refused."""

    def __init__(self, mount: TargetMount, policy: VolumePolicy, log: VolumeLog) -> None:
        self.is_closing = False
        self._mount = mount
        self._policy = policy
        self._log = log

    async def mount(self, request: MountRequest, peer: Peer) -> int:
        """Mount for a client, and return the fd. Raises Refused."""
        async with self._mount.lock:
            self._refuse_when_closing()
            kernel = mount_arguments(self._policy, request.options, peer.uid, peer.gid)
            await self._make_room()
            took = Timer(Operation.MOUNT)
            try:
                fd = self._mount.mount(from_wire(request.mountpoint), kernel)
            except OSError as error:
                raise _mount_failed(error) from None
        try:
            self._log_mounted(request, peer, kernel, took)
        except BaseException:
            os.close(fd)  # nobody else has it, so the mount is taken off as that of a program that has died
            raise
        return fd

    async def prepare(self, request: MountRequest, peer: Peer) -> "PreparedMount":
        """Open a /dev/fuse for a client that says later when to mount it (sync-init). Raises Refused.

        Nothing is reserved: until then others can mount, and a client that goes away stands in nobody's way.
        """
        async with self._mount.lock:
            self._refuse_when_closing()
            kernel = mount_arguments(self._policy, request.options, peer.uid, peer.gid)
            await self._make_room()
            try:
                return PreparedMount(self, request, peer, kernel, self._mount.open())
            except OSError as error:
                raise _mount_failed(error) from None

    async def mount_prepared(self, prepared: "PreparedMount", client_gone: "asyncio.Future[None]") -> None:
        """Mount what prepare() has opened, as long as the client waits. Raises Refused."""
        async with self._mount.lock:
            self._refuse_when_closing()
            await self._make_room()
            mountpoint = from_wire(prepared.request.mountpoint)
            took = Timer(Operation.MOUNT)
            try:
                process = self._mount.mount_opened(prepared.opened, mountpoint, prepared.kernel)
            except OSError as error:
                raise _mount_failed(error) from None
            prepared.is_handed_on = True
        # Without the lock: the program may take its time, and unpublish must not wait for it.
        first: set[asyncio.Future[Any]] = {process.ended, client_gone}
        await asyncio.wait(first, timeout=limits.SYNC_MOUNT_WAIT, return_when=asyncio.FIRST_COMPLETED)
        if not process.ended.done():
            await self._end_process(process)
        errno = process.ended.result()
        record = self._mount.record
        # A process can be killed when it has just mounted.
        if errno != 0 and (record is None or record.node != prepared.opened.node):
            self._refuse_when_closing()
            late = "the client has gone" if client_gone.done() else "the FUSE program did not answer INIT in time"
            raise Refused(f"mount failed: {late if process.is_killed else os.strerror(errno)}", errno)
        self._log_mounted(prepared.request, prepared.peer, prepared.kernel, took)

    def discard_prepared(self, prepared: "PreparedMount") -> None:
        """Close what prepare() has opened and nobody has mounted."""
        if not prepared.is_handed_on:
            prepared.is_handed_on = True
            self._mount.discard(prepared.opened)

    async def _make_room(self) -> None:
        """Refuse a mount where one is served; take one off whose program has died. Needs the lock. Raises Refused."""
        if (process := self._mount.process) is not None:
            if not process.is_killed:
                raise Refused(f"mount failed: {os.strerror(EBUSY)}", EBUSY)
            await self._end_process(process)
        try:
            self._mount.put_right()
        except OSError as error:
            raise _mount_failed(error) from None
        if self._mount.record is None:
            return
        if not await self._mount.is_dead():
            raise Refused(f"mount failed: {os.strerror(EBUSY)}", EBUSY)
        await self._take_off(plain=False)

    async def _end_process(self, process: MountProcess) -> None:
        try:
            await self._mount.end_process(process)
        except TimeoutError:
            raise Refused(f"mount failed: {os.strerror(EBUSY)}", EBUSY) from None

    def _log_mounted(self, request: MountRequest, peer: Peer, kernel: MountArguments, took: Timer) -> None:
        self._log.activity(
            f"mounted {os.fsdecode(kernel.fstype)} {os.fsdecode(kernel.source)!r} for uid {peer.uid}, pid {peer.pid}, "
            f"asked for at {os.fsdecode(from_wire(request.mountpoint))!r}, in {took.stop()}"
        )

    async def unmount(self, request: UnmountRequest) -> None:
        """Unmount for a client. Raises Refused, with EINVAL where the mount is not the one that it means."""
        mountpoint = from_wire(request.mountpoint)
        async with self._mount.lock:
            self._refuse_when_closing()
            if self._mount.unmounted_after_end(mountpoint):
                return
            record = self._mount.record
            if record is None or (mountpoint != record.mountpoint and request.device != record.device):
                raise Refused(f"not mounted: {os.fsdecode(mountpoint)!r}", EINVAL)
            await self._take_off(plain=not request.lazy)
            self._mount.unmounted_after_end(record.mountpoint)  # its program had died, and that was not noticed yet
        self._log.activity("unmounted, as the pod asked for")

    def _refuse_when_closing(self) -> None:
        if self.is_closing:
            raise Refused("the volume is being unpublished", EAGAIN)

    async def _take_off(self, plain: bool) -> None:
        try:
            await self._mount.take_off(plain)
        except TimeoutError:
            raise Refused("the FUSE file system could not be unmounted in time", EBUSY) from None
        except OSError as error:
            raise Refused(str(error.strerror), error.errno or EINVAL) from None


def _mount_failed(error: OSError) -> Refused:
    return Refused(f"mount failed: {error.strerror}", error.errno or EINVAL)
