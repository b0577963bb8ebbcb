"""Runs an FdServer on real sockets, with a handler that stands in for a volume."""

import array
import asyncio
import json
import os
import select
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from errno import EINTR
from pathlib import Path
from typing import Any, TypeVar

from open_fds import nothing_leaked
from standin_driver import DEADLINE, receive
from with_processes import until

from driver.model import limits
from driver.model.peer import Peer
from driver.model.policy import Refused
from driver.observe.logs import VolumeLog
from driver.pods.server import Capacity, FdServer
from driver.pods.sockets import NoDirectory, PodSockets
from fusermount3_proxy.wire import protocol
from fusermount3_proxy.wire.protocol import MountRequest, UnmountRequest

T = TypeVar("T")

MOUNT = protocol.encode_request(MountRequest("/m", "ro"))
SYNC_INIT = protocol.encode_request(MountRequest("/m", "ro", sync_init=True))
UNMOUNT = protocol.encode_request(UnmountRequest("/m", True, "0:45"))
NAME = {"volumeName": "data"}


class Handler:
    """Stands in for a volume, and keeps the requests. It raises `outcome`, or calls it."""

    def __init__(self) -> None:
        self.mounts: list[tuple[str, str, Peer]] = []
        self.unmounts: list[tuple[str, bool, str | None]] = []
        self.handed_out: list[int] = []
        self.outcome: BaseException | None = None
        # A request is being carried out from `began` to `go_on`.
        self.began = asyncio.Semaphore(0)
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.prepared: list[Prepared] = []
        self.given_up = asyncio.Event()

    async def mount(self, request: MountRequest, peer: Peer) -> int:
        self.mounts.append((request.mountpoint, request.options, peer))
        await self._work()
        fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self.handed_out.append(fd)
        return fd

    async def prepare(self, request: MountRequest, peer: Peer) -> "Prepared":
        self.mounts.append((request.mountpoint, request.options, peer))
        if self.outcome is not None:
            raise self.outcome
        self.prepared.append(Prepared(self))
        return self.prepared[-1]

    async def unmount(self, request: UnmountRequest, peer: Peer) -> None:
        self.unmounts.append((request.mountpoint, request.lazy, request.device))
        await self._work()

    async def _work(self) -> None:
        self.began.release()
        await self.go_on.wait()
        if self.outcome is not None:
            raise self.outcome


class Prepared:
    """Stands in for a mount that waits for the client's `proceed`."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self.is_mounted = False

    async def mount(self, client_gone: "asyncio.Future[None]") -> None:
        work = asyncio.ensure_future(self._handler._work())
        await asyncio.wait({work, client_gone}, return_when=asyncio.FIRST_COMPLETED)
        if client_gone.done():
            work.cancel()
            self._handler.given_up.set()
            raise Refused("given up", EINTR)
        work.result()
        self.is_mounted = True

    def discard(self) -> None:
        os.close(self.fd)


class NoFolder:
    """Stands in for the folder of sockets that a test has bound itself."""

    def open(self, resolve: int = 0) -> int:
        raise NoDirectory("nobody asks for it")


class Served:
    """Holds a running server, and connects clients to it."""

    def __init__(self, handler: Handler, server: FdServer, path: Path, sockets: PodSockets) -> None:
        self.handler = handler
        self.server = server
        self.sockets = sockets
        self._path = path

    def connect(self, suffix: str = ".v1") -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET if suffix else socket.SOCK_STREAM)
        client.settimeout(DEADLINE)
        client.connect(f"{self._path}{suffix}")
        return client

    async def ask(self, packet: bytes, *fds: int) -> tuple[dict[str, Any], list[int]]:
        """Send one packet on a new connection, and return the answer."""
        with self.connect() as client:
            send(client, packet, *fds)
            return await answer(client)


def send(client: socket.socket, packet: bytes, *fds: int) -> None:
    client.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])


async def answer(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    data, fds = await in_thread(lambda: receive(client))
    assert data, "closed without an answer"
    return json.loads(data), fds


async def is_closed(client: socket.socket) -> bool:
    """Return whether the server closes the connection without sending a byte."""
    try:
        return await in_thread(lambda: client.recv(100)) == b""
    except ConnectionResetError:
        return True


async def nobody_holds_the_other_end(reader: int) -> bool:
    """Return whether all copies of the writing end of a pipe, which was sent to the driver, are closed."""

    def read() -> bool:
        readable, _, _ = select.select([reader], [], [], 5)
        return bool(readable) and os.read(reader, 1) == b""

    return await in_thread(read)


async def in_thread(work: Callable[[], T]) -> T:
    return await asyncio.wait_for(asyncio.to_thread(work), DEADLINE)


async def soon(what: "asyncio.Future[T] | Any") -> Any:
    return await asyncio.wait_for(what, DEADLINE)


def listening(path: Path, suffix: str, kind: type[socket.socket] = socket.socket) -> socket.socket:
    sock = kind(socket.AF_UNIX, (socket.SOCK_SEQPACKET if suffix else socket.SOCK_STREAM) | socket.SOCK_NONBLOCK)
    sock.bind(f"{path}{suffix}")
    sock.listen(limits.CONNECTIONS_IN_QUEUE)
    return sock


@asynccontextmanager
async def serving(folder: Path, kind: type[socket.socket] = socket.socket, accepted_fds: tuple[str, ...] = ()) -> AsyncIterator[Served]:
    """Run a server until the end of the block, and check that it leaves nothing behind."""
    path = folder / "s"
    with nothing_leaked():
        sockets = PodSockets(listening(path, ""), listening(path, ".v1", kind), NoFolder(), "s", ())
        handler = Handler()
        server = FdServer(handler, sockets, "data", VolumeLog("default/pod", "csi-1"), Capacity(), accepted_fds)
        try:
            yield Served(handler, server, path, sockets)
        finally:
            server.stop()
            handler.go_on.set()
            for task in list(server._connections):
                await soon(task)
            await until(lambda: server._capacity.connections == 0)
            server.close()
            await soon(server.wait_closed())
            for suffix in ("", ".v1"):
                os.unlink(f"{path}{suffix}")
