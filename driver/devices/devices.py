"""All allocations of fuse devices on this node, and what a restart of the driver takes up again."""

import asyncio
import os
from collections.abc import Iterator
from errno import ENOENT

from driver.blocking.processes import NotAsked, Starter
from driver.devices import namespace
from driver.devices.allocation import Allocation
from driver.devices.containers import Containers
from driver.devices.records import DeviceRecord, DeviceRecords
from driver.devices.requests import Shared
from driver.devices.visits import Visits
from driver.linux.filewatch import FileWatch
from driver.model import limits
from driver.mounts.workspace import Workspace
from driver.observe.logs import log
from driver.volumes.recordfiles import RecordFiles

ANY = "any"  # the allocation that every container with the CDI device `any` shares


class Devices:
    """Opens, finds and closes allocations. Each has a folder SOCKETS/NAME, which containers bind."""

    def __init__(
        self,
        folder: str,
        state: str,
        workspace: Workspace,
        files: FileWatch,
        starter: Starter,
        mounts_max: int,
        may_allow_other: bool,
    ) -> None:
        """`folder` holds the sockets' folders, and `state` the records; `starter` forks the processes that may enter namespaces.

        Raises OSError.
        """
        self._folder = folder
        self._containers = Containers()
        self._visits = Visits(starter)
        self._records = DeviceRecords(RecordFiles(state))
        self._shared = Shared(workspace, files, self._visits, self._records, self._containers, mounts_max, may_allow_other)
        self._recorded = self._records.load()
        self._allocations: dict[str, Allocation] = {}
        self._watching: asyncio.Task[None] | None = None

    def __iter__(self) -> Iterator[Allocation]:
        return iter(list(self._allocations.values()))

    def all(self) -> list[Allocation]:
        """Return all allocations."""
        return list(self)

    def named(self, name: str) -> Allocation | None:
        """Return an allocation by its name."""
        return self._allocations.get(name)

    def socket_folder(self, name: str) -> str:
        """Return the folder of an allocation's socket."""
        return f"{self._folder}/{name}"

    def open(self, name: str, folder: str | None = None) -> Allocation:
        """Serve an allocation, in a folder of the driver's or in `folder`. Does nothing where it is served already. Raises OSError."""
        found = self._allocations.get(name)
        if found is None:
            found = Allocation(name, folder or self.socket_folder(name), self._shared)
            found.open()
            self._allocations[name] = found
        return found

    async def close(self, name: str) -> None:
        """Serve an allocation no more, and end its mounts. Raises OSError where there is none."""
        found = self._allocations.pop(name, None)
        if found is None:
            raise OSError(ENOENT, os.strerror(ENOENT), name)
        found.requests.abort()
        await found.close()

    def restore(self) -> None:
        """Follow again the mounts that a former driver has recorded, and open the allocations that they belong to.

        A device that cannot be served is logged.
        """
        known = [record.mount.device_number for record in self._recorded if record.mount.device_number]
        for record in self._recorded:
            if not record.mount.device_number:
                asyncio.get_running_loop().create_task(self._clean(record, known))
                continue
            try:
                self.open(record.allocation).requests.adopt(record)
            except OSError as error:
                log.error(f"the fuse device {record.allocation} is not served: {error}")
        self._watching = asyncio.get_running_loop().create_task(self._containers.abort_ending_periodically())

    def open_known(self) -> None:
        """Serve the allocations whose folders are there: containers have bound them. One that cannot be served is logged."""
        try:
            names = sorted(os.listdir(self._folder))
        except FileNotFoundError:
            return
        for name in names:
            try:
                self.open(name)
            except OSError as error:
                log.error(f"the fuse device {name} is not served: {error}")

    async def _clean(self, record: DeviceRecord, known: list[str]) -> None:
        """Detach what a driver had mounted that was killed before it could record that."""
        mount = record.mount
        arguments = ((record.pid,), mount.source, mount.fstype, mount.mountpoint, known)
        try:
            await self._visits.call(record.allocation, limits.VISIT_WAIT, namespace.clean, *arguments)
        except (OSError, NotAsked):
            pass  # its container has ended, or somebody keeps it: it is dead, and its users see that
        try:
            self._records.delete(record)
        except OSError as error:
            log.error(f"the record of a mount cannot be deleted: {error}")

    @property
    def recorded_devices(self) -> set[str | None]:
        """Return the names of the device nodes of the mounts that restore() takes up."""
        return {record.mount.device for record in self._recorded}

    def release(self) -> None:
        """Serve no more requests, and leave all mounts for the next driver: this one stops."""
        if self._watching is not None:
            self._watching.cancel()
        for allocation in self:
            allocation.stop()
        self._containers.close()

    @property
    def is_busy(self) -> bool:
        """Return whether something is being mounted or unmounted."""
        return any(allocation.requests.is_busy for allocation in self)
