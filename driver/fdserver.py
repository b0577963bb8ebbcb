"""Serves one volume's sockets: takes requests from whoever connects, and hands out /dev/fuse fds.

Everything that arrives is from the pod, so it has a size, a time, and a number at once. No fd is ever received: one
of a file that the pod serves itself could block whoever touches it, even in close(2).
"""

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from errno import EIO, EPROTO
from typing import Protocol

from driver.logs import VolumeLog
from driver.podsockets import PodSockets
from driver.policy import Refused
from fusermount3_proxy import fdpass, limits, protocol
from fusermount3_proxy.protocol import MountRequest, ProtocolError, Reply, UnmountRequest

Serve = Callable[[socket.socket], Awaitable[None]]

_UCRED = struct.Struct("iII")  # struct ucred, unix(7): pid, uid, gid
_ACCEPTS_AT_ONCE = 16  # then other volumes have their turn
_ACCEPT_PAUSE = 0.1  # seconds, after accept(2) failed for want of fds


@dataclass(frozen=True)
class Peer:
    """Who is at the other end, as the kernel says."""

    pid: int
    uid: int
    gid: int


class Handler(Protocol):
    """What the requests are for; both raise Refused."""

    async def mount(self, request: MountRequest, peer: Peer) -> int:
        """Mount, and return the fd; the server closes it."""

    async def unmount(self, request: UnmountRequest) -> None:
        """Unmount."""


class FdServer:
    """Two listening sockets and the requests on them."""

    def __init__(self, handler: Handler, sockets: PodSockets, volume_name: str, log: VolumeLog) -> None:
        self._handler = handler
        self._sockets = sockets
        self._volume_name = volume_name
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._requests: set[asyncio.Task[None]] = set()
        self._waiting: set[asyncio.Future[None]] = set()
        self._listen()

    def close(self) -> None:
        """Take no more requests, and end those that have not arrived yet. The sockets stay the caller's.

        A request at work goes on: half an unmount would be worse, and the volume's lock makes others wait for it.
        """
        for sock in (self._sockets.v1, self._sockets.original):
            self._loop.remove_reader(sock.fileno())
        for waiting in self._waiting:
            _settle(waiting, ConnectionResetError("the volume is being unpublished"))

    def _listen(self) -> None:
        self._loop.add_reader(self._sockets.v1.fileno(), self._accept, self._sockets.v1, self._serve_v1)
        self._loop.add_reader(self._sockets.original.fileno(), self._accept, self._sockets.original, self._serve_original)

    def _accept(self, listener: socket.socket, serve: Serve) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                self._log.error(f"cannot accept a connection: {error.strerror}")
                self._loop.remove_reader(listener.fileno())
                self._loop.call_later(_ACCEPT_PAUSE, self._resume)
                return
            # A pod that floods its socket must not fill the driver's memory.
            if len(self._requests) >= limits.REQUESTS_AT_ONCE:
                connection.close()
                continue
            connection.setblocking(False)
            task = self._loop.create_task(self._run(serve, connection))
            self._requests.add(task)
            task.add_done_callback(self._requests.discard)

    def _resume(self) -> None:
        if self._sockets.v1.fileno() >= 0:
            self._listen()

    async def _run(self, serve: Serve, connection: socket.socket) -> None:
        try:
            await serve(connection)
        except (BrokenPipeError, ConnectionResetError):
            self._log.info("a client went before it had its answer")
        except Exception as error:
            self._log.error(f"a request failed: {error!r}")
        finally:
            connection.close()

    async def _serve_original(self, connection: socket.socket) -> None:
        try:
            fd = await self._handler.mount(MountRequest("", ""), _peer(connection))
        except Refused as refusal:
            # The original protocol knows no refusal but a close.
            self._log.warning(f"mount refused: {refusal}")
            return
        _hand_over(connection, Reply(volume_name=self._volume_name), fd)

    async def _serve_v1(self, connection: socket.socket) -> None:
        try:
            packet = await asyncio.wait_for(self._receive(connection), limits.REQUEST_WAIT)
            if not packet:
                return
            request = protocol.decode_request(packet)
            if isinstance(request, MountRequest):
                fd = await self._handler.mount(request, _peer(connection))
                _hand_over(connection, Reply(volume_name=self._volume_name), fd)
            else:
                await self._handler.unmount(request)
                fdpass.send_with_fds(connection, protocol.encode_reply(Reply()), [])
        except Refused as refusal:
            self._log.warning(f"request refused: {refusal}")
            self._refuse(connection, str(refusal), refusal.errno)
        except ProtocolError as error:
            self._log.warning(f"bad request: {error}")
            self._refuse(connection, f"bad request: {error}", EPROTO)
        except TimeoutError:
            self._log.warning(f"a client connected and sent no request within {limits.REQUEST_WAIT:g} s")
        except (BrokenPipeError, ConnectionResetError):
            raise
        except OSError as error:
            self._log.error(f"a request failed: {error}")
            self._refuse(connection, f"the driver failed: {error.strerror}", error.errno or EIO)

    def _refuse(self, connection: socket.socket, text: str, errno: int) -> None:
        fdpass.send_with_fds(connection, protocol.encode_reply(Reply(error=text, errno=errno)), [])

    async def _receive(self, connection: socket.socket) -> bytes:
        readable = self._loop.create_future()
        self._waiting.add(readable)
        self._loop.add_reader(connection.fileno(), _settle, readable)
        try:
            await readable
        finally:
            self._loop.remove_reader(connection.fileno())
            self._waiting.discard(readable)
        try:
            # Without room for fds the kernel drops them, and never installs them here.
            data, _ = fdpass.receive_with_fds(connection, limits.PACKET_MAX, 0)
        except fdpass.Truncated:
            raise ProtocolError(f"the packet is longer than {limits.PACKET_MAX} bytes") from None
        return data


def _settle(future: "asyncio.Future[None]", error: OSError | None = None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)


def _hand_over(connection: socket.socket, reply: Reply, fd: int) -> None:
    # Where the client is gone, this close is the last one, and the volume is told so by its device node.
    try:
        fdpass.send_with_fds(connection, protocol.encode_reply(reply), [fd])
    finally:
        os.close(fd)


def _peer(connection: socket.socket) -> Peer:
    return Peer(*_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))
