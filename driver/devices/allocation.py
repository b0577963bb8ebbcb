"""One allocation: a fuse device that was given to a container or to some, with a socket of its own."""

from driver.devices.mount import DeviceMount
from driver.devices.requests import DeviceRequests
from driver.devices.shared import Shared
from driver.devices.socket import DeviceSocket
from driver.observe.logs import VolumeLog
from driver.pods.server import Capacity, FdServer
from fusermount3_proxy.wire.protocol import MOUNTPOINT_FD


class Allocation:
    """Serves the socket in one folder, from open() to close()."""

    def __init__(self, name: str, folder: str, shared: Shared, is_shared: bool, uid: int | None = None) -> None:
        """Begin without a socket.

        `is_shared` is whether more than one container may have it. `uid` is the user of the node who has the folder; None where the
        driver has it.
        """
        self.name = name
        self.uid = uid
        self.owner = "" if uid is None else f"user {uid}"  # or NAMESPACE/POD/CONTAINER
        self.socket_folder = folder
        self._log = VolumeLog("", name)
        self.requests = DeviceRequests(name, shared, self._log, is_shared)
        self._capacity = Capacity()
        self._server: FdServer | None = None

    @property
    def mounts(self) -> list[DeviceMount]:
        """Return its mounts."""
        return self.requests.mounts

    def open(self, folder: int) -> None:
        """Make the socket in the folder of this fd, which it closes, and serve it. Raises OSError."""
        sockets = DeviceSocket.make(folder)
        self._server = FdServer(self.requests, sockets, self.name, self._log, self._capacity, (MOUNTPOINT_FD,))

    def set_owner(self, owner: str) -> None:
        """Note who has the device: NAMESPACE/POD/CONTAINER, or "" for nobody. The lines of the log name it."""
        self.owner = owner
        self._log.pod = owner

    def stop(self) -> None:
        """Serve no more requests, and leave mounts and socket for the next driver."""
        if self._server is not None:
            self._server.stop()
        self.requests.stop()

    async def close(self) -> None:
        """Serve no more requests, and close the socket. Mounts go on."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None
