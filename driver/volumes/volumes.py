"""Publishes, restores and unpublishes all volumes of this node, and keeps their records."""

import asyncio
import logging
from collections.abc import Collection, Iterator
from functools import partial
from typing import Any

from driver.blocking.calls import Bounds
from driver.blocking.directories import Directories
from driver.blocking.inturn import do_in_turn
from driver.blocking.threads import Threads
from driver.linux import mounttable
from driver.linux.filewatch import FileWatch
from driver.model import limits, paths, volumeid
from driver.model.errors import Code, VolumeError
from driver.model.paths import BadPath
from driver.model.policy import of_volume
from driver.model.publication import Publication
from driver.model.state import Past, State
from driver.mounts import fusemount, takeoff
from driver.mounts.linuxkernel import LinuxKernel
from driver.mounts.workspace import Workspace
from driver.observe.internalerror import report_internal_error
from driver.observe.logs import VolumeLog, log
from driver.volumes.recordformat import Record
from driver.volumes.records import Records
from driver.volumes.volume import Volume, unpublish_error

_MOMENT = 2 * limits.ACCEPT_WINDOW  # seconds; if nobody connects for so long, all waiting pods have been served


class Volumes:
    """The volumes by target path. One volume id may be published at many targets (PersistentVolumes)."""

    def __init__(self, workspace: Workspace, files: FileWatch, records: Records, bounds: Bounds) -> None:
        self._workspace = workspace
        self._files = files
        self._records = records
        self._bounds = bounds
        self.directories = Directories()
        self._by_target: dict[str, Volume] = {}
        self._by_sockets: dict[tuple[str, str, str], Volume] = {}  # also those that are being published
        self._publishing: dict[str, tuple[Publication, asyncio.Task[Volume]]] = {}
        self._unpublishing: dict[str, asyncio.Future[None]] = {}
        self._is_serving = False  # restore() has ended, and release() has not begun
        self._clearing: dict[str, asyncio.Future[None]] = {}  # by the targets of unknown volumes, each in a thread that may hang

    def __iter__(self) -> Iterator[Volume]:
        return iter(list(self._by_target.values()))

    def by_state(self) -> dict[str, int]:
        """Return how many volumes are in each state."""
        found = dict.fromkeys((state.value for state in State), 0)
        for volume in self:
            found[volume.mounts.state.value] += 1
        return found

    def troubled(self) -> int:
        """Return how many volumes have a warning or a trouble."""
        return sum(1 for volume in self if volume.policy.warnings or volume.troubles.texts)

    def detached(self) -> int:
        """Return how many lazily unmounted file systems are still in use."""
        return sum(volume.mounts.count_detached() for volume in self)

    def at(self, target: str) -> Volume | None:
        """Return the volume that is published at a target path."""
        return self._by_target.get(target)

    def named(self, name: str) -> Volume:
        """Return the volume with this id, target path, or beginning of an inline id. Raises VolumeError unless there is one."""
        found = [volume for volume in self if name in (volume.target, volume.publication.volume_id)]
        if not found:
            found = [volume for volume in self if volumeid.is_named(name, volume.publication.volume_id)]
        if not found:
            raise VolumeError(Code.NOT_FOUND, f"there is no volume {name!r}; status lists all volumes")
        if len(found) > 1:
            paths_of_all = ", ".join(volume.target for volume in found)
            raise VolumeError(Code.INVALID_ARGUMENT, f"{name!r} names {len(found)} volumes: give the path of one: {paths_of_all}")
        return found[0]

    async def publish(self, publication: Publication) -> Volume:
        """Publish a volume; where it is published already, repair what has changed. Raises VolumeError.

        CSI v1.12.0, NodePublishVolume: publishing again with the same arguments is no error, with others ALREADY_EXISTS.
        """
        # A caller that gives up must not leave the volume half published.
        return await asyncio.shield(self._begin_publish(publication))

    def _begin_publish(self, publication: Publication) -> asyncio.Task[Volume]:
        target = publication.paths.target_path
        if target in self._unpublishing or target in self._clearing:  # a removal under way would remove the new volume
            raise VolumeError(Code.ABORTED, f"{target} is being unpublished")
        if target in self._publishing:
            former, task = self._publishing[target]
            if former != publication:
                raise VolumeError(Code.ABORTED, f"{target} is being published, with other arguments")
        else:
            task = asyncio.get_running_loop().create_task(self._publish(publication))
            self._publishing[target] = publication, task
            task.add_done_callback(partial(_forget_call, self._publishing, target))
        return task

    async def _publish(self, publication: Publication) -> Volume:
        target = publication.paths.target_path
        volume = self._by_target.get(target)
        if volume is None:
            return await self._publish_new(publication)
        if volume.is_closing:
            raise VolumeError(Code.ABORTED, f"{target} is not unpublished yet")
        if volume.publication != publication:
            raise VolumeError(
                Code.ALREADY_EXISTS, f"{target} is published already, with another volume id, readOnly, mount flags or attributes"
            )
        await volume.republish()
        if volume.troubles.has("record"):
            self._save(volume)
        return volume

    async def _publish_new(self, publication: Publication) -> Volume:
        key = _sockets_key(publication)
        other = self._by_sockets.get(key)
        if other is not None:
            # The two volumes would take the sockets from each other at every republish.
            text = f"the socket {publication.socket_name} in {publication.paths.sockets} belongs to volume {other.publication.volume_id}"
            raise VolumeError(Code.INVALID_ARGUMENT, f"{text}: give each volume of a pod another fdPassingSocketName")
        volume = self._new(publication)
        self._by_sockets[key] = volume  # another volume could want the same sockets meanwhile
        try:
            await volume.publish()
        except BaseException:
            del self._by_sockets[key]
            raise
        self._add(volume)
        # The record is written before kubelet has the answer: from then on kubelet relies on the volume, even if this process is killed.
        self._save(volume)
        return volume

    def _add(self, volume: Volume) -> None:
        self._by_target[volume.target] = volume
        self._by_sockets[_sockets_key(volume.publication)] = volume

    async def restore(self, pods_dir: str, standalone_root: str, other_devices: Collection[str | None] = ()) -> None:
        """Restore the volumes that a former driver has left below the two folders.

        Device nodes of mounts that belong to no volume (`other_devices`) are left alone.
        """
        by_path = mounttable.mounts_by_path()
        for record in self._records.load():
            target = record.publication.paths.target_path
            # publish made these checks before the record was written. A record that somebody has changed could have a placeholder
            # mounted on any directory of the node. With another --pods-dir, kubelet's calls for the volume would be refused.
            try:
                _check_places(record.publication, pods_dir, standalone_root)
            except BadPath as error:
                to = VolumeLog(record.publication.pod, record.publication.volume_id)
                to.error(f"it is recorded, but not restored: {error}")
                continue
            volume: Volume | None = None
            try:
                volume = self._new(record.publication, record.past)
                is_there = volume.restore(record.mounts, record.detached, mounttable.mounts_at(target, by_path))
            except Exception:  # one volume's failure must not keep the others from being restored
                text = f"restoring the volume at {target}, which serves no program until kubelet publishes it again"
                report_internal_error(text, VolumeLog(record.publication.pod, record.publication.volume_id))
                if volume is not None:
                    volume.give_up()
                continue
            if is_there:
                self._add(volume)
                if self._record_of(volume) != record:
                    self._save(volume)
            else:
                volume.log.warning(f"it is recorded, but {target} is not there any more: not restored")
                self._forget(target, volume.log)
        self._remove_devices(other_devices)
        # One after the other: a placeholder that is mounted after the sockets are served could lie over a program's mount.
        await do_in_turn((work for volume in self for work in volume.placeholder_work()), self.directories)
        await do_in_turn((volume.sockets_work() for volume in self), self.directories)
        self._is_serving = True

    def _remove_devices(self, other_devices: Collection[str | None]) -> None:
        """Remove the device nodes that no process holds. One that is held and has no mount is removed when it is closed."""
        devices = self._workspace.devices
        known = {*other_devices, *(device for volume in self for device in volume.mounts.devices)}
        for name in devices.remove_unheld():
            if name not in known:
                try:
                    # A device node is opened once: when this fd is closed, no process has it.
                    self._files.on_last_close(devices.path(name), partial(self._unknown_closed, name))
                except OSError as error:
                    log.warning(f"a device node of a former driver stays until the next start: {error}")

    def _unknown_closed(self, name: str) -> None:
        """Remove a former driver's device node, which is closed now. It may be that of a mount whose device node is not known."""
        self._workspace.devices.remove(name)
        for volume in self:
            if any(mount.device is None for mount in volume.mounts.mounts):
                volume.mounts.check()

    async def unpublish(self, target: str) -> None:
        """Unpublish a volume. A target path without a volume is cleared of what a former driver left. Raises VolumeError."""
        task = self._unpublishing.get(target)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._unpublish(target))
            self._unpublishing[target] = task
            task.add_done_callback(partial(_forget_call, self._unpublishing, target))
        # A caller that gives up must not leave the volume half unpublished.
        await asyncio.shield(task)

    async def _unpublish(self, target: str) -> None:
        if target in self._publishing:
            _, publishing = self._publishing[target]
            await asyncio.wait({publishing})
        volume = self._by_target.get(target)
        if volume is None:
            await self._clear(target)
            self._forget(target, log)  # there may be a record that could not be read
            return
        await volume.unpublish()
        del self._by_target[target]
        self._by_sockets.pop(_sockets_key(volume.publication), None)
        self._forget(target, volume.log)

    def release(self) -> None:
        """Serve no more requests, and leave all volumes for the next driver: this one stops."""
        self._is_serving = False
        for volume in {*self._by_target.values(), *self._by_sockets.values()}:
            volume.release()

    async def settle(self, limit: float) -> bool:
        """Wait until nothing is mounted or detached any more; return False where something still is after `limit` seconds."""
        loop = asyncio.get_running_loop()
        end = loop.time() + limit
        while any(volume.mounts.is_busy for volume in self):
            if loop.time() >= end:
                return False
            await asyncio.sleep(0.01)
        return True

    async def quiet(self, limit: float) -> None:
        """Wait until no container has connected for a moment, or for `limit` seconds."""
        loop = asyncio.get_running_loop()
        end = loop.time() + limit
        before = -1
        while (accepted := sum(volume.accepted_connections for volume in self)) != before and loop.time() < end:
            before = accepted
            await asyncio.sleep(_MOMENT)

    def _new(self, publication: Publication, past: Past | None = None) -> Volume:
        where = "mountOptions" if publication.paths.is_pods else "-o"  # of the manifest, or of `volume add`
        policy = of_volume(publication.read_only, list(publication.mount_flags), publication.mount_options, where)
        to = VolumeLog(publication.pod, publication.volume_id)
        attacher = partial(self.directories.threads, publication.paths.target_path)
        kernel = LinuxKernel(publication.paths, self._workspace, self._files, self._bounds, attacher, to.refusal)
        return Volume(publication, policy, kernel, self.directories, to, past, partial(self._changed, publication.paths.target_path))

    def _changed(self, target: str) -> None:
        # A volume that is being published is not recorded yet: publish may fail, and its record would stay.
        if (volume := self._by_target.get(target)) is None:
            return
        self._save(volume)
        if volume.mounts.state is State.WAITING and self._is_serving:
            # The Go plugin's client removes the socket that it has used, and its program may start again before kubelet republishes.
            try:
                self._begin_publish(volume.publication).add_done_callback(partial(_report, volume.log))
            except VolumeError:
                pass  # it is being unpublished

    @staticmethod
    def _record_of(volume: Volume) -> Record:
        return Record(volume.publication, volume.mounts.mounts, volume.mounts.past, volume.mounts.detached)

    def _save(self, volume: Volume) -> None:
        try:
            is_only_one = not self._records.save(self._record_of(volume))
            volume.troubles.end("record")
            if is_only_one:
                for other in self:
                    if other is not volume:
                        self._save(other)
        except OSError as error:
            volume.troubles.begin("record", f"the volume cannot be recorded, and a restart of the driver would not know it: {error}")

    def _forget(self, target: str, to: VolumeLog | logging.Logger) -> None:
        """Delete the record of a target that is gone. A failure is logged only: it changes nothing for kubelet or the pod."""
        try:
            self._records.delete(target)
        except OSError as error:
            to.error(f"the record of {target} cannot be deleted, and is left to the next start of the driver: {error}")

    async def _clear(self, target: str) -> None:
        try:
            cleared = self._clearing.get(target)
            if cleared is None:
                record = fusemount.adopted_beneath(mounttable.mounts_at(target))
                cleared = Threads(1).run_to_end(lambda: takeoff.remove_target(self._workspace, target, record))
                self._clearing[target] = cleared
                cleared.add_done_callback(partial(_forget_call, self._clearing, target))
            # A retry waits for the thread of the first call. A second thread would hang where the first one hangs.
            await asyncio.wait_for(asyncio.shield(cleared), limits.DETACH_WAIT)
        except OSError as error:
            raise unpublish_error(target, error) from None


def _forget_call(calls: dict[str, Any], target: str, ended: "asyncio.Future[Any]") -> None:
    del calls[target]
    if not ended.cancelled():
        ended.exception()  # mark it as seen: the calls that still wait report it


def _report(to: VolumeLog, repaired: asyncio.Task[Volume]) -> None:
    """Report an internal error of a republish for which nobody waits."""
    if not repaired.cancelled() and (error := repaired.exception()) is not None and not isinstance(error, VolumeError):
        try:
            raise error
        except BaseException:
            report_internal_error("repairing the volume after its FUSE program has gone", to)


def _check_places(publication: Publication, pods_dir: str, standalone_root: str) -> None:
    """Raise BadPath where the paths of a publication are not such as publish makes them."""
    given = publication.paths
    paths.check_socket_name(publication.socket_name)
    if given.root == standalone_root:
        made = paths.standalone(given.volume_name, standalone_root)
    else:
        made = paths.of_pod(given.target_path, given.sockets.rpartition("/")[2], pods_dir)
    if given != made:
        raise BadPath(f"{given.target_path!r}, with sockets in {given.sockets!r}, is none of the driver's targets")


def _sockets_key(publication: Publication) -> tuple[str, str, str]:
    return publication.paths.root, publication.paths.sockets, publication.socket_name
