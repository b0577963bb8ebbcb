"""What the mount core asks of the Linux kernel for mounts of fuse devices (mounts/kernel.py, DeviceKernel)."""

import os
from collections.abc import Callable
from errno import ENOENT

from driver.linux.filewatch import FileWatch
from driver.mounts.connections import Connection
from driver.mounts.workspace import Workspace


class CallersKernel:
    """The device node and the FUSE connection of one mount; the methods are those of DeviceKernel."""

    def __init__(self, workspace: Workspace, files: FileWatch) -> None:
        """Begin without a connection."""
        self._workspace = workspace
        self._files = files
        self._connection: Connection | None = None

    def own(self, connection: Connection) -> None:
        """Take over the connection of the mount, which was opened while its fd was known to be open."""
        self._connection = connection

    def has_device(self, name: str) -> bool:
        return self._workspace.devices.is_there(name)

    def is_device_held(self, name: str) -> bool:
        return self._workspace.devices.is_held(name)

    def remove_device(self, name: str) -> None:
        self._workspace.devices.remove(name)

    def watch_device(self, name: str, callback: Callable[[], None]) -> int:
        return self._files.on_last_close(self._workspace.devices.path(name), callback)

    def unwatch(self, watch: int) -> None:
        self._files.remove(watch)

    def connection(self, device_number: str) -> Connection:
        """Return the mount's connection once more. Raises FileNotFoundError where it has ended, and OSError."""
        if self._connection is not None:
            found = self._workspace.connections.find(device_number, self._connection.identity)
            if found is not None:
                return found
        raise FileNotFoundError(ENOENT, os.strerror(ENOENT), device_number)

    def find_connection(self, device_number: str, identity: str) -> Connection | None:
        return self._workspace.connections.find(device_number, identity)

    def is_connection_used(self, device_number: str, connection: Connection | None) -> bool:
        return self._workspace.connections.is_there(device_number, connection)

    def take_if_used(self, device_number: str) -> Connection | None:
        """Return the connection, which the caller owns then, if its file system is still in use: mounted elsewhere, or by open files."""
        connection = self._connection
        try:
            if connection is None or not self._workspace.connections.is_there(device_number, connection):
                return None
        except OSError:
            return None
        self._connection = None
        return connection

    def abort(self) -> None:
        """End the connection: its program gets ENODEV, and who uses the file system gets errors. Raises OSError."""
        if self._connection is not None:
            self._connection.abort()

    def close(self) -> None:
        """Close the connection's file. The connection goes on."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
