"""A /dev/fuse of its own for every mount, so that the kernel's bookkeeping tells when nobody holds it any more.

The fd that a FUSE program serves is an open file description of one device node. The driver locks it (flock, shared)
before it hands it over. The lock lives exactly as long as somebody, whoever it is, holds the fd: a program that forks,
daemonizes or passes it on changes nothing. Asking is one open(2) and one flock(2); inotify tells of the last close.
"""

import fcntl
import os
import secrets
import stat
import time

from driver import syscalls

_FRESH = 60  # seconds
_FUSE = os.makedev(10, 229)  # Documentation/admin-guide/devices.txt


class DeviceNodes:
    """The folder that holds the nodes, opened so that device nodes work in it even where it lies on a nodev mount."""

    def __init__(self, folder: str) -> None:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self.folder = folder
        # A detached copy of the mount is visible to nobody, and gone with the last fd on it.
        self._fd = syscalls.open_tree(folder, syscalls.OPEN_TREE_CLONE)
        syscalls.mount_setattr(self._fd, clear=syscalls.MOUNT_ATTR_NODEV)

    def close(self) -> None:
        """Close the copy of the mount."""
        os.close(self._fd)

    def create(self) -> str:
        """Make a node and return its name."""
        name = secrets.token_hex(8)
        os.mknod(name, stat.S_IFCHR | 0o600, _FUSE, dir_fd=self._fd)
        return name

    def open_locked(self, name: str) -> int:
        """The fd to mount and to hand over, locked."""
        fd = os.open(name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def is_held(self, name: str) -> bool:
        """Whether anybody still holds the fd. A program that is stopped holds it; one that unlocks it itself does not."""
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

    def remove_unheld(self) -> None:
        """Remove the nodes that nobody holds: of mounts that ended while no driver ran."""
        for name in os.listdir(self.folder):
            # One that another process has just made is not locked yet.
            if time.time() - os.stat(name, dir_fd=self._fd).st_ctime > _FRESH and not self.is_held(name):
                self.remove(name)

    def path(self, name: str) -> str:
        """Where inotify finds the node."""
        return f"{self.folder}/{name}"

    def remove(self, name: str) -> None:
        """Remove a node, if it is there."""
        try:
            os.unlink(name, dir_fd=self._fd)
        except FileNotFoundError:
            pass
