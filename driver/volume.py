"""One published volume: its target, its placeholder, its sockets, and the FUSE mount that comes and goes on it.

    waiting ── a client mounts ──> mounted ── -u, or the program's death ──> waiting
                                      └── the program is gone, its mount is not yet ──> dead ──> waiting

A published volume and a FUSE mount are two things: today a volume has one mount at the most, at its target.
"""

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from errno import EAGAIN, EBUSY, EEXIST, EINVAL, ENOTEMPTY

from driver import bounded, fusemount
from driver.closewatch import CloseWatch
from driver.errors import Code, VolumeError
from driver.fdserver import FdServer, Peer
from driver.fusemount import FuseMount, Workspace
from driver.logs import VolumeLog
from driver.paths import VolumePaths
from driver.podsockets import NameTaken, NoDirectory, PodSockets
from driver.policy import Refused, VolumePolicy, kernel_mount
from fusermount3_proxy import limits
from fusermount3_proxy.mountinfo import Mount
from fusermount3_proxy.protocol import MountRequest, UnmountRequest, from_wire

_TARGET_MODE = 0o755
# __fput() tells inotify before it drops the lock, so the first look may come too early.
_DEATH_LOOKS = (0, 0.001, 0.01, 0.1, 0.5)


class State(Enum):
    """What an application sees at the target."""

    WAITING = "waiting"  # the placeholder
    MOUNTED = "mounted"  # the FUSE file system
    DEAD = "dead"  # ENOTCONN, for as long as the driver needs to notice and take it off


@dataclass(frozen=True)
class Publication:
    """What publish was asked for; the same target again with another one is ALREADY_EXISTS.

    `pod` is NAMESPACE/NAME for the log, "" without Kubernetes.
    """

    volume_id: str
    paths: VolumePaths
    socket_name: str
    read_only: bool
    mount_flags: tuple[str, ...]
    mount_options: str
    pod: str


class Volume:
    """A volume from publish to unpublish. Calls of one volume run one after another."""

    def __init__(
        self, publication: Publication, policy: VolumePolicy, workspace: Workspace, watch: CloseWatch, on_change: Callable[["Volume"], None]
    ) -> None:
        """`on_change` is called when the mount has changed, for the record of it."""
        self.publication = publication
        self.policy = policy
        self.log = VolumeLog(publication.pod, publication.volume_id)
        self.state = State.WAITING
        self.mount_record: FuseMount | None = None
        self.is_closing = False
        self._workspace = workspace
        self._watch = watch
        self._on_change = on_change
        self._watch_id: int | None = None
        self._target = publication.paths.target_path
        self._lock = asyncio.Lock()
        self._sockets: PodSockets | None = None
        self._server: FdServer | None = None
        self._reapers: set[asyncio.Task[None]] = set()

    # ---- published and unpublished

    def publish(self) -> None:
        """Make the target, its placeholder and the sockets. Raises VolumeError, and then leaves nothing behind."""
        self._listen()
        try:
            self._make_target()
        except BaseException:
            self._stop_listening()
            raise
        for warning in self.policy.warnings:
            self.log.warning(warning)
        self.log.info(f"published at {self._target}, {self.state.value}")

    def restore(self, known: FuseMount | None, stack: list[Mount]) -> bool:
        """Take up a volume that a former driver published; `known` is the mount that it made last.

        What is at the target (`stack`, fusemount.mounts_at) decides. Returns False where the target is gone, and the
        volume with it.
        """
        if not stack and not os.path.isdir(self._target):
            return False
        try:
            if not stack:
                fusemount.mount_placeholder(self._target)
            elif stack[-1].is_fuse:
                same = known is not None and known.device == stack[-1].device
                self._set_mount(known if known is not None and same else fusemount.adopt(stack))
        except OSError as error:
            self.log.error(f"cannot look after {self._target}: {error}")
        try:
            self._listen()
        except VolumeError as error:
            # The pod may be gone already; kubelet's republish or unpublish comes.
            self.log.warning(f"not listening: {error}")
        if self.mount_record is not None:
            self._reap_if_not_held(self.mount_record)
        self.log.info(f"taken up again at {self._target}, {self.state.value}")
        return True

    def republish(self) -> None:
        """kubelet's periodic publish of a volume that is published: look after what the pod or kubelet may have changed.

        Returns no error: kubelet could remove the target of a volume whose publish failed.
        """
        if self._sockets is None or not self._sockets.are_in_place(self.publication.paths, self.publication.socket_name):
            self.log.warning("the sockets in the emptyDir are gone or replaced; making them again")
            self._stop_listening()
            try:
                self._listen()
            except VolumeError as error:
                self.log.error(f"cannot make the sockets again: {error}")
        if self.mount_record is not None:
            self._reap_if_not_held(self.mount_record)

    async def unpublish(self) -> None:
        """Take everything away. Raises VolumeError; a second call goes on where the first one stopped."""
        self.is_closing = True
        self._stop_listening()
        async with self._lock:
            try:
                await self._take_off(plain=False)
                fusemount.detach_all(self._target)
                # A directory with something in it is not ours to delete: rmdir refuses.
                os.rmdir(self._target)
            except FileNotFoundError:
                pass
            except TimeoutError:
                raise VolumeError(
                    Code.DEADLINE_EXCEEDED, f"{self._target}: the FUSE file system could not be unmounted within {limits.TAKE_OFF_WAIT:g} s"
                ) from None
            except OSError as error:
                raise unpublish_error(self._target, error) from None
        self.log.info("unpublished")

    def release(self) -> None:
        """The driver stops: stop listening, and leave target, mount and sockets as they are for the next driver."""
        self._unwatch()
        if self._server is not None:
            self._server.close()
            self._server = None

    def _make_target(self) -> None:
        """Make the directory and its placeholder. What a former driver left there is taken over."""
        target = self._target
        created = False
        try:
            os.makedirs(os.path.dirname(target), mode=0o750, exist_ok=True)
            try:
                os.mkdir(target)
                created = True
            except FileExistsError:
                stack = fusemount.mounts_at(target)
                if stack and stack[-1].is_fuse:
                    self._set_mount(fusemount.adopt(stack))
                    self.log.info("taking over the FUSE file system that is mounted there already")
                    return
                if stack and fusemount.is_placeholder(stack[-1]):
                    return
                if stack:
                    text = f"{target}: a {stack[-1].fstype} file system of something else is mounted there"
                    raise VolumeError(Code.FAILED_PRECONDITION, text) from None
            os.chmod(target, _TARGET_MODE)
            fusemount.mount_placeholder(target)
        except OSError as error:
            if created:
                os.rmdir(target)
            raise VolumeError(Code.INTERNAL, f"cannot make the target {target}: {error}") from None

    def _listen(self) -> None:
        publication = self.publication
        try:
            self._sockets = PodSockets.listen(publication.paths, publication.socket_name)
        except NoDirectory as error:
            raise VolumeError(
                Code.FAILED_PRECONDITION,
                f"no directory for the fd-passing socket, {error}: does fdPassingEmptyDirName name an emptyDir volume of this pod?",
            ) from None
        except NameTaken as error:
            raise VolumeError(Code.FAILED_PRECONDITION, str(error)) from None
        except OSError as error:
            raise VolumeError(Code.INTERNAL, f"cannot make the fd-passing sockets: {error}") from None
        self._server = FdServer(self, self._sockets, publication.paths.volume_name, self.log)

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._sockets is not None:
            self._sockets.close(self.publication.paths, self.publication.socket_name)
            self._sockets = None

    # ---- the pod's requests (fdserver.Handler)

    async def mount(self, request: MountRequest, peer: Peer) -> int:
        """Mount for a client, and return the fd. Raises Refused."""
        async with self._lock:
            self._refuse_when_closing()
            if request.sync_init:
                raise Refused("--sync-init is not supported by this driver")
            if self.mount_record is not None:
                if not await self._is_dead(self.mount_record):
                    raise Refused(f"mount failed: {os.strerror(EBUSY)}", EBUSY)
                await self._take_off_or_refuse(plain=False)
            kernel = kernel_mount(self.policy, request.options, peer.uid, peer.gid)
            try:
                record, fd = fusemount.mount_fuse(self._workspace.nodes, self._target, from_wire(request.mountpoint), kernel)
            except OSError as error:
                raise Refused(f"mount failed: {error.strerror}", error.errno or EINVAL) from None
            self._set_mount(record)
        self.log.info(f"mounted {record.fstype} {record.source!r} for uid {peer.uid}, pid {peer.pid}, asked for at {record.mountpoint!r}")
        return fd

    async def unmount(self, request: UnmountRequest) -> None:
        """Unmount for a client. Raises Refused, with EINVAL where the mount is not the one that it means."""
        async with self._lock:
            self._refuse_when_closing()
            record = self.mount_record
            if record is None or (from_wire(request.mountpoint) != record.mountpoint and request.device != record.device):
                raise Refused(f"not mounted: {from_wire(request.mountpoint)!r}", EINVAL)
            await self._take_off_or_refuse(plain=not request.lazy)
        self.log.info("unmounted, as the pod asked for")

    def _refuse_when_closing(self) -> None:
        if self.is_closing:
            raise Refused("the volume is being unpublished", EAGAIN)

    async def _take_off_or_refuse(self, plain: bool) -> None:
        try:
            await self._take_off(plain)
        except TimeoutError:
            raise Refused("the FUSE file system could not be unmounted in time", EBUSY) from None
        except OSError as error:
            raise Refused(str(error.strerror), error.errno or EINVAL) from None

    # ---- the FUSE mount

    def _set_mount(self, record: FuseMount) -> None:
        self.mount_record = record
        self.state = State.MOUNTED
        if record.node is not None:
            try:
                self._watch_id = self._watch.add(self._workspace.nodes.path(record.node), self._callback(record))
            except OSError as error:
                self.log.error(f"the mount's end will be noticed at a republish only: {error}")
        self._on_change(self)

    def _callback(self, record: FuseMount) -> Callable[[], None]:
        return lambda: self._reap_later(record)

    def _unwatch(self) -> None:
        if self._watch_id is not None:
            self._watch.remove(self._watch_id)
            self._watch_id = None

    async def _take_off(self, plain: bool) -> None:
        """Unmount the FUSE mount, if there is one. Raises OSError, TimeoutError."""
        record = self.mount_record
        if record is None:
            return
        await bounded.run(limits.TAKE_OFF_WAIT, lambda: fusemount.take_off(self._workspace, self._target, record, plain))
        self._unwatch()
        if record.node is not None:
            self._workspace.nodes.remove(record.node)
        self.mount_record = None
        self.state = State.WAITING
        self._on_change(self)

    async def _is_dead(self, record: FuseMount) -> bool:
        """Whether nobody serves the mount any more.

        The lock of the device node says that somebody does, and nobody can take it off but the holders of the fd. A
        hostile program could unlock its own, and a cloned fd has no lock, so its absence is confirmed by the kernel.
        """
        if record.node is not None and self._workspace.nodes.is_held(record.node):
            return False
        try:
            return await bounded.run(limits.PROBE_WAIT, lambda: fusemount.is_gone(self._target, record))
        except TimeoutError:
            return False

    def _reap_if_not_held(self, record: FuseMount) -> None:
        if record.node is None or not self._workspace.nodes.is_held(record.node):
            self._reap_later(record)

    def _reap_later(self, record: FuseMount) -> None:
        task = asyncio.get_running_loop().create_task(self._reap(record))
        self._reapers.add(task)
        task.add_done_callback(self._reapers.discard)

    async def _reap(self, record: FuseMount) -> None:
        """Take a mount off whose program may have died."""
        for delay in _DEATH_LOOKS:
            await asyncio.sleep(delay)
            if record.node is None or not self._workspace.nodes.is_held(record.node):
                break
        async with self._lock:
            if self.mount_record is not record or self.is_closing or not await self._is_dead(record):
                return
            self.state = State.DEAD
            try:
                await self._take_off(plain=False)
            except (OSError, TimeoutError) as error:
                self.log.error(f"the FUSE program has gone, and its mount cannot be taken off: {error}")
                return
        self.log.info("the FUSE program has gone; its mount is taken off, and another one can mount")


def unpublish_error(target: str, error: OSError) -> VolumeError:
    """What to say where a target cannot be removed."""
    if error.errno in (ENOTEMPTY, EEXIST):
        return VolumeError(
            Code.FAILED_PRECONDITION, f"{target} is not empty; its files are not deleted: look at them and remove them by hand"
        )
    return VolumeError(Code.INTERNAL, f"cannot remove {target}: {error}")
