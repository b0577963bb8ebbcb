"""Makes a device node for each mount, so that the kernel's bookkeeping tells when no process holds the mount's fd any more.

The fd that a FUSE program serves is an open file description of one device node (c 10:229). The driver locks it (flock, shared)
before it hands it over. The lock lives exactly as long as some process holds the fd: a program that forks, daemonizes or passes
the fd on changes nothing. Testing the lock is one open(2) and one flock(2); inotify tells of the last close.
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
    """Holds a /dev/fuse that is not mounted yet: the name of its device node, and the fd that will serve it. Its owner closes the fd."""

    name: str
    fd: int

    def close(self) -> None:
        """Close the fd, and leave the device node: it is mounted."""
        os.close(self.fd)


class DeviceFolder:
    """Makes and removes device nodes in one folder. They work even where the folder lies on a nodev mount."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._fd, self._making = _open_folder(folder)

    def close(self) -> None:
        """Close the copy of the mount."""
        os.close(self._making)
        os.close(self._fd)

    def open(self, mode: int = 0o600) -> OpenDevice:
        """Make a device node with this mode, open it and lock it. Raises OSError."""
        try:
            return self._open(mode)
        except FileNotFoundError:
            # Somebody has removed the folder. The mounts whose device nodes were in it go on, and inotify still reports their ends.
            new = _open_folder(self.folder)
            self.close()
            self._fd, self._making = new
            return self._open(mode)

    def _open(self, mode: int) -> OpenDevice:
        name = secrets.token_hex(_NAME_BYTES)
        # It has another name until it is locked: without the lock it would look as if its program had ended.
        unlocked = f"{name}{_UNLOCKED_SUFFIX}"
        fd = -1
        fcntl.flock(self._making, fcntl.LOCK_SH)
        try:
            os.mknod(unlocked, stat.S_IFCHR | 0o600, _FUSE, dir_fd=self._fd)
            if mode != 0o600:  # the driver's umask is 0077
                os.chmod(unlocked, mode, dir_fd=self._fd)
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
        """Close and remove a device that was never mounted."""
        os.close(opened.fd)
        self.remove(opened.name)

    def is_held(self, name: str) -> bool:
        """Return whether some process holds the fd. A stopped program holds it. One that has dropped the lock looks as if it had ended."""
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
        """Return whether the name is a device node. Somebody could have put a FIFO there, and opening that would block for ever."""
        try:
            info = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return stat.S_ISCHR(info.st_mode) and info.st_rdev == _FUSE

    def remove_unheld(self) -> list[str]:
        """Remove the device nodes that no process holds: their mounts ended while no driver ran, or their driver was killed.

        Return the names of the others.
        """
        held: list[str] = []
        try:
            fcntl.flock(self._making, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return held  # another driver with the same folder is about to lock a new one
        try:
            for name in os.listdir(self.folder):
                if not self.is_there(name):
                    log.warning(f"{self.path(name)} is no device node of a driver: it is left as it is")
                elif self.is_held(name):
                    held.append(name)
                else:
                    self.remove(name)
        finally:
            fcntl.flock(self._making, fcntl.LOCK_UN)
        return held

    def path(self, name: str) -> str:
        """Return the path of a device node, for inotify."""
        return f"{self.folder}/{name}"

    def remove(self, name: str) -> None:
        """Remove a device node, if it is there. One that cannot be removed stays until the next start of the driver."""
        try:
            os.unlink(name, dir_fd=self._fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning(f"the device node {self.path(name)} stays until the next start: {error.strerror}")


def is_name(text: str) -> bool:
    """Return whether a text is a name that open() could have made."""
    return len(text) == 2 * _NAME_BYTES and set(text) <= set(string.hexdigits)


def _open_folder(path: str) -> tuple[int, int]:
    """Make the folder where it is missing. Return two fds of it: one for the device nodes, one to lock. Raises OSError."""
    os.makedirs(path, mode=0o700, exist_ok=True)
    # A detached copy of the mount, without nodev: no other process sees it, and it ends with the last fd on it.
    copy = syscalls.open_tree(path, syscalls.OPEN_TREE_CLONE)
    try:
        syscalls.mount_setattr(copy, clear=syscalls.MOUNT_ATTR_NODEV)
        # A driver holds the lock while it has a device node there that is not locked yet.
        return copy, os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except BaseException:
        os.close(copy)
        raise
