"""What containers ask of one volume: mounts, at once or when their program is ready to answer INIT, and unmounts."""

import asyncio
import os
from dataclasses import dataclass
from errno import EAGAIN, EBUSY, EINVAL
from functools import partial
from typing import Any

from driver.linux.programinfo import Program, program_behind
from driver.model import limits
from driver.model.peer import Peer
from driver.model.policy import MountArguments, NotMounted, Refused, VolumePolicy, mount_arguments
from driver.model.state import Detach
from driver.mounts.attempt import MountAttempt
from driver.mounts.device import OpenDevice
from driver.mounts.ownership import may_unmount
from driver.observe.logs import VolumeLog, shown
from driver.observe.metrics import Operation, Timer
from driver.volumes.mounts import VolumeMounts
from fusermount3_proxy.wire.protocol import FindRequest, MountRequest, UnmountRequest, from_wire


@dataclass
class PreparedMount:
    """A /dev/fuse that a container has, and that is mounted when it says so (pods.handler.Prepared)."""

    requests: "VolumeRequests"
    request: MountRequest
    peer: Peer
    arguments: MountArguments
    opened: OpenDevice
    is_handed_on: bool = False  # `opened` is closed, or the attempt closes it when mount(2) has returned

    @property
    def fd(self) -> int:
        """Return the fd that serves the mount, for the container."""
        return self.opened.fd

    async def mount(self, client_gone: "asyncio.Future[None]") -> None:
        """Mount it, unless `client_gone` is settled before the program has answered INIT. Raises Refused."""
        await self.requests.mount_prepared(self, client_gone)

    def discard(self) -> None:
        """Close it, unless mount() was called."""
        if not self.is_handed_on:
            self.is_handed_on = True
            self.requests.mounts.discard(self.opened)


class VolumeRequests:
    """Serves the requests for one volume, one after another (pods.handler.Handler)."""

    def __init__(self, mounts: VolumeMounts, policy: VolumePolicy, log: VolumeLog) -> None:
        self.mounts = mounts
        self.is_closing = False  # set by unpublish; all further requests are refused
        self._policy = policy
        self._log = log
        self._program: Program | None = None  # which has mounted; None where that is not known, as after a restart of the driver

    async def mount(self, request: MountRequest, peer: Peer) -> int:
        """Mount, and return the fd that serves the mount. Raises Refused."""
        async with self.mounts.place.lock:
            arguments = await self._admit(request, peer)
            took = Timer(Operation.MOUNT)
            self._program = program_behind(peer.pid)
            try:
                fd = await self.mounts.mount(from_wire(request.mountpoint), arguments, peer.uid)
            except TimeoutError:
                raise _busy() from None
            except OSError as error:
                raise _mount_failed(error) from None
        try:
            self._log_mounted(request, peer, arguments, took)
        except BaseException:
            os.close(fd)  # no program has it, so the mount ends as that of a dead program does
            raise
        return fd

    async def prepare(self, request: MountRequest, peer: Peer) -> PreparedMount:
        """Open a /dev/fuse for a container that says later when to mount it (sync-init). Raises Refused.

        This does not reserve the volume: another program may mount first.
        """
        async with self.mounts.place.lock:
            arguments = await self._admit(request, peer)
            try:
                return PreparedMount(self, request, peer, arguments, self.mounts.open_device())
            except OSError as error:
                raise _mount_failed(error) from None

    async def mount_prepared(self, prepared: PreparedMount, client_gone: "asyncio.Future[None]") -> None:
        """Mount what prepare() has opened, as long as the container waits. Raises Refused."""
        async with self.mounts.place.lock:
            self._refuse_when_closing()
            await self._make_room()
            mountpoint = from_wire(prepared.request.mountpoint)
            took = Timer(Operation.MOUNT)
            self._program = program_behind(prepared.peer.pid)
            try:
                attempt = self.mounts.begin_mount(prepared.opened, mountpoint, prepared.arguments, prepared.peer.uid)
            except OSError as error:
                raise _mount_failed(error) from None
            prepared.is_handed_on = True
        # Without the lock: the program may take its time, and unpublish must not wait for it.
        first: set[asyncio.Future[Any]] = {attempt.ended, client_gone}
        await asyncio.wait(first, timeout=limits.SYNC_MOUNT_WAIT, return_when=asyncio.FIRST_COMPLETED)
        if not attempt.ended.done():
            await self._end_attempt(attempt)
        errno = attempt.ended.result()
        if errno != 0:
            self._refuse_when_closing()
            late = "the client has gone" if client_gone.done() else "the FUSE program did not answer INIT in time"
            raise Refused(f"mount failed: {late if attempt.is_given_up else os.strerror(errno)}", errno)
        self._log_mounted(prepared.request, prepared.peer, prepared.arguments, took)

    async def unmount(self, request: UnmountRequest, peer: Peer) -> None:
        """Unmount. Raises Refused, with EINVAL where the mount is not the one that the request names, or is another user's."""
        mountpoint = from_wire(request.mountpoint)
        async with self.mounts.place.lock:
            self._refuse_when_closing()
            if self.mounts.forget_left(mountpoint):
                return
            life = self.mounts.current
            if life is None:
                self._end_detached(request, peer)
                return
            is_meant = mountpoint == life.mount.mountpoint or request.device == life.mount.device_number
            if not is_meant or not may_unmount(peer, life.mount):
                raise Refused(f"not mounted: {os.fsdecode(mountpoint)!r}", EINVAL)
            await self._detach(Detach.LAZY if request.lazy else Detach.PLAIN)
            self.mounts.forget_left(life.mount.mountpoint)  # where the program was dead, and the driver had not noticed it
        self._log.activity(f"unmounted{' lazily' if request.lazy else ''}, as the pod asked for")

    def _end_detached(self, request: UnmountRequest, peer: Peer) -> None:
        """Carry out an unmount where nothing is mounted: a plain one ends what was unmounted lazily. Raises Refused."""
        mountpoint = from_wire(request.mountpoint)
        text = f"not mounted: {os.fsdecode(mountpoint)!r}"
        if request.lazy or not self.mounts.has_detached(mountpoint):
            raise NotMounted(text)
        if not self.mounts.end_detached(mountpoint, partial(may_unmount, peer)):
            raise Refused(text)
        self._log.activity("a lazily unmounted file system is ended, as the pod asked for")

    async def abort(self) -> bool:
        """End the mount and what was unmounted lazily, although they are in use. Return whether any was ended. Raises Refused."""
        async with self.mounts.place.lock:
            self._refuse_when_closing()
            is_any_ended = self.mounts.end_detached()
            if self.mounts.current is None:
                return is_any_ended
            await self._detach(Detach.FORCED)
        return True

    def find(self, request: FindRequest) -> bool:
        """Return whether an unmount that names this mountpoint and device would be for this volume.

        Device numbers are unique, so one that is given decides. A mountpoint may be that of several volumes' mounts, in different
        containers.
        """
        life = self.mounts.current
        if request.device is not None:
            return life is not None and request.device == life.mount.device_number
        mountpoint = from_wire(request.mountpoint)
        if life is None:
            return mountpoint == self.mounts.past.left or self.mounts.has_detached(mountpoint)
        return mountpoint == life.mount.mountpoint

    async def _admit(self, request: MountRequest, peer: Peer) -> MountArguments:
        """Return the arguments of the mount, when nothing else is mounted. Needs the lock. Raises Refused."""
        self._refuse_when_closing()
        arguments = mount_arguments(self._policy, request.options, peer.uid, peer.gid)
        await self._make_room()
        return arguments

    async def _make_room(self) -> None:
        """Refuse where a program serves the volume; detach the mount of one that is dead. Needs the lock. Raises Refused."""
        place = self.mounts.place
        if (attempt := place.attempt) is not None:
            if not attempt.is_given_up:
                raise _busy()
            await self._end_attempt(attempt)
        try:
            await self.mounts.repair()
        except TimeoutError:
            raise _busy() from None
        except OSError as error:
            raise _mount_failed(error) from None
        life = self.mounts.current
        if life is None:
            if place.is_busy:  # a placeholder that is mounted late would lie over the program's mount
                raise _busy()
            return
        if not await life.is_dead():
            raise _busy(f": {self._holder()}")
        await self._detach(Detach.FORCED)

    async def _end_attempt(self, attempt: MountAttempt) -> None:
        try:
            await self.mounts.place.end_attempt(attempt)
        except TimeoutError:
            raise _busy() from None

    async def _detach(self, how: Detach) -> None:
        assert self.mounts.current is not None
        try:
            await self.mounts.current.detach(how)
        except TimeoutError:
            raise Refused("the FUSE file system could not be unmounted in time", EBUSY) from None
        except OSError as error:
            raise Refused(str(error.strerror), error.errno or EINVAL) from None

    def _refuse_when_closing(self) -> None:
        if self.is_closing:
            raise Refused("the volume is being unpublished", EAGAIN)

    def _holder(self) -> str:
        """Return who has mounted and when."""
        since = self.mounts.past.since_text
        return f"mounted since {since}" if self._program is None else f"{shown(str(self._program))} has mounted it since {since}"

    def _log_mounted(self, request: MountRequest, peer: Peer, arguments: MountArguments, took: Timer) -> None:
        self._log.activity(
            f"mounted {os.fsdecode(arguments.fstype)} {os.fsdecode(arguments.source)!r} for uid {peer.uid}, pid {peer.pid}, "
            f"asked for at {os.fsdecode(from_wire(request.mountpoint))!r}, in {took.stop()}"
        )


def _busy(holder: str = "") -> Refused:
    return Refused(f"mount failed: {os.strerror(EBUSY)}{holder}", EBUSY)


def _mount_failed(error: OSError) -> Refused:
    return Refused(f"mount failed: {error.strerror}", error.errno or EINVAL)
