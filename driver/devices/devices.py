"""All allocations of fuse devices on this node: those that kubelet hands out, `any`, and those that `device add` makes.

    FOLDER/sockets/NAME   the folder of an allocation's socket, which containers bind
    FOLDER/users/NAME     the uid of the user who has that folder in a folder of his own (userfolder.py)

The folders outlive a reboot, since engines and kubelet give their paths to containers again without asking.
"""

import asyncio
import os
from collections.abc import Coroutine, Iterator, Mapping
from errno import EBUSY, ENOTEMPTY
from pathlib import Path
from typing import Any

from driver.blocking.processes import Starter
from driver.devices import attached, cdi, userfolder
from driver.devices.allocation import Allocation
from driver.devices.cdi import ANY
from driver.devices.containers import Containers
from driver.devices.kit import SOCKETS, Kit, KitError
from driver.devices.records import DeviceRecord, DeviceRecords
from driver.devices.shared import Shared
from driver.devices.socket import own_folder
from driver.devices.visits import Visits
from driver.linux.filewatch import FileWatch
from driver.model import limits
from driver.model.errors import Code, VolumeError
from driver.model.kit import ContainerKit
from driver.model.paths import BadPath, check_device_name
from driver.model.settings import Settings
from driver.mounts.workspace import Workspace
from driver.observe.logs import log
from driver.volumes.recordfiles import RecordFiles
from fusermount3_proxy.wire.protocol import DEVICE_SOCKET, V1_SUFFIX

_CLEAN_INTERVAL = 1.0  # seconds

_SEPARATOR = "_"  # of a resource and a device id; the names of `device add` have none


class Devices:
    """Opens, finds and closes allocations."""

    def __init__(self, settings: Settings, workspace: Workspace, files: FileWatch, starter: Starter, problem: str) -> None:
        """`starter` forks processes that may enter namespaces. `problem` is why they could not mount, or "". Raises OSError."""
        self._node_problem = problem
        self._folder = settings.fuse_dir
        self._cdi_dir = settings.cdi_dir
        self._kit = Kit(settings.fuse_dir, settings.fuse_dir_on_node, settings.client_tree)
        self._containers = Containers()
        self._visits = Visits(starter)
        self._records = DeviceRecords(RecordFiles(f"{settings.run_dir}/device-mounts"))
        self._shared = Shared(
            workspace,
            files,
            self._visits,
            self._records,
            self._containers,
            settings.fuse_mounts_max,
            settings.fuse_allow_other,
        )
        self._recorded = self._records.load()
        self._allocations: dict[str, Allocation] = {}
        self._background: set[asyncio.Task[None]] = set()
        self.problem = "they are not installed yet"  # why containers get no fuse devices; "" if they do

    # ---- the start and the end of the driver

    @property
    def recorded_devices(self) -> set[str | None]:
        """Return the names of the device nodes of the mounts that restore() takes up."""
        return {record.mount.device for record in self._recorded}

    def restore(self) -> None:
        """Serve the allocations of a former driver, and follow its mounts. What cannot be served is logged."""
        for name in self._names():
            self._try_to_open(name)
        known = [record.mount.device_number for record in self._recorded if record.mount.device_number]
        for record in self._recorded:
            allocation = self._try_to_open(record.allocation)
            if not record.mount.device_number:
                self._in_background(self._clean(record, known))
            elif allocation is not None:
                allocation.requests.adopt(record)
        self._in_background(self._containers.abort_ending_periodically())

    async def install(self) -> None:
        """Install what containers bind, and describe the fuse devices for container engines. What is wrong is logged."""
        self.problem = self._node_problem
        try:
            await asyncio.to_thread(self._kit.install)
        except KitError as error:
            self.problem = self.problem or str(error)
        if self.problem:
            log.info(f"no container gets a fuse device: {self.problem}")
        if self._cdi_dir is not None:
            if not self.problem:
                self._try_to_open(ANY)
            self._describe()

    def release(self) -> None:
        """Serve no more requests, and leave all mounts for the next driver: this one stops."""
        for task in self._background:
            task.cancel()
        for allocation in self:
            allocation.stop()
        self._containers.close()

    @property
    def is_busy(self) -> bool:
        """Return whether something is being mounted or unmounted."""
        return any(allocation.requests.is_busy for allocation in self)

    async def _clean(self, record: DeviceRecord, known: list[str]) -> None:
        """Detach what a driver had mounted that was killed before it could record that."""
        mount = record.mount
        arguments = ((record.pid,), mount.source, mount.fstype, mount.mountpoint, known)
        # The killed driver's process may attach it a moment later, and the program may have mounted over it with this driver meanwhile.
        for is_last in (False, True):
            while await self._is_covered(record.allocation, arguments):
                await asyncio.sleep(_CLEAN_INTERVAL)
            if not is_last:
                await asyncio.sleep(_CLEAN_INTERVAL)
        try:
            self._records.delete(record)
        except OSError as error:
            log.error(f"the record of a mount cannot be deleted: {error}")

    async def _is_covered(self, allocation: str, arguments: tuple[object, ...]) -> bool:
        """Detach such a mount. Return whether that has to wait until what is mounted over it has gone."""
        try:
            await self._visits.call(allocation, limits.VISIT_WAIT, attached.clean, *arguments)
        except OSError as error:
            return error.errno == EBUSY  # otherwise its container has ended, or somebody keeps it: it is dead, and its users see that
        return False

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # ---- allocations

    def __iter__(self) -> Iterator[Allocation]:
        return iter(list(self._allocations.values()))

    def mounts(self) -> int:
        """Return how many file systems containers have mounted."""
        return sum(len(allocation.mounts) for allocation in self)

    def all(self) -> list[Allocation]:
        """Return all allocations but those of kubelet's that no container has now, whose sockets stay for the next one."""
        return [each for each in self if not _is_kubelets(each.name) or each.owner or each.mounts]

    def kit(self, name: str) -> ContainerKit:
        """Return what a container with this allocation gets. Raises VolumeError."""
        found = self._named(name)
        return self._kit.for_socket(name) if found.uid is None else self._kit.for_socket_folder(found.socket_folder)

    def allocate(self, resource: str, device_id: str) -> ContainerKit:
        """Serve a device that kubelet hands out, and return what its container gets. Raises VolumeError and OSError."""
        self._refuse_without_kit()
        return self.kit(self._open(_name(resource, device_id)).name)

    def owners(self, found: Mapping[tuple[str, str], str]) -> None:
        """Note which container has which device of kubelet's."""
        names = {_name(*key): owner for key, owner in found.items()}
        for allocation in self:
            if _is_kubelets(allocation.name):
                allocation.set_owner(names.get(allocation.name, ""))

    async def add(self, name: str, user: str | None) -> Allocation:
        """Make an allocation, in a folder that `user`, a name or a uid, can reach. Raises VolumeError."""
        self._refuse_without_kit()
        _check(name)
        uid = None if user is None else await asyncio.to_thread(userfolder.uid_of, user)
        if (found := self._allocations.get(name)) is not None:
            if found.uid != uid:
                raise VolumeError(Code.ALREADY_EXISTS, f"fuse device {name} exists already, for another user; remove it first")
            return found
        try:
            if uid is not None:
                os.makedirs(f"{self._folder}/users", exist_ok=True)
                Path(f"{self._folder}/users/{name}").write_text(f"{uid}\n", "ascii")
            made = self._open(name, uid)
        except (OSError, VolumeError) as error:
            self._forget_user(name)
            if isinstance(error, VolumeError):
                raise
            raise VolumeError(Code.INTERNAL, f"cannot make fuse device {name}: {error}") from None
        self._describe()
        return made

    async def remove(self, name: str) -> None:
        """Remove an allocation that add() has made, and end its mounts. Raises VolumeError."""
        found = self._named(name)
        if name == ANY or _is_kubelets(name):
            raise VolumeError(Code.INVALID_ARGUMENT, f"fuse device {name} was not made by 'device add', and is not removed by hand")
        del self._allocations[name]
        try:
            found.requests.abort()
        except OSError as error:
            log.warning(f"a mount of fuse device {name} is not ended: {error}")
        await found.close()
        self._remove_folder(found)
        self._describe()

    async def abort(self, name: str) -> bool:
        """End the file systems that are mounted through an allocation, and return whether there were any. Raises VolumeError."""
        try:
            return self._named(name).requests.abort()
        except OSError as error:
            raise VolumeError(Code.INTERNAL, f"cannot end the file systems of fuse device {name}: {error}") from None

    def _named(self, name: str) -> Allocation:
        found = self._allocations.get(name)
        if found is None:
            raise VolumeError(Code.NOT_FOUND, f"there is no fuse device {name!r}; 'device list' lists them")
        return found

    def _refuse_without_kit(self) -> None:
        if self.problem:
            raise VolumeError(Code.FAILED_PRECONDITION, f"no container gets a fuse device: {self.problem}")

    def _names(self) -> list[str]:
        found: set[str] = set()
        for folder in (SOCKETS, "users"):
            try:
                found.update(os.listdir(f"{self._folder}/{folder}"))
            except OSError:
                pass  # install() reports what is wrong with the folder
        return sorted(found)

    def _try_to_open(self, name: str) -> Allocation | None:
        try:
            return self._open(name, self._user(name))
        except (OSError, ValueError, VolumeError) as error:
            log.error(f"fuse device {name} is not served: {error}")
            return None

    def _open(self, name: str, uid: int | None = None) -> Allocation:
        found = self._allocations.get(name)
        if found is None:
            path = f"{self._folder}/{SOCKETS}/{name}" if uid is None else userfolder.path_of(uid, name)
            found = Allocation(name, path, self._shared, not _is_kubelets(name), uid)
            found.open(own_folder(path) if uid is None else userfolder.make(uid, name))
            self._allocations[name] = found
            self._visits.keep_spare()
        return found

    def _user(self, name: str) -> int | None:
        try:
            return int(Path(f"{self._folder}/users/{name}").read_text("ascii"))
        except FileNotFoundError:
            return None

    def _forget_user(self, name: str) -> None:
        _unlink(f"{self._folder}/users/{name}")

    def _remove_folder(self, found: Allocation) -> None:
        try:
            _unlink(f"{found.socket_folder}/{os.path.basename(DEVICE_SOCKET)}{V1_SUFFIX}")
            if found.uid is None:
                os.rmdir(found.socket_folder)
            else:
                userfolder.remove(found.uid, found.name)
            self._forget_user(found.name)
        except OSError as error:
            if error.errno != ENOTEMPTY:
                log.warning(f"the folder of fuse device {found.name} is left: {error}")

    def _describe(self) -> None:
        """Write what container engines read, or remove it where there is nothing to give."""
        if self._cdi_dir is None:
            return
        try:
            if self.problem:
                cdi.remove(self._cdi_dir)
            else:
                cdi.write(self._cdi_dir, {each.name: self.kit(each.name) for each in self if not _is_kubelets(each.name)})
        except OSError as error:
            log.error(f"the fuse devices cannot be described in {self._cdi_dir} (--cdi-dir): {error.strerror}")


def _name(resource: str, device_id: str) -> str:
    """Return the name of the allocation for a device of kubelet's; it is also that of a folder."""
    return f"{resource.replace('/', _SEPARATOR)}{_SEPARATOR}{device_id}"


def _is_kubelets(name: str) -> bool:
    return _SEPARATOR in name


def _check(name: str) -> None:
    """Raise VolumeError where `device add` may not use a name."""
    try:
        check_device_name(name)
    except BadPath as error:
        raise VolumeError(Code.INVALID_ARGUMENT, str(error)) from None
    if name == ANY or _is_kubelets(name):
        raise VolumeError(Code.INVALID_ARGUMENT, f"{name} is a name of the driver's own: choose another one")


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
