"""Finds and ends FUSE connections that have no mount at any path, through fusectl (Documentation/filesystems/fuse, "Control filesystem").

fusectl has a folder for each connection, with the device number of its file system as its name. The kernel gives such a number to
the next file system when it is free again, so a connection is known by the inode of its file `abort` as well. That inode stays as
long as fusectl is mounted somewhere; systemd mounts it at /sys/fs/fuse/connections for the machine's whole life.
"""

import os
from errno import ENOENT

from driver.linux import syscalls


class Connection:
    """Holds one connection's file `abort`. A file that was opened while the connection lived never ends another one."""

    def __init__(self, fd: int) -> None:
        """Own `fd`."""
        self.identity = _identity(os.fstat(fd))  # what Connections.find() takes
        self._fd = fd

    def abort(self) -> None:
        """End the connection: its program gets ENODEV, and who uses the file system gets errors. Raises OSError."""
        os.write(self._fd, b"1")

    def close(self) -> None:
        """Close the file. The connection goes on."""
        os.close(self._fd)


class Connections:
    """Opens connections, in a mount of fusectl that no other process sees."""

    def __init__(self, private: str) -> None:
        """Mount fusectl for a moment in the folder `private`. Raises OSError."""
        path = f"{private}/fusectl"
        os.mkdir(path, 0o700)
        try:
            flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
            syscalls.mount("mfcp-fusectl", path, "fusectl", flags)
            try:
                self._folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            finally:
                syscalls.umount(path, syscalls.MNT_DETACH)
        finally:
            os.rmdir(path)

    def open(self, device_number: str) -> Connection:
        """Return the connection of a file system that is mounted, by its MAJOR:MINOR. Raises OSError."""
        fd = os.open(self._path(device_number), os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._folder)
        return Connection(fd)

    def find(self, device_number: str, identity: str) -> Connection | None:
        """Return a connection that another driver had opened. Raises FileNotFoundError if it has ended, and OSError.

        Return None if it cannot be told: the number belongs to another connection now, or fusectl was mounted nowhere meanwhile.
        """
        found = self.open(device_number)
        if found.identity == identity:
            return found
        found.close()
        return None

    def is_there(self, device_number: str, connection: Connection | None) -> bool:
        """Return whether somebody still uses the connection's file system. Raises OSError."""
        try:
            identity = _identity(os.stat(self._path(device_number), dir_fd=self._folder))
        except FileNotFoundError:
            return False
        return connection is None or identity == connection.identity

    def close(self) -> None:
        """Close the mount of fusectl."""
        os.close(self._folder)

    @staticmethod
    def _path(device_number: str) -> str:
        major, _, minor = device_number.partition(":")
        if major != "0" or not minor.isdecimal():  # a FUSE file system on a block device, which the driver never mounts
            raise FileNotFoundError(ENOENT, os.strerror(ENOENT), device_number)
        return f"{minor}/abort"


def _identity(info: os.stat_result) -> str:
    return f"{info.st_ino} {info.st_ctime_ns}"
