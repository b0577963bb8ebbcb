"""A /dev/fuse of its own for every mount, so that the kernel's bookkeeping tells when nobody holds it any more.

The fd that a FUSE program serves is an open file description of one device node. The driver locks it (flock, shared)
before it hands it over. The lock lives exactly as long as somebody, whoever it is, holds the fd: a program that forks,
daemonizes or passes it on changes nothing. Asking is one open(2) and one flock(2); inotify tells of the last close.
"""

import fcntl
import os
import secrets
import stat
import string
from dataclasses import dataclass

from driver.linux import syscalls
from driver.observe.logs import log

_UNLOCKED_SUFFIX = ".new"
_NAME_BYTES = 8
_FUSE = os.makedev(10, 229)  # Documentation/admin-guide/devices.txt


@dataclass(frozen=True)
class OpenDevice:
    """A /dev/fuse that is not mounted yet: its device node, and the fd to serve it by, which the owner of this closes."""

    name: str
    fd: int

    def close(self) -> None:
        """Close the fd, and leave the device node: it is mounted."""
        os.close(self.fd)


class DeviceFolder:
    """The folder that holds the nodes, opened so that device nodes work in it even where it lies on a nodev mount."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._fd, self._making = _open_folder(folder)

    def close(self) -> None:
        """Close the copy of the mount."""
        os.close(self._making)
        os.close(self._fd)

    def open(self) -> OpenDevice:
        """Make a node and open it. Raises OSError."""
        try:
            return self._open()
        except FileNotFoundError:
            # Somebody has removed the folder. The mounts whose nodes were in it go on, and their ends are heard of.
            new = _open_folder(self.folder)
            self.close()
            self._fd, self._making = new
            return self._open()

    def _open(self) -> OpenDevice:
        name = secrets.token_hex(_NAME_BYTES)
        # Under another name until it is locked: it would look as if its program had gone.
        unlocked = f"{name}{_UNLOCKED_SUFFIX}"
        fd = -1
        fcntl.flock(self._making, fcntl.LOCK_SH)
        try:
            os.mknod(unlocked, stat.S_IFCHR | 0o600, _FUSE, dir_fd=self._fd)
            fd = os.open(unlocked, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._fd)
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            os.rename(unlocked, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except BaseException:
            if fd >= 0:
                os.close(fd)
            self.remove(unlocked)
            raise
        finally:
            fcntl.flock(self._making, fcntl.LOCK_UN)
        return OpenDevice(name, fd)

    def discard(self, opened: OpenDevice) -> None:
        """Close what was never mounted."""
        os.close(opened.fd)
        self.remove(opened.name)

    def is_held(self, name: str) -> bool:
        """Whether anybody still holds the fd. A program that is stopped holds it; one that unlocks it itself does not."""
        if not self.is_there(name):
            return False
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._fd)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        finally:
            os.close(fd)

    def is_there(self, name: str) -> bool:
        """Whether it is there, and none of what else somebody could put there: to open a FIFO would block for ever."""
        try:
            info = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return stat.S_ISCHR(info.st_mode) and info.st_rdev == _FUSE

    def remove_unheld(self) -> list[str]:
        """Remove the nodes that nobody holds: of mounts that ended while no driver ran, or of a driver that was killed.

        Returns the others.
        """
        held: list[str] = []
        try:
            fcntl.flock(self._making, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return held  # another driver with the same folder is about to lock one
        try:
            for name in os.listdir(self.folder):
                if not self.is_there(name):
                    log.warning(f"{self.path(name)} is no device node of a driver's: it is left as it is")
                elif self.is_held(name):
                    held.append(name)
                else:
                    self.remove(name)
        finally:
            fcntl.flock(self._making, fcntl.LOCK_UN)
        return held

    def path(self, name: str) -> str:
        """Where inotify finds the node."""
        return f"{self.folder}/{name}"

    def remove(self, name: str) -> None:
        """Remove a node, if it is there. Where the folder has become read-only, say, it stays until the next start."""
        try:
            os.unlink(name, dir_fd=self._fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning(f"the device node {self.path(name)} stays until the next start: {error.strerror}")


def is_name(text: str) -> bool:
    """Whether a text is the name of a device node as open() makes them."""
    return len(text) == 2 * _NAME_BYTES and set(text) <= set(string.hexdigits)


def _open_folder(path: str) -> tuple[int, int]:
    """Two fds of the folder, which is made where it is missing: one to use nodes by, one to lock. Raises OSError."""
    os.makedirs(path, mode=0o700, exist_ok=True)
    # A detached copy of the mount is visible to nobody, and gone with the last fd on it.
    copy = syscalls.open_tree(path, syscalls.OPEN_TREE_CLONE)
    try:
        syscalls.mount_setattr(copy, clear=syscalls.MOUNT_ATTR_NODEV)
        # Locked by whoever has a node there that is not locked yet.
        return copy, os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except BaseException:
        os.close(copy)
        raise
