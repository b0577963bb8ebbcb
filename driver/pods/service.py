"""Keeps a volume's sockets in place and served, from open() to close()."""

import asyncio
from errno import EBUSY

from driver.observe.logs import VolumeLog
from driver.pods.handler import Handler
from driver.pods.server import Capacity, FdServer
from driver.pods.sockets import PodSockets, SocketFolder


class SocketService:
    """Makes the two sockets of one name in a folder, serves them, and makes them again where the pod has removed them."""

    def __init__(
        self, folder: SocketFolder, name: str, handler: Handler, volume_name: str, accepted_fds: tuple[str, ...], log: VolumeLog
    ) -> None:
        """Begin closed.

        `volume_name` is in each answer to a mount. `accepted_fds` has the names of the fds that a request may bring; others are
        refused.
        """
        self._folder = folder
        self._name = name
        self._handler = handler
        self._volume_name = volume_name
        self._accepted_fds = accepted_fds
        self._log = log
        self._capacity = Capacity()
        self._sockets: PodSockets | None = None
        self._server: FdServer | None = None
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def accepted_connections(self) -> int:
        """Return how many connections were accepted since the driver started."""
        return self._capacity.accepted

    def open(self) -> None:
        """Make the sockets and serve them. Raises NoDirectory, NameTaken and OSError, and leaves no socket then."""
        self._sockets = PodSockets.listen(self._folder, self._name)
        self._server = FdServer(self._handler, self._sockets, self._volume_name, self._log, self._capacity, self._accepted_fds)

    def is_in_place(self) -> bool:
        """Return whether the pod still sees the sockets that are served. Raises OSError."""
        return self._sockets is not None and self._sockets.are_in_place()

    def open_again(self) -> None:
        """Make new sockets in place of those that the pod has removed. Raises as open() does."""
        if self._capacity.listener_thread.is_busy:
            # A pod that fills the queues with what blocks, and removes the sockets, would have more of them each time.
            raise OSError(EBUSY, "the former ones cannot be closed yet")
        self.close()
        self.open()

    def close(self) -> None:
        """Remove the sockets, serve no more requests, and begin to close what is open; wait_closed() waits for the end."""
        if self._sockets is not None:
            try:
                self._sockets.remove()
            except OSError as error:  # the files stay, and nobody answers there
                self._log.warning(f"cannot remove the sockets: {error}")
            self._sockets = None
        if self._server is not None:
            self._server.close()
            task = asyncio.get_running_loop().create_task(self._server.wait_closed())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
            self._server = None

    async def wait_closed(self, limit: float | None = None) -> None:
        """Wait until all that close() began to close is closed, for `limit` seconds or those of FdServer.wait_closed() at most."""
        if self._closing:
            await asyncio.wait(self._closing, timeout=limit)

    def stop(self) -> None:
        """Serve no more requests, and leave the sockets for the next driver."""
        if self._server is not None:
            self._server.stop()
