"""What the containers of one allocation ask at its socket: mounts and unmounts at mountpoints of their own."""

import asyncio
import logging
import os
from collections.abc import Coroutine
from dataclasses import replace
from errno import EBUSY, EINVAL, EPROTO
from typing import Any

from driver.blocking.processes import NotAsked
from driver.devices import namespace, rules
from driver.devices.kernel import CallersKernel
from driver.devices.mount import DeviceMount, refused
from driver.devices.prepared import PreparedDeviceMount
from driver.devices.records import DeviceRecord
from driver.devices.shared import Shared, by_container, intent, shown
from driver.devices.visits import Late
from driver.linux.programinfo import engines_container
from driver.model import limits
from driver.model.peer import Peer
from driver.model.policy import DetachedArguments, NotMounted, Refused, detached_arguments
from driver.model.state import Detach, End
from driver.mounts.connections import Connection
from driver.mounts.detached import DetachedLife
from driver.mounts.device import OpenDevice
from driver.mounts.ownership import may_unmount
from driver.observe import metrics
from driver.observe.logs import VolumeLog
from driver.observe.metrics import Operation, Timer
from fusermount3_proxy.wire import fdpass
from fusermount3_proxy.wire.protocol import MOUNTPOINT_FD, FindRequest, MountRequest, UnmountRequest, from_wire

_WOKEN = 8  # mounts that may be the next one beneath


class DeviceRequests:
    """Serves the requests of one allocation (pods.handler.Handler)."""

    def __init__(self, allocation: str, shared: Shared, log: VolumeLog, is_shared: bool) -> None:
        """`is_shared` is whether several containers may have the allocation; then each may have as many mounts as one alone."""
        self._is_shared = is_shared
        self.allocation = allocation
        self._shared = shared
        self._log = log
        self.mounts: list[DeviceMount] = []
        self._detached: dict[DetachedLife, str] = {}  # with their containers
        self._left: dict[bytes, None] = {}  # mountpoints of programs that have died; the oldest is first
        self._reserved = 0  # mounts that are being made
        self._background: set[asyncio.Task[None]] = set()

    async def mount(self, request: MountRequest, peer: Peer) -> int:
        """Mount at the mountpoint whose fd comes with the request, and return the fd that serves the mount. Raises Refused."""
        arguments = self._admit(request)
        self._reserved += 1
        try:
            return await self._mount(request, peer, arguments)
        finally:
            self._reserved -= 1

    async def _mount(self, request: MountRequest, peer: Peer, arguments: DetachedArguments) -> int:
        took = Timer(Operation.MOUNT)
        opened = self._open_device()
        record = self._intent(request, peer, arguments, opened)
        is_known = False
        try:
            values = (
                peer.pid,
                shown(request),
                arguments.options,
                arguments.attributes,
                by_container(self._own_devices()),
                self._shared.mounts_max,
            )
            answer, fds = await self._shared.visits.mount(
                self._share(peer), limits.VISIT_WAIT, namespace.mount, *values, fds=[peer.connection, opened.fd]
            )
            fd = self._mounted(record, answer, fds)
            is_known = True
        except NotAsked as error:
            raise Refused(f"mount failed: earlier mounts of this fuse device have not ended yet: {error.strerror}", EBUSY) from None
        except Late as late:
            is_known = True
            self.in_background(self._take_off_late(record, late))
            raise Refused("mount failed: the mountpoint is kept locked by another program", EBUSY) from None
        except OSError as error:
            self._log.debug(f"mount failed: {error}")
            raise Refused(f"mount failed: {error.strerror}", error.errno or EINVAL) from None
        finally:
            opened.close()
            if not is_known:
                self._forget(record)
                self._shared.workspace.devices.remove(opened.name)
        self._log_mounted(request, peer, arguments, took)
        return fd

    async def prepare(self, request: MountRequest, peer: Peer) -> PreparedDeviceMount:
        """Open a /dev/fuse for a container that says later when to mount it (sync-init). Raises Refused."""
        arguments = self._admit(request)
        opened = self._open_device()
        is_kept = False
        try:
            values = (peer.pid, shown(request), by_container(self._own_devices()), self._shared.mounts_max)
            answer, fds = await self._shared.visits.mount(
                self._share(peer), limits.VISIT_WAIT, namespace.prepare, *values, fds=[peer.connection, opened.fd]
            )
            result, *rest = answer
            if result == namespace.REFUSED:
                raise refused(rest)
            target, fd = fds
            is_kept = True
            return PreparedDeviceMount(self, self._shared, request, peer, arguments, opened.name, fd, target)
        except OSError as error:
            raise Refused(f"mount failed: {error.strerror}", error.errno or EINVAL) from None
        finally:
            opened.close()
            if not is_kept:
                self._shared.workspace.devices.remove(opened.name)

    async def mount_prepared(self, prepared: PreparedDeviceMount, client_gone: "asyncio.Future[None]") -> None:
        """Mount what prepare() has opened, as long as the container waits. Raises Refused."""
        arguments, request, peer = prepared.arguments, prepared.request, prepared.peer
        self._admit(request)
        took = Timer(Operation.MOUNT)
        record = self._intent(request, peer, arguments, OpenDevice(prepared.name, prepared.fd))
        values = (peer.pid, shown(request), arguments.options, arguments.attributes)
        fds = [peer.connection, prepared.fd, prepared.target]
        is_known = is_late = False
        self._reserved += 1
        try:
            answer, received = await self._shared.visits.mount(
                self._share(peer), limits.SYNC_MOUNT_WAIT, namespace.attach, *values, fds=fds, give_up=client_gone
            )
            os.close(self._mounted(record, answer, received))  # the program has one
            is_known = True
        except Late as late:
            is_late = True
            self.in_background(self._take_off_late(record, late))
            reason = "the client has gone" if client_gone.done() else "the FUSE program did not answer INIT in time"
            raise Refused(f"mount failed: {reason}", EINVAL) from None
        except OSError as error:
            raise Refused(f"mount failed: {error.strerror}", error.errno or EINVAL) from None
        finally:
            self._reserved -= 1
            prepared.is_handed_on = True
            prepared.close()
            if not is_known and not is_late:
                self._forget(record)
                self._shared.workspace.devices.remove(prepared.name)
        self._log_mounted(request, peer, arguments, took)

    def _admit(self, request: MountRequest) -> DetachedArguments:
        """Return the arguments of a mount. Raises Refused."""
        if request.fds != (MOUNTPOINT_FD,):
            raise Refused(f"bad request: a mount at a fuse device comes with one file descriptor, {MOUNTPOINT_FD}", EPROTO)
        arguments = detached_arguments(request.options, self._shared.may_allow_other)
        if not self._is_shared and len(self._own_devices()) + self._reserved >= self._shared.mounts_max:
            too_many = rules.too_many_mounts(self._shared.mounts_max)
            raise Refused(too_many.text, too_many.errno)
        return arguments

    def _log_mounted(self, request: MountRequest, peer: Peer, arguments: DetachedArguments, took: Timer) -> None:
        what = f"{arguments.fstype} {arguments.source!r} for uid {peer.uid}, pid {peer.pid}, at {shown(request)!r}"
        self._log.activity(f"mounted {what}, in {took.stop()}")

    def _open_device(self) -> OpenDevice:
        try:
            # Everybody may open it: a process opens it again in the user namespace that the mount will belong to.
            return self._shared.workspace.devices.open(mode=0o666)
        except OSError as error:
            raise Refused(f"mount failed: {error.strerror}", error.errno or EINVAL) from None

    def _intent(self, request: MountRequest, peer: Peer, arguments: DetachedArguments, opened: OpenDevice) -> DeviceRecord:
        """Record what is about to be mounted, and return the record."""
        record = intent(self.allocation, request, peer, arguments, opened.name)
        self._save(record)
        return record

    def _share(self, peer: Peer) -> str:
        """Return who has a process to answer for: one container of several with this device must not keep the others from mounting."""
        return f"{self.allocation} {engines_container(peer.pid)}"

    def _own_devices(self) -> list[tuple[str, str]]:
        """Return the device numbers of all mounts with their containers."""
        # Those that were unmounted lazily count while they are in use: a container can keep them, and they take memory of the node's.
        mounted = [(mount.record.mount.device_number, mount.container) for mount in self.mounts]
        return mounted + [(life.mount.device_number, container) for life, container in self._detached.items()]

    def _mounted(self, record: DeviceRecord, answer: tuple[Any, ...], fds: list[int]) -> int:
        """Follow what a process has mounted. Return the fd that serves it. Raises Refused, and OSError where it has ended already."""
        result, *values = answer
        if result == namespace.REFUSED:
            raise refused(values)
        device_number, uid, gid, is_root, number, container = values
        fd, kept, *process = fds
        try:
            # The fd is open here, so the connection lives, and the number is its.
            connection = self._shared.workspace.connections.open(device_number)
        except OSError:
            fdpass.close_all(fds)
            raise
        kernel = CallersKernel(self._shared.workspace, self._shared.files)
        kernel.own(connection)
        whole = replace(
            record,
            mount=replace(record.mount, device_number=device_number),
            namespace=number,
            container=container,
            uid=uid,
            gid=gid,
            is_root=is_root,
        )
        metrics.mounted(is_recovery=False)
        self._follow(DeviceMount(whole, kept, kernel, self._shared.visits, self._log, self._ended), *process)
        self._left.pop(record.mount.mountpoint, None)
        return fd

    def _follow(self, mount: DeviceMount, process: int = -1) -> None:
        self.mounts.append(mount)
        self._save(mount.record)
        if process >= 0:
            self._shared.containers.add(mount, process)
        mount.begin()

    def _ended(self, mount: DeviceMount, end: End, connection: Connection | None) -> None:
        self.mounts.remove(mount)
        self._shared.containers.remove(mount)
        self._forget(mount.record)
        metrics.unmounted(end)
        if end is End.DIED:
            self._left[mount.mountpoint] = None
            if len(self._left) > limits.DEVICE_LEFT_MAX:
                del self._left[next(iter(self._left))]
        value = mount.record.mount
        if connection is None and end is End.ASKED:
            # A copy of its mount namespace may have it still (unshare(1)). Its device node has gone with the mount.
            connection, value = mount.kernel.take_if_used(value.device_number), replace(value, device=None)
        mount.kernel.close()
        if connection is not None:
            life = DetachedLife(value, connection, mount.kernel, self._log, self._forget_detached)
            self._detached[life] = mount.container
            life.begin()
        self.in_background(mount.place.drop())

        # It may have kept the driver from taking off the one beneath it. Mounts that are made at once are in any order.
        beneath = [each for each in self.mounts if each.mountpoint == mount.mountpoint]
        for each in beneath[-_WOKEN:]:
            each.life.check_unless_held()

    async def _take_off_late(self, record: DeviceRecord, late: Late) -> None:
        """Take off what is mounted after its client has got its refusal.

        Otherwise a container could pile up dead mounts: by keeping the directory locked for a while, as often as it likes.
        """
        answer, fds = await late.late()
        try:
            if answer is not None:
                os.close(self._mounted(record, answer, fds))  # a mount whose program has ended is taken off
                return
        except (Refused, OSError):
            pass
        self._forget(record)
        assert record.mount.device is not None
        self._shared.workspace.devices.remove(record.mount.device)

    def _forget_detached(self, life: DetachedLife) -> None:
        del self._detached[life]

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Let something go on that nobody waits for."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def unmount(self, request: UnmountRequest, peer: Peer) -> None:
        """Unmount what the container has mounted here. Raises Refused, with EINVAL where it has not."""
        mountpoint = from_wire(request.mountpoint)
        path = os.fsdecode(mountpoint)
        mount = self._meant(mountpoint, request.device)
        if mount is None:
            self._expect_left(mountpoint)
            return
        if not may_unmount(peer, mount.record.mount):
            raise Refused(f"not mounted: {path!r}", EINVAL)
        async with mount.place.lock:
            if mount.life.has_ended:
                self._expect_left(mountpoint)
                return
            mount.place.peer, mount.place.path = peer, mountpoint if request.device is None else None
            try:
                await mount.life.detach(Detach.LAZY if request.lazy else Detach.PLAIN)
            except TimeoutError:
                raise Refused("the FUSE file system could not be unmounted in time", EBUSY) from None
            except OSError as error:
                self._log.debug(f"unmount failed: {error}")
                raise Refused(str(error.strerror), error.errno or EINVAL) from None
            finally:
                mount.place.peer = mount.place.path = None
            self._left.pop(mountpoint, None)
        await mount.place.drop()  # what comes next may unmount the file system that the mountpoint is on
        self._log.activity(f"unmounted {path!r}{' lazily' if request.lazy else ''}, as the container asked for")

    def _expect_left(self, mountpoint: bytes) -> None:
        """Let the first unmount after the death of a program succeed. Raises NotMounted where nothing was mounted, and at later ones.

        libfuse's helper would unmount a dead mount; the driver has done that already.
        """
        if mountpoint not in self._left:
            raise NotMounted(f"not mounted: {os.fsdecode(mountpoint)!r}")
        del self._left[mountpoint]

    def find(self, request: FindRequest) -> bool:
        """Return whether an unmount that names this mountpoint and device would be for this allocation."""
        mountpoint = from_wire(request.mountpoint)
        return self._meant(mountpoint, request.device) is not None or mountpoint in self._left

    def _meant(self, mountpoint: bytes, device: str | None) -> DeviceMount | None:
        """Return the mount that a request names. The kernel makes sure that it is in the mount namespace of who asks."""
        if device is not None:
            return next((mount for mount in self.mounts if mount.record.mount.device_number == device), None)
        return next((mount for mount in reversed(self.mounts) if mount.mountpoint == mountpoint), None)

    def abort(self) -> bool:
        """End all file systems of the allocation, although they are in use. Return whether there were any. Raises OSError."""
        is_any = bool(self.mounts or self._detached)
        for mount in self.mounts:
            mount.kernel.abort()
        for life in list(self._detached):
            life.abort()
        return is_any

    def adopt(self, record: DeviceRecord) -> None:
        """Follow again what a former driver has mounted."""
        kernel = CallersKernel(self._shared.workspace, self._shared.files)
        try:
            kernel.own(self._shared.workspace.connections.open(record.mount.device_number))
        except OSError:
            pass  # it has ended: the first check finds that, and detaches the mount
        mount = DeviceMount(record, -1, kernel, self._shared.visits, self._log, self._ended)
        self._follow(mount)
        self.in_background(self._open_again(mount))

    async def _open_again(self, mount: DeviceMount) -> None:
        """Find the mount in its container, and watch the container. It is followed meanwhile."""
        try:
            async with mount.place.lock:
                process = await mount.place.reopen()
        except OSError as error:
            self._log.warning(f"a mount of a former driver is not found again yet: {error.strerror or 'it takes too long'}")
        else:
            if not mount.life.has_ended:
                self._shared.containers.add(mount, process)
            elif process >= 0:
                os.close(process)
        mount.life.check_unless_held()

    def stop(self) -> None:
        """Watch no more, and leave the mounts as they are: the driver stops."""
        for mount in self.mounts:
            mount.life.stop()
        for life in self._detached:
            life.stop()

    @property
    def is_busy(self) -> bool:
        """Return whether something is being mounted or unmounted."""
        return self._reserved > 0 or any(mount.place.lock.locked() for mount in self.mounts)

    def _save(self, record: DeviceRecord) -> None:
        try:
            self._shared.records.save(record)
        except OSError as error:
            self._log.trouble(logging.ERROR, f"a mount cannot be recorded, and a restart of the driver would not know it: {error}")

    def _forget(self, record: DeviceRecord) -> None:
        try:
            self._shared.records.delete(record)
        except OSError as error:
            self._log.error(f"the record of a mount cannot be deleted, and is left to the next start of the driver: {error}")
