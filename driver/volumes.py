"""All volumes of this node, by target path."""

import asyncio
import os
from collections.abc import Iterator

from driver import bounded, fusemount
from driver.closewatch import CloseWatch
from driver.errors import Code, VolumeError
from driver.fusemount import Workspace
from driver.policy import of_volume
from driver.records import Record, Records
from driver.volume import Publication, Volume, unpublish_error
from fusermount3_proxy import limits


class Volumes:
    """Publishes and unpublishes. One volume id may be published at many targets (PersistentVolumes)."""

    def __init__(self, workspace: Workspace, watch: CloseWatch, records: Records) -> None:
        self._workspace = workspace
        self._watch = watch
        self._records = records
        self._by_target: dict[str, Volume] = {}

    def __iter__(self) -> Iterator[Volume]:
        return iter(list(self._by_target.values()))

    def at(self, target: str) -> Volume | None:
        """The volume that is published at a target path."""
        return self._by_target.get(target)

    def publish(self, publication: Publication) -> Volume:
        """Publish, or look after what is published already. Raises VolumeError."""
        target = publication.paths.target_path
        volume = self._by_target.get(target)
        if volume is None:
            volume = self._new(publication)
            volume.publish()
            self._by_target[target] = volume
            # Before publish answers: from then on kubelet counts on the volume, whatever happens to this process.
            self._save(volume)
            return volume
        if volume.is_closing:
            raise VolumeError(Code.ABORTED, f"{target} is being unpublished")
        if volume.publication != publication:
            raise VolumeError(
                Code.ALREADY_EXISTS, f"{target} is published already, with another volume id, readOnly, mount flags or attributes"
            )
        volume.republish()
        return volume

    def restore(self) -> None:
        """Take up what a former driver left."""
        by_path = fusemount.mounts_by_path()
        for record in self._records.load():
            target = record.publication.paths.target_path
            volume = self._new(record.publication)
            if volume.restore(record.mount, fusemount.mounts_at(target, by_path)):
                self._by_target[target] = volume
                self._save(volume)
            else:
                self._records.delete(target)
        self._workspace.nodes.remove_unheld()

    async def unpublish(self, target: str) -> None:
        """Unpublish; a target that is not known is cleared of what a former driver left. Raises VolumeError."""
        # A caller that gives up must not leave the volume half unpublished.
        await asyncio.shield(asyncio.ensure_future(self._unpublish(target)))

    async def _unpublish(self, target: str) -> None:
        volume = self._by_target.get(target)
        if volume is None:
            await self._clear(target)
            return
        await volume.unpublish()
        if self._by_target.get(target) is volume:
            del self._by_target[target]
            self._records.delete(target)

    def release(self) -> None:
        """The driver stops, and the volumes stay."""
        for volume in self._by_target.values():
            volume.release()

    def _new(self, publication: Publication) -> Volume:
        policy = of_volume(publication.read_only, list(publication.mount_flags), publication.mount_options)
        return Volume(publication, policy, self._workspace, self._watch, self._changed)

    def _changed(self, volume: Volume) -> None:
        # Not of one that is being published: a record of a volume that could not be published must not stay.
        if self._by_target.get(volume.publication.paths.target_path) is volume:
            self._save(volume)

    def _save(self, volume: Volume) -> None:
        try:
            self._records.save(Record(volume.publication, volume.mount_record))
        except OSError as error:
            volume.log.error(f"the volume cannot be recorded, and a restart of the driver would not know it: {error}")

    async def _clear(self, target: str) -> None:
        try:
            stack = fusemount.mounts_at(target)
            if stack and stack[-1].is_fuse:
                record = fusemount.adopt(stack)
                await bounded.run(limits.TAKE_OFF_WAIT, lambda: fusemount.take_off(self._workspace, target, record, plain=False))
            fusemount.detach_all(target)
            os.rmdir(target)
        except FileNotFoundError:
            return
        except TimeoutError:
            raise VolumeError(Code.DEADLINE_EXCEEDED, f"{target}: the FUSE file system could not be unmounted in time") from None
        except OSError as error:
            raise unpublish_error(target, error) from None
