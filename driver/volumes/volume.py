"""One published volume, from publish to unpublish: its target with its mounts, and its sockets."""

import logging
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from errno import EEXIST, ENOTEMPTY
from functools import partial
from typing import TypeVar

from driver.blocking.directories import Directories
from driver.blocking.inturn import Work
from driver.model import limits
from driver.model.errors import Code, VolumeError
from driver.model.fusemount import DetachedMount, FuseMount
from driver.model.policy import Refused, VolumePolicy
from driver.model.publication import Publication
from driver.model.state import Past
from driver.mounts.kernel import TargetKernel
from driver.mounts.takeoff import NotOurs
from driver.mounts.target import foreign
from driver.observe.internalerror import report_internal_error
from driver.observe.logs import VolumeLog
from driver.observe.metrics import Operation, Timer
from driver.observe.troubles import Troubles
from driver.pods.service import SocketService
from driver.pods.sockets import FolderBeneath, NameTaken, NoDirectory, PodSockets
from driver.volumes.mounts import VolumeMounts, not_a_directory
from driver.volumes.requests import VolumeRequests
from fusermount3_proxy.wire.mountinfo import Mount

T = TypeVar("T")

_ACCEPTED_FDS: tuple[str, ...] = ()  # a volume's requests need none, and the kernel drops those that are attached


class Volume:
    """A volume from publish to unpublish."""

    def __init__(
        self,
        publication: Publication,
        policy: VolumePolicy,
        kernel: TargetKernel,
        directories: Directories,
        log: VolumeLog,
        past: Past | None,
        on_change: Callable[[], None],
    ) -> None:
        """Begin with nothing at the target; publish() or restore() comes next.

        `past` is what a record says. `on_change` is called when the mounts have changed, so that they are recorded.
        """
        self.publication = publication
        self.target = publication.paths.target_path
        self.policy = policy
        self.log = log
        self.troubles = Troubles(log)
        self.mounts = VolumeMounts(self.target, kernel, past or Past.begin(), log, self.troubles, on_change)
        self._requests = VolumeRequests(self.mounts, policy, log)
        paths = publication.paths
        folder = FolderBeneath(paths.root, paths.sockets)
        self._directories = directories
        threads = partial(directories.threads, paths.sockets_path)
        self._service = SocketService(folder, threads, publication.socket_name, self._requests, paths.volume_name, _ACCEPTED_FDS, log)
        self._lacks_placeholder = False  # a former driver's volume with nothing at its target

    @property
    def is_closing(self) -> bool:
        """Return whether unpublish has begun; what containers ask is refused then."""
        return self._requests.is_closing

    @property
    def accepted_connections(self) -> int:
        """Return how many connections its sockets have accepted since the driver started."""
        return self._service.accepted_connections

    # ---- publish

    async def publish(self) -> None:
        """Make the sockets, the target and its placeholder. Raises VolumeError, and then leaves no mount and no socket.

        With DEADLINE_EXCEEDED a thread goes on alone; what it makes late is removed again, or found by the next publish.
        """
        took = Timer(Operation.PUBLISH)
        try:
            is_new = self.mounts.place.make()
        except OSError as error:
            raise self._target_error(error) from None
        async with AsyncExitStack() as undo:
            if is_new:
                undo.callback(self.mounts.place.remove_empty)
            await self._open_sockets(is_new)
            undo.push_async_callback(self._close_sockets)
            await self._occupy_target(is_new)
            undo.pop_all()  # nothing has failed
        for warning in self.policy.warnings:
            self.log.warning(warning)
        self.log.info(f"published at {self.target}, {self.mounts.state.value}, in {took.stop()}")

    def restore(self, recorded: tuple[FuseMount, ...], detached: tuple[DetachedMount, ...], stack: list[Mount]) -> bool:
        """Take over a volume that a former driver published; `recorded` and `detached` are of its record.

        placeholder_work() and sockets_work() come next.

        `stack`, what is mounted at the target, decides. Return False where the target is gone, and the volume with it.
        """
        self._lacks_placeholder = not stack
        if self._lacks_placeholder and not os.path.isdir(self.target):
            return False
        known = recorded[-1] if recorded else None  # a volume has one mount at a time
        try:
            if stack:
                self.mounts.adopt(stack, known, self.policy)
        except VolumeError as error:
            self.troubles.begin("target", str(error))
        except OSError as error:
            self.troubles.begin("target", f"cannot restore {self.target}: {error.strerror}")
        if known is not None and not self.mounts.mounts:
            self.mounts.was_unmounted(known)
        self.mounts.adopt_detached(detached)
        self.mounts.check_unless_held()
        self.log.info(f"restored at {self.target}, {self.mounts.state.value}")
        return True

    def placeholder_work(self) -> list[Work]:
        """Return the work of mounting the placeholder where restore() has found nothing at the target."""
        if not self._lacks_placeholder:
            return []
        mount = _caught(self.mounts.place.mount_placeholder_in_thread)
        return [Work(self.target, mount, self._end_placeholder, lambda identity: None)]

    def sockets_work(self) -> Work:
        """Return the work of making the sockets after restore(). Once it has ended, containers can mount."""
        return Work(self.publication.paths.sockets_path, _caught(self._service.make), self._end_sockets, _discard)

    def _end_sockets(self, made: PodSockets | Exception) -> None:
        try:
            if isinstance(made, Exception):
                raise made
            self._service.serve(made)
        except (OSError, NoDirectory, NameTaken) as error:
            # The pod may be gone already; kubelet's republish or unpublish comes.
            self.troubles.begin("sockets", f"not listening: {self._sockets_error(error, limits.RESTORE_WAIT)}", logging.WARNING)
        except Exception:  # one volume's failure must not keep the others from being served
            report_internal_error("making the sockets of a restored volume", self.log)

    def _end_placeholder(self, identity: str | Exception) -> None:
        try:
            if isinstance(identity, Exception):
                raise identity
            self.mounts.place.keep_placeholder(identity)
        except TimeoutError:
            self.troubles.begin("target", str(locked(self.target, limits.RESTORE_WAIT)))
        except NotADirectoryError:
            self.troubles.begin("target", not_a_directory(self.target))
        except OSError as error:
            self.troubles.begin("target", f"cannot restore {self.target}: {error.strerror}")
        except Exception:
            report_internal_error("mounting the placeholder of a restored volume", self.log)

    async def republish(self) -> None:
        """Repair what the pod, kubelet or somebody on the node has changed; kubelet publishes each volume again and again.

        Raises nothing: kubelet could remove the target of a volume whose publish failed.
        """
        try:
            if not await self._service.is_in_place():
                self.log.refusal("the sockets in the emptyDir are gone or replaced; making them again")
                await self._service.open_again()
            self.troubles.end("sockets")
        except (OSError, NoDirectory, NameTaken) as error:
            self.troubles.begin("sockets", f"cannot repair the sockets: {self._why_no_sockets(error)}")
        await self.mounts.republish()

    async def abort(self) -> None:
        """End the FUSE file system although it is in use: its program gets ENODEV, and its users get errors. Raises VolumeError."""
        try:
            if not await self._requests.abort():
                raise VolumeError(Code.FAILED_PRECONDITION, f"there is no FUSE file system at {self.target} that the driver can end")
        except Refused as refused:
            raise VolumeError(Code.FAILED_PRECONDITION, f"{self.target}: {refused}") from None
        self.log.activity("aborted, as somebody on the node asked for")

    # ---- unpublish

    async def unpublish(self) -> None:
        """Remove the sockets, the mounts and the target. Raises VolumeError; a second call continues where this one stopped."""
        self._requests.is_closing = True
        took = Timer(Operation.UNPUBLISH)
        self._service.close()
        try:
            await self.mounts.unpublish()
        except OSError as error:
            raise unpublish_error(self.target, error) from None
        finally:
            # Until the sockets are closed they keep a memory emptyDir busy.
            await self._service.wait_closed()
            if (stuck := self._service.stuck_thread) is not None:
                self._directories.put(self.publication.paths.sockets_path, stuck)  # the next publish must not hang there, too
        self.log.info(f"unpublished in {took.stop()}")

    def release(self) -> None:
        """Serve no more requests, and leave target, mounts and sockets for the next driver: this one stops."""
        self.mounts.stop()
        self._service.stop()

    def give_up(self) -> None:
        """Serve nothing, and leave target and mounts for the next publish: the volume could not be restored."""
        self.mounts.stop()
        self._service.close()

    # ---- details

    async def _open_sockets(self, is_new: bool) -> None:
        try:
            # kubelet starts no container of a pod before all its volumes are published. So where the target was not there, nobody can
            # lock the directory of the sockets yet, unless it is known to be locked since a former unpublish, and no thread is
            # needed. Without Kubernetes containers may run already.
            paths = self.publication.paths
            if is_new and paths.is_pods and not self._directories.is_busy(paths.sockets_path):
                self._service.open_at_once()
            else:
                await self._service.open()
        except (OSError, NoDirectory, NameTaken) as error:
            raise self._sockets_error(error) from None

    async def _close_sockets(self) -> None:
        self._service.close()
        await self._service.wait_closed()

    async def _occupy_target(self, is_new: bool) -> None:
        place = self.mounts.place
        try:
            if is_new:
                place.mount_placeholder()  # nothing is mounted there, and the mount table is long
            elif stack := place.mounts():
                self.mounts.adopt(stack, None, self.policy)
            else:
                await self._remount_placeholder()
        except OSError as error:
            raise self._target_error(error) from None

    def _target_error(self, error: OSError) -> VolumeError:
        return VolumeError(Code.INTERNAL, f"cannot make the target {self.target}: {error.strerror}")

    async def _remount_placeholder(self) -> None:
        """Mount the placeholder on a directory that was there before. Raises OSError, VolumeError."""
        place = self.mounts.place
        try:
            if place.is_busy:  # a former publish still waits here, and there would be two placeholders
                raise TimeoutError
            await place.remount_placeholder()
        except TimeoutError:
            raise locked(self.target, limits.MOUNT_WAIT) from None
        except NotADirectoryError:
            raise VolumeError(Code.FAILED_PRECONDITION, not_a_directory(self.target)) from None

    def _sockets_error(self, error: OSError | NoDirectory | NameTaken, limit: float = limits.DIRECTORY_WAIT) -> VolumeError:
        if isinstance(error, TimeoutError):
            return locked(self.publication.paths.sockets_path, limit)
        if isinstance(error, OSError):
            return VolumeError(Code.INTERNAL, f"cannot make the fd-passing sockets: {error}")
        return VolumeError(Code.FAILED_PRECONDITION, self._why_no_sockets(error))

    def _why_no_sockets(self, error: OSError | NoDirectory | NameTaken) -> str:
        if isinstance(error, TimeoutError):
            return str(self._sockets_error(error))
        if not isinstance(error, NoDirectory):
            return str(error)
        hint = ": does fdPassingEmptyDirName name an emptyDir volume of this pod?" if self.publication.paths.is_pods else ""
        return f"no directory for the fd-passing sockets, {error}{hint}"


def _caught(work: Callable[[], T]) -> Callable[[], T | Exception]:
    """Return `work` as a function that returns its exception."""

    def caught() -> T | Exception:
        try:
            return work()
        except Exception as error:
            return error

    return caught


def _discard(made: PodSockets | Exception) -> None:
    if isinstance(made, PodSockets):
        made.discard()


def locked(directory: str, limit: float) -> VolumeError:
    """Return what to tell kubelet where work in a directory that containers can lock took longer than its limit."""
    text = f"{directory}: a process in a container keeps this directory locked for more than {limit:g} s"
    text += ": end the FUSE program that the process waits for, or delete the pod"
    return VolumeError(Code.DEADLINE_EXCEEDED, text)


def unpublish_error(target: str, error: OSError) -> VolumeError:
    """Return what to tell kubelet where a target cannot be removed."""
    if isinstance(error, TimeoutError):
        text = f"{target}: the driver could not unmount what is mounted there and remove the directory within {limits.DETACH_WAIT:g} s"
        return VolumeError(Code.DEADLINE_EXCEEDED, text)
    if isinstance(error, NotOurs):
        return VolumeError(Code.FAILED_PRECONDITION, f"{foreign(target, error.mount)}: unmount it on the node")
    if error.errno in (ENOTEMPTY, EEXIST):
        text = f"{target} is not empty; its files are not deleted: look at them and remove them by hand"
        return VolumeError(Code.FAILED_PRECONDITION, text)
    return VolumeError(Code.INTERNAL, f"cannot remove {target}: {error.strerror}")
