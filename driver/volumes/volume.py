"""One published volume, from publish to unpublish: its target and its sockets.

A published volume and a FUSE mount are two things: today a volume has one mount at the most, at its target.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from errno import EBUSY, EEXIST, ENOTEMPTY

from driver.blocking.calls import BoundedCall, Bounds
from driver.linux import mounttable
from driver.linux.filewatch import FileWatch
from driver.model import limits
from driver.model.errors import Code, VolumeError
from driver.model.fusemount import FuseMount
from driver.model.policy import VolumePolicy, lacking
from driver.model.publication import Publication
from driver.model.state import Past, State
from driver.mounts import fusemount
from driver.mounts.history import History
from driver.mounts.takeoff import NotOurs
from driver.mounts.targetmount import TargetMount, foreign
from driver.mounts.workspace import Workspace
from driver.observe.logs import VolumeLog
from driver.observe.metrics import Operation, Timer
from driver.observe.troubles import Troubles
from driver.pods.requests import PodRequests
from driver.pods.server import Capacity, FdServer
from driver.pods.sockets import FolderBeneath, NameTaken, NoDirectory, PodSockets, SocketFolder
from fusermount3_proxy.wire.mountinfo import Mount

_ACCEPTED_FDS: tuple[str, ...] = ()  # a volume's requests need none, and the kernel drops those that are attached


class Volume:
    """A volume from publish to unpublish. Calls of one volume run one after another."""

    def __init__(
        self,
        publication: Publication,
        policy: VolumePolicy,
        workspace: Workspace,
        files: FileWatch,
        bounds: Bounds,
        past: Past | None,
        on_change: Callable[["Volume"], None],
    ) -> None:
        """`past` is what a record says; `on_change` is called when the mount has changed, for the record of it."""
        self.publication = publication
        self.target = publication.paths.target_path
        self.policy = policy
        self.log = VolumeLog(publication.pod, publication.volume_id)
        self.history = History(past)
        self.troubles = Troubles(self.log)
        self.examiner = BoundedCall(bounds.questions)  # whoever asks its file system how it is
        self._on_change = on_change
        self._mount = TargetMount(publication.paths, workspace, files, bounds, self.log, self.history, self.troubles, self._mount_changed)
        self._requests = PodRequests(self._mount, policy, self.log)
        self._socket_folder: SocketFolder = FolderBeneath(publication.paths.root, publication.paths.sockets)
        self._sockets: PodSockets | None = None
        self._server: FdServer | None = None
        self._capacity = Capacity()
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def state(self) -> State:
        """What an application sees at the target."""
        return self._mount.state

    @property
    def mount_record(self) -> FuseMount | None:
        """The FUSE mount at the target."""
        return self._mount.record

    @property
    def placeholder(self) -> str | None:
        """The placeholder's identity (mounttable.identity_at), where it is known."""
        return self._mount.placeholder

    @property
    def is_held(self) -> bool:
        """Whether somebody is known to have the fd by which its FUSE mount is served."""
        return self._mount.is_held

    @property
    def is_taking_off(self) -> bool:
        """Whether a thread is unmounting its FUSE mount."""
        return self._mount.is_taking_off

    @property
    def is_closing(self) -> bool:
        """Whether unpublish has begun, and what pods ask is refused."""
        return self._requests.is_closing

    @property
    def accepted_connections(self) -> int:
        """How many connections its sockets have accepted since the driver started."""
        return self._capacity.accepted

    # ---- published and unpublished

    def publish(self) -> None:
        """Make the target, its placeholder and the sockets. Raises VolumeError, and then leaves no mount and no socket."""
        took = Timer(Operation.PUBLISH)
        self._listen()
        try:
            self._make_target()
        except BaseException:
            self._stop_listening()
            raise
        for warning in self.policy.warnings:
            self.log.warning(warning)
        self.log.info(f"published at {self.target}, {self.state.value}, in {took.stop()}")

    def restore(self, known: FuseMount | None, stack: list[Mount]) -> bool:
        """Take up a volume that a former driver published; `known` is the mount that it made last.

        What is at the target (`stack`, mounttable.mounts_at) decides. Returns False where the target is gone, and the
        volume with it.
        """
        if not stack and not os.path.isdir(self.target):
            return False
        try:
            self._take_up(stack, known)
        except VolumeError as error:
            self.troubles.begin("target", str(error))
        except OSError as error:
            self.troubles.begin("target", f"cannot look after {self.target}: {error.strerror}")
        try:
            self._listen()
        except VolumeError as error:
            # The pod may be gone already; kubelet's republish or unpublish comes.
            text = f"not listening: {error}"
            self.troubles.begin("sockets", text, logging.WARNING)
        if known is not None and self.mount_record is None:
            self._mount.missed(known)
        self._mount.look_unless_held()
        self.log.info(f"taken up again at {self.target}, {self.state.value}")
        return True

    def look(self) -> None:
        """Look whether its FUSE program has died."""
        self._mount.look()

    def republish(self) -> None:
        """kubelet's periodic publish of a volume that is published: look after what the pod or kubelet may have changed.

        Returns no error: kubelet could remove the target of a volume whose publish failed.
        """
        try:
            if self._sockets is None or not self._sockets.are_in_place():
                self.log.refusal("the sockets in the emptyDir are gone or replaced; making them again")
                if self._capacity.listener_thread.is_busy:
                    # Or a pod that fills their queues with what blocks, and removes them, would have more of them each time.
                    raise OSError(EBUSY, "the former ones cannot be closed yet")
                self._stop_listening()
                self._listen()
            self.troubles.end("sockets")
        except (OSError, VolumeError) as error:
            self.troubles.begin("sockets", f"cannot look after the sockets: {error}")
        if not self._mount.lock.locked():
            self._look_after_target()
        self._mount.look_unless_held()
        self._mount.renew_sub_paths()

    def _look_after_target(self) -> None:
        try:
            try:
                self._mount.put_right()
            except FileNotFoundError:
                _make_directory(self.target)
                self._mount.put_right()
        except NotADirectoryError:
            self.troubles.begin("target", _no_directory(self.target))
        except OSError as error:
            self.troubles.begin("target", f"cannot look after {self.target}: {error.strerror}")

    async def unpublish(self) -> None:
        """Take everything away. Raises VolumeError; a second call goes on where the first one stopped."""
        self._requests.is_closing = True
        took = Timer(Operation.UNPUBLISH)
        server = self._take_sockets_away()
        if server is not None:
            server.close()
        try:
            await self._remove_target()
        finally:
            # Not before the target is removed, which takes a thread as well. Until they are closed the sockets keep a memory
            # emptyDir busy.
            if server is not None:
                await server.wait_closed()
            if self._closing:
                await asyncio.wait(self._closing)
        self.log.info(f"unpublished in {took.stop()}")

    async def _remove_target(self) -> None:
        async with self._mount.lock:
            if self._mount.process is not None:
                try:
                    await self._mount.end_process(self._mount.process)
                except TimeoutError:
                    pass  # without its target, which goes now, it cannot mount
            try:
                await self._mount.remove_target()
            except FileNotFoundError:
                pass
            except OSError as error:
                raise unpublish_error(self.target, error) from None

    def release(self) -> None:
        """The driver stops: take no more requests, and leave target, mount and sockets as they are for the next one."""
        self._mount.release()
        if self._server is not None:
            self._server.stop()

    def give_up(self) -> None:
        """Nobody will look after it: serve no pod either, and leave target and mount to the next publish."""
        self._mount.release()
        self._stop_listening()

    def _mount_changed(self) -> None:
        self._on_change(self)

    def _make_target(self) -> None:
        """Make the directory and its placeholder. What a former driver left there is taken over."""
        target = self.target
        created = False
        try:
            created = _make_directory(target)
            # Nothing is mounted on a directory that was made just now, and the mount table is long.
            self._take_up([] if created else mounttable.mounts_at(target), None)
        except OSError as error:
            if created:
                os.rmdir(target)
            raise VolumeError(Code.INTERNAL, f"cannot make the target {target}: {error.strerror}") from None

    def _take_up(self, stack: list[Mount], known: FuseMount | None) -> None:
        """Make the target a volume's, whatever is mounted there (`stack`); `known` is what a record says of it.

        Raises OSError, and VolumeError where the file system is something else's.
        """
        if known is not None and mounttable.contains(stack, known.device):
            self._mount.take_over(known)
            if stack[-1].device != known.device:
                raise VolumeError(Code.FAILED_PRECONDITION, foreign(self.target, stack[-1]))
        elif not stack:
            try:
                self._mount.placeholder = fusemount.mount_placeholder(self.target)
            except NotADirectoryError:
                raise VolumeError(Code.FAILED_PRECONDITION, _no_directory(self.target)) from None
        elif fusemount.is_placeholder(stack[-1]):
            self._mount.placeholder = mounttable.identity_at(self.target)
        elif not stack[-1].is_fuse:
            raise VolumeError(Code.FAILED_PRECONDITION, foreign(self.target, stack[-1]))
        else:
            self.history.mounted()  # by the Go plugin's driver, or by one that was killed before it could record it
            self._mount.take_over(fusemount.adopt(stack))
            self.log.info("taking over the FUSE file system that is mounted there already")
        if self.mount_record is not None and self.mount_record.node is None:
            self._tell_what_it_lacks(stack[-1])

    def _tell_what_it_lacks(self, mount: Mount) -> None:
        # Remounting it would take writing away from a program that was promised it.
        if lacks := lacking(self.policy, mount.options, mount.super_options):
            text = f"the FUSE file system that was mounted there before is not {', '.join(lacks)}; it will be when its program mounts again"
            self.troubles.begin("adopted", text, logging.WARNING)

    def _listen(self) -> None:
        publication = self.publication
        try:
            self._sockets = PodSockets.listen(self._socket_folder, publication.socket_name)
        except NoDirectory as error:
            hint = ": does fdPassingEmptyDirName name an emptyDir volume of this pod?" if publication.paths.is_pods else ""
            raise VolumeError(Code.FAILED_PRECONDITION, f"no directory for the fd-passing sockets, {error}{hint}") from None
        except NameTaken as error:
            raise VolumeError(Code.FAILED_PRECONDITION, str(error)) from None
        except OSError as error:
            raise VolumeError(Code.INTERNAL, f"cannot make the fd-passing sockets: {error}") from None
        self._server = FdServer(
            self._requests, self._sockets, publication.paths.volume_name, self.log, self._capacity, accepted_fds=_ACCEPTED_FDS
        )

    def _stop_listening(self) -> None:
        if (server := self._take_sockets_away()) is not None:
            server.close()
            task = asyncio.get_running_loop().create_task(server.wait_closed())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _take_sockets_away(self) -> FdServer | None:
        """Remove the sockets from the pod's folder, and take no more requests. Returns the server, to be closed."""
        if self._sockets is not None:
            try:
                self._sockets.remove()
            except OSError as error:
                # Their files stay, and nobody answers there.
                self.log.warning(f"cannot remove the sockets: {error}")
            self._sockets = None
        server, self._server = self._server, None
        if server is not None:
            server.stop()
        return server


def _no_directory(target: str) -> str:
    return f"{target} is not a directory but a file or a symlink: look at it and remove it by hand"


def _make_directory(target: str) -> bool:
    """Make the target's directory; False where it is there. kubelet has made the one above it, and other callers may not."""
    try:
        os.mkdir(target)
    except FileExistsError:
        return False
    except FileNotFoundError:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.mkdir(target)
    return True


def unpublish_error(target: str, error: OSError) -> VolumeError:
    """What to say where a target cannot be removed."""
    if isinstance(error, TimeoutError):
        return VolumeError(Code.DEADLINE_EXCEEDED, f"{target}: the FUSE file system could not be unmounted within {limits.DETACH_WAIT:g} s")
    if isinstance(error, NotOurs):
        return VolumeError(Code.FAILED_PRECONDITION, f"{foreign(target, error.mount)}: unmount it on the node")
    if error.errno in (ENOTEMPTY, EEXIST):
        return VolumeError(
            Code.FAILED_PRECONDITION, f"{target} is not empty; its files are not deleted: look at them and remove them by hand"
        )
    return VolumeError(Code.INTERNAL, f"cannot remove {target}: {error.strerror}")
