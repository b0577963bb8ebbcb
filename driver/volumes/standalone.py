"""Adds and removes volumes without Kubernetes, for Docker, Podman and plain hosts, all below one root directory.

ROOT/NAME/mount    the target path: bind it into containers with rslave
ROOT/NAME/sock     the sockets: bind it into the FUSE container
"""

import asyncio
import os
import stat
from collections.abc import Callable
from errno import EINVAL
from functools import partial
from typing import TypeVar
from weakref import WeakValueDictionary

from driver.linux import syscalls
from driver.model import limits, paths
from driver.model.errors import Code, VolumeError
from driver.model.paths import DEV_FUSE, STANDALONE_SOCKET, BadPath
from driver.model.policy import OPTIONS_MAX
from driver.model.publication import Publication
from driver.observe.internalerror import report_internal_error
from driver.volumes.volume import Volume, locked
from driver.volumes.volumes import Volumes
from fusermount3_proxy.wire.protocol import V1_SUFFIX

T = TypeVar("T")


class Standalone:
    """Adds, removes and lists these volumes. Their names are the directories below the root."""

    def __init__(self, volumes: Volumes, root: str) -> None:
        self._volumes = volumes
        self.root = root
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by name: held by add() and remove()

    def prepare(self) -> None:
        """Make the root a shared mount, so that later mounts below it propagate to containers. Raises OSError."""
        # 0700: a user of the node who reached a volume's sockets could serve or unmount it.
        os.makedirs(self.root, mode=0o700, exist_ok=True)
        os.chmod(self.root, 0o700)  # Docker makes it 0755 where one of its containers starts before the driver
        try:
            syscalls.mount(None, self.root, None, syscalls.MS_SHARED)
        except OSError as error:
            if error.errno != EINVAL:  # not a mount point yet
                raise
            syscalls.mount(self.root, self.root, None, syscalls.MS_BIND)
            syscalls.mount(None, self.root, None, syscalls.MS_SHARED)

    async def add(self, name: str, read_only: bool, options: str) -> Volume:
        """Publish a volume. Adding it again with the same arguments is no error. Raises VolumeError."""
        volume_paths = self._paths(name)
        if len(options) > OPTIONS_MAX:
            raise VolumeError(Code.INVALID_ARGUMENT, f"the options are longer than {OPTIONS_MAX} characters")
        publication = Publication(
            volume_id=name,
            paths=volume_paths,
            socket_name=STANDALONE_SOCKET,
            read_only=read_only,
            mount_flags=(),
            mount_options=options,
            pod="",
        )
        async with self._lock(name):
            made = await self._run(volume_paths, partial(self._make_folder, name))
            try:
                return await self._volumes.publish(publication)
            except VolumeError as error:
                if made:
                    try:
                        await self._run(volume_paths, partial(self._remove_folder, name))
                    except VolumeError:
                        pass  # the first error is the one to report; the next add or remove finds the folder
                if error.code is Code.ALREADY_EXISTS:
                    text = f"volume {name} exists already, {self._options_of(volume_paths.target_path)}; remove it first"
                    raise VolumeError(Code.ALREADY_EXISTS, text) from None
                raise

    async def remove(self, name: str) -> None:
        """Unpublish, and remove the volume's directory. Raises VolumeError."""
        volume_paths = self._paths(name)
        target = volume_paths.target_path
        # The volume may be known although somebody has removed its directory.
        if self._volumes.at(target) is None and not os.path.isdir(f"{self.root}/{name}"):
            raise VolumeError(Code.NOT_FOUND, f"there is no volume {name}")
        async with self._lock(name):
            await self._volumes.unpublish(target)
            await self._run(volume_paths, partial(self._remove_folder, name))

    async def repair(self) -> None:
        """Repair what containers, or somebody on the node, have changed. kubelet's republish does that for the volumes of pods."""
        try:
            async with asyncio.timeout(limits.PROBE_WAIT):  # what takes longer goes on in its thread
                await asyncio.gather(*(self._repair(volume) for volume in self.all()))
        except TimeoutError:
            pass

    async def repair_periodically(self) -> None:
        """Repair again and again, until this is cancelled."""
        while True:
            await asyncio.sleep(limits.REPAIR_INTERVAL)
            try:
                await self.repair()
            except Exception:
                report_internal_error("repairing the volumes without Kubernetes")

    def close(self) -> None:
        """Leave nothing mounted where there is no volume; otherwise the root is for the next driver."""
        if not self.all():
            try:
                syscalls.umount(self.root, 0)
            except OSError:
                pass  # somebody on the node has unmounted it already, or uses it

    async def _repair(self, volume: Volume) -> None:
        if self._volumes.at(volume.target) is not volume:
            return  # it was removed just now, and must not be made again
        try:
            await self._volumes.publish(volume.publication)
        except VolumeError:
            pass  # it is being removed

    def all(self) -> list[Volume]:
        """Return the volumes that add() made."""
        return [volume for volume in self._volumes if volume.publication.paths.root == self.root]

    def _options_of(self, target: str) -> str:
        volume = self._volumes.at(target)
        assert volume is not None
        read_only = "with" if volume.publication.read_only else "without"
        return f"{read_only} --read-only and with -o {volume.publication.mount_options!r}"

    def _paths(self, name: str) -> paths.VolumePaths:
        try:
            return paths.standalone(name, self.root)
        except BadPath as error:
            raise VolumeError(Code.INVALID_ARGUMENT, str(error)) from None

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    async def _run(self, volume_paths: paths.VolumePaths, work: Callable[[], T]) -> T:
        """Work in the directory of the sockets, which a container can lock. Raises VolumeError."""
        directory = volume_paths.sockets_path
        try:
            return await self._volumes.directories.threads(directory).run(limits.DIRECTORY_WAIT, work)
        except TimeoutError:
            raise locked(directory, limits.DIRECTORY_WAIT) from None

    def _make_folder(self, name: str) -> bool:
        """Make the volume's directory and the one for its sockets. Return whether the volume's was not there. Raises VolumeError."""
        folder = f"{self.root}/{name}"
        is_new = not os.path.isdir(folder)
        try:
            self._refuse_files(f"{folder}/mount")
            for directory, mode in ((folder, 0o755), (f"{folder}/sock", 0o777)):
                os.makedirs(directory, exist_ok=True)
                os.chmod(directory, mode)
        except OSError as error:
            raise VolumeError(Code.INTERNAL, f"cannot make {error.filename}: {error.strerror}") from None
        return is_new

    def _refuse_files(self, target: str) -> None:
        """Raise VolumeError if somebody has put files into a target where nothing is mounted: remove() could not remove it.

        Raises OSError where it cannot be read.
        """
        if self._volumes.at(target) is None and os.path.isdir(target) and not os.path.ismount(target) and os.listdir(target):
            text = f"{target} is not empty: look at its files and remove them by hand"
            raise VolumeError(Code.FAILED_PRECONDITION, text)

    def _remove_folder(self, name: str) -> None:
        folder = f"{self.root}/{name}"
        # A container may have written to sock/: only what the driver puts there is removed, and what remains is reported.
        try:
            directory = os.open(f"{folder}/sock", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                for file_name in (DEV_FUSE, STANDALONE_SOCKET, f"{STANDALONE_SOCKET}{V1_SUFFIX}"):
                    _unlink_own(directory, file_name)
            finally:
                os.close(directory)
            os.rmdir(f"{folder}/sock")
        except FileNotFoundError:
            pass
        except OSError as error:
            raise _left(error) from None
        try:
            os.rmdir(folder)
        except FileNotFoundError:
            pass  # another remove at the same time was faster
        except OSError as error:
            raise _left(error) from None


def _left(error: OSError) -> VolumeError:
    text = f"the volume is unmounted, but {error.filename} cannot be removed: {error.strerror}; look at what is in it"
    return VolumeError(Code.FAILED_PRECONDITION, text)


def _unlink_own(directory: int, name: str) -> None:
    try:
        info = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISSOCK(info.st_mode) or (stat.S_ISREG(info.st_mode) and info.st_size == 0):
            os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass
