"""What the driver has for itself: the folder of device nodes, and a private tmpfs with mountpoints.

What is mounted on the tmpfs appears in no container. But a bind of a FUSE mount there is a peer of that mount in containers, so a
mount on that bind appears in the containers.
"""

import fcntl
import os
import secrets

from driver.linux import mounttable, syscalls
from driver.mounts import fusemount
from driver.mounts.connections import Connections
from driver.mounts.device import DeviceFolder
from driver.observe.logs import log

_PRIVATE_PREFIX = "private-"
_TARGET_SUFFIX = ".target"
_LAZY_SUFFIX = ".lazy"


class Workspace:
    """Owns the driver's folder of device nodes and its private tmpfs, from the driver's start to its end."""

    def __init__(self, folder: str, is_alone: bool) -> None:
        """Make both below `folder`. Raises OSError.

        `is_alone` says that no other driver has the folder; then what a killed driver has left there is cleared away.
        """
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self.devices = DeviceFolder(f"{folder}/dev")
        for name in os.listdir(folder) if is_alone else ():
            if name.startswith(_PRIVATE_PREFIX):
                _clear_away(f"{folder}/{name}")
        self._private = f"{folder}/{_PRIVATE_PREFIX}{secrets.token_hex(8)}"
        os.mkdir(self._private, 0o700)
        # Two locks show other drivers that this one runs. The one on the directory is seen in every mount namespace. The one on the
        # tmpfs is for drivers of former versions, which test no other.
        self._owned = [_locked(self._private)]
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
        syscalls.mount("mfcp-private", self._private, "tmpfs", flags, "mode=0700")
        syscalls.mount(None, self._private, None, syscalls.MS_PRIVATE)
        self._owned.append(_locked(self._private))
        self.connections = Connections(self._private)

    def close(self) -> None:
        """Unmount and remove the private tmpfs."""
        self.connections.close()
        for fd in self._owned:
            os.close(fd)
        _clear_away(self._private)

    def new_private_mountpoint(self, target: str, is_lazy: bool) -> str:
        """Make an empty directory on the private tmpfs, for take_off() of `target`; remove_private_mountpoint() removes it."""
        path = f"{self._private}/{secrets.token_hex(8)}"
        # If this driver is killed, the links tell the next one which target it was detaching, and whether lazily.
        if is_lazy:
            os.symlink(target, f"{path}{_LAZY_SUFFIX}")
        os.symlink(target, f"{path}{_TARGET_SUFFIX}")
        os.mkdir(path, 0o700)
        return path


def remove_private_mountpoint(private: str) -> None:
    """Unmount everything at `private`, which new_private_mountpoint() has made, and remove it."""
    fusemount.detach_all(private)
    os.rmdir(private)
    os.unlink(f"{private}{_TARGET_SUFFIX}")
    if os.path.lexists(f"{private}{_LAZY_SUFFIX}"):
        os.unlink(f"{private}{_LAZY_SUFFIX}")


def _locked(path: str) -> int:
    """Return an fd of a directory, locked. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return fd


def _clear_away(path: str) -> None:
    """Remove a private tmpfs, or log why it stays: that must keep no driver from starting or ending."""
    try:
        _remove_private(path)
    except OSError as error:
        log.warning(f"{path} is left as it is, and may be removed by hand: {error.strerror}")


def _remove_private(path: str) -> None:
    """Remove a private tmpfs, unless a running driver owns it. Raises OSError, also where something else has its name."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    beneath = -1
    try:
        beneath = _open_beneath(path)
        fcntl.flock(beneath, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if mounttable.mounts_at(path):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for name in os.listdir(fd):
                if name.endswith(_TARGET_SUFFIX):
                    _finish_take_off(f"{path}/{name.removesuffix(_TARGET_SUFFIX)}", os.readlink(name, dir_fd=fd))
            # The mounts in it are peers of mounts in containers. Unmounting them as they are would unmount those, too.
            syscalls.mount_setattr(fd, propagation=syscalls.MS_PRIVATE, recursive=True)
        else:
            # Somebody has unmounted the tmpfs, and the driver went on in the directory beneath.
            for name in os.listdir(fd):
                if name.endswith(_TARGET_SUFFIX):
                    _remove_left_mountpoint(fd, name)
        fusemount.detach_all(path)
        os.rmdir(path)
    except BlockingIOError:
        return
    finally:
        os.close(fd)
        if beneath >= 0:
            os.close(beneath)


def _open_beneath(path: str) -> int:
    """Return an fd of the directory `path` itself, whatever is mounted on it here. Raises OSError."""
    folder, name = os.path.split(path)
    copy = syscalls.open_tree(folder, syscalls.OPEN_TREE_CLONE)  # of one mount, without those on it
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=copy)
    finally:
        os.close(copy)


def _remove_left_mountpoint(directory: int, link: str) -> None:
    """Remove a private mountpoint and its links, by the name of one. Raises OSError, with EBUSY where something is mounted there.

    Such a mount stays: it is a peer of mounts in containers, and unmounting what is on it would unmount theirs.
    """
    try:
        os.rmdir(link.removesuffix(_TARGET_SUFFIX), dir_fd=directory)
    except FileNotFoundError:
        pass
    os.unlink(link, dir_fd=directory)
    lazy = f"{link.removesuffix(_TARGET_SUFFIX)}{_LAZY_SUFFIX}"
    if lazy in os.listdir(directory):
        os.unlink(lazy, dir_fd=directory)


def _finish_take_off(private: str, target: str) -> None:
    """Finish a take_off() whose driver was killed. Otherwise containers that started after the mount would keep it for ever."""
    try:
        here = mounttable.mounts_at(private)
        if not here or not here[-1].is_fuse:
            return  # it had not begun; or the placeholder covers the mount already
        if mounttable.device_number_at(target) == here[-1].device:
            return  # the mount is still at the target, and its volume is restored
        fuse = os.open(private, os.O_PATH | os.O_CLOEXEC)
        try:
            is_lazy = os.path.lexists(f"{private}{_LAZY_SUFFIX}")
            fusemount.cover(private, target, lacks_placeholder=not mounttable.mounts_at(target), is_lazy=is_lazy)
        finally:
            os.close(fuse)
    except OSError as error:
        log.error(f"the mount at {target}, which a former driver was taking off, may stay in containers until they restart: {error}")
