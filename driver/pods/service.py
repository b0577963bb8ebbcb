"""Keeps a volume's sockets in place and served, from open() to close()."""

import asyncio
from collections.abc import Callable
from errno import EBUSY
from typing import TypeVar

from driver.blocking.threads import Threads
from driver.model import limits
from driver.observe.logs import VolumeLog
from driver.pods.handler import Handler
from driver.pods.server import Capacity, FdServer
from driver.pods.sockets import PodSockets, SocketFolder

T = TypeVar("T")

_CLOSE_WAIT = 0.1  # seconds; closing sockets takes longer only where a pod has queued what blocks it


class SocketService:
    """Makes the two sockets of one name in a folder, serves them, and makes them again where the pod has removed them.

    Work in the folder takes limits.DIRECTORY_WAIT at most, and raises TimeoutError then: the pod keeps the folder locked. One call
    at a time opens or repairs the sockets.
    """

    def __init__(
        self,
        folder: SocketFolder,
        threads: Callable[[], Threads],
        name: str,
        handler: Handler,
        volume_name: str,
        accepted_fds: tuple[str, ...],
        log: VolumeLog,
    ) -> None:
        """Begin closed.

        `threads` returns the one thread that works in the folder. `volume_name` is in each answer to a mount. `accepted_fds` has the
        names of the fds that a request may bring; others are refused.
        """
        self._folder = folder
        self._threads = threads
        self._name = name
        self._handler = handler
        self._volume_name = volume_name
        self._accepted_fds = accepted_fds
        self._log = log
        self._capacity = Capacity()
        self._sockets: PodSockets | None = None
        self._server: FdServer | None = None
        self._closing: list[asyncio.Task[None]] = []
        self._is_stopped = False

    @property
    def accepted_connections(self) -> int:
        """Return how many connections were accepted since the driver started."""
        return self._capacity.accepted

    @property
    def stuck_thread(self) -> Threads | None:
        """Return the thread that close() has begun to work in, if it has not ended."""
        return self._capacity.listener_thread if self._capacity.listener_thread.is_busy else None

    def make(self) -> PodSockets:
        """Make the sockets, for serve(). Call it in a thread where containers of the pod may run.

        Raises NoDirectory, NameTaken and OSError, and leaves no socket then.
        """
        return PodSockets.make(self._folder, self._name)

    def serve(self, sockets: PodSockets) -> None:
        """Serve the sockets that make() has made."""
        self._sockets = sockets
        if not self._is_stopped:
            self._server = FdServer(self._handler, sockets, self._volume_name, self._log, self._capacity, self._accepted_fds)

    async def open(self) -> None:
        """Make the sockets and serve them. Raises as make() does, and TimeoutError; sockets that are made too late are removed again."""
        self.serve(await self._run(self.make, PodSockets.discard))

    def open_at_once(self) -> None:
        """Make the sockets and serve them, where no process can lock the folder yet. Raises as make() does."""
        self.serve(self.make())

    async def is_in_place(self) -> bool:
        """Return whether the pod still sees the sockets that are served. Raises OSError."""
        if self._sockets is None:
            return False
        # kubelet asks again and again, and with a thread each time a republish would cost nearly twice as much.
        return self._sockets.are_known_in_place() or await self._run(self._sockets.are_in_place)

    async def open_again(self) -> None:
        """Make new sockets in place of those that the pod has removed. Raises as open() does."""
        self.close()
        await self.wait_closed(_CLOSE_WAIT)
        if self._capacity.listener_thread.is_busy:
            # Otherwise a pod could fill the queues with fds whose close blocks, remove the sockets, and block one more thread each time.
            raise OSError(EBUSY, "a process in the pod keeps the former sockets from being closed; the next republish tries again")
        await self.open()

    def close(self) -> None:
        """Serve no more requests, and begin to close what is open and to remove the sockets; wait_closed() waits for the end."""
        self._sockets = None
        if self._server is not None:
            self._server.close()
            task = asyncio.get_running_loop().create_task(self._server.wait_closed())
            self._closing.append(task)
            task.add_done_callback(self._closing.remove)
            self._server = None

    async def wait_closed(self, limit: float | None = None) -> None:
        """Wait until all that close() began is done, for `limit` seconds or limits.PROBE_WAIT at most."""
        if self._closing:
            await asyncio.wait(self._closing, timeout=limit)

    def stop(self) -> None:
        """Serve no more requests, and leave the sockets for the next driver."""
        self._is_stopped = True
        if self._server is not None:
            self._server.stop()

    async def _run(self, work: Callable[[], T], discard: Callable[[T], object] | None = None) -> T:
        return await self._threads().run(limits.DIRECTORY_WAIT, work, discard)
