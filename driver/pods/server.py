"""Serves one volume's sockets: takes requests from whoever connects, and hands out /dev/fuse fds.

Everything that arrives is from the pod, so there are limits for its size, its time and its number. The kernel drops the fds
that a client sends along, and never installs them here. But dropping an fd can block the thread that does it for as long as
the pod likes (a lingering TCP socket, a file of a file system that the pod serves), and closing a connection drops the fds
that are queued in it. So connections are always closed in threads of the volume's own, and packets that bring fds are
received there. Where all these threads are stuck, the connections that wait for one of them fill the volume's limit, and it
accepts no more until a thread is free.
"""

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from enum import Enum
from errno import EBUSY, EIO, EPROTO
from functools import partial
from typing import Protocol

from driver.blocking.threads import Threads
from driver.model import limits
from driver.model.peer import Peer
from driver.model.policy import Refused
from driver.observe import metrics
from driver.observe.internalerror import report_internal_error
from driver.observe.logs import VolumeLog
from driver.observe.metrics import Reason
from driver.pods.sockets import PodSockets
from fusermount3_proxy.wire import fdpass, protocol
from fusermount3_proxy.wire.protocol import MountRequest, ProtocolError, Reply, UnmountRequest

_UCRED = struct.Struct("iII")  # struct ucred, unix(7): pid, uid, gid
_ACCEPT_PAUSE = 0.1  # seconds, after accept(2) failed for want of fds


class Prepared(Protocol):
    """A mount that waits for the client's word."""

    @property
    def fd(self) -> int:
        """The /dev/fuse for the client; not the server's to close."""

    async def mount(self, client_gone: "asyncio.Future[None]") -> None:
        """Mount it; gives up where `client_gone` is set. Raises Refused."""

    def discard(self) -> None:
        """Close it. After mount() this does nothing."""


class Handler(Protocol):
    """What the requests are for; all raise Refused."""

    async def mount(self, request: MountRequest, peer: Peer) -> int:
        """Mount, and return the fd; the server closes it."""

    async def prepare(self, request: MountRequest, peer: Peer) -> Prepared:
        """Make ready what is mounted when the client says so."""

    async def unmount(self, request: UnmountRequest) -> None:
        """Unmount."""


class Capacity:
    """What one volume may use for its clients: threads, and how many connections are not closed yet.

    It outlives the volume's servers. A pod can make each of them hang, and remove the sockets so that there is a next one.
    """

    def __init__(self) -> None:
        self.threads = Threads(limits.CONNECTION_THREADS, nudge=limits.PROBE_WAIT)
        self.listener_thread = Threads(limits.LISTENER_THREADS, nudge=limits.PROBE_WAIT)
        self.connections = 0
        self.accepted = 0  # connections since the driver started
        self.on_room: Callable[[], None] | None = None  # called when there is one less


class FdServer:
    """Two listening sockets, which it owns, and the requests on them."""

    def __init__(
        self,
        handler: Handler,
        sockets: PodSockets,
        volume_name: str,
        log: VolumeLog,
        capacity: Capacity,
        accepted_fds: tuple[str, ...],
    ) -> None:
        """`accepted_fds` has the names of the fds that a request may say are attached to it; others are refused."""
        self._handler = handler
        self._accepted_fds = accepted_fds
        self._capacity = capacity
        self._sockets = sockets
        self._volume_name = volume_name
        self._log = log
        self._serving = 0
        self._preparing = 0
        self._connections: set[asyncio.Task[None]] = set()
        self._waiting: set[asyncio.Future[None]] = set()
        self._is_listening = False
        self._is_stopped = False
        self._closed: asyncio.Future[None] | None = None  # settled when the listening sockets are closed
        capacity.on_room = self._listen
        self._listen()

    def stop(self) -> None:
        """Take no more requests, and end those that have not arrived yet.

        A request at work goes on: half an unmount would be worse, and the volume's lock makes others wait for it.
        """
        self._is_stopped = True
        self._pause()
        for waiting in self._waiting:
            _settle(waiting, ConnectionResetError("the volume is being unpublished"))

    def close(self) -> None:
        """Stop, and begin to close the listening sockets with all that is queued in them; wait_closed() waits for the end."""
        self.stop()
        # In a thread: a pod may have queued fds there that block the thread which drops them.
        self._closed = self._capacity.listener_thread.finish(self._sockets.close)

    async def wait_closed(self) -> None:
        """Wait until the listening sockets are closed, or for a limited time. close() comes first."""
        assert self._closed is not None
        if not self._closed.done():
            await asyncio.wait({self._closed}, timeout=limits.PROBE_WAIT)
        if not self._closed.done():
            self._log.warning("the sockets are not closed yet; clients have queued file descriptors that block whoever drops them")

    def _listen(self) -> None:
        if self._is_stopped or self._is_listening or self._capacity.connections >= limits.CONNECTIONS_MAX:
            return
        self._is_listening = True
        loop = asyncio.get_running_loop()
        try:
            loop.add_reader(self._sockets.v1.fileno(), self._accept, self._sockets.v1)
            loop.add_reader(self._sockets.original.fileno(), self._accept, self._sockets.original)
        except OSError as error:  # pods of root's share the node's limit of epoll watches with the driver
            self._log.refusal(f"cannot listen for connections: {error.strerror}")
            self._pause_for_a_moment()

    def _pause(self) -> None:
        if self._is_listening:
            self._is_listening = False
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._sockets.v1.fileno())
            loop.remove_reader(self._sockets.original.fileno())

    def _pause_for_a_moment(self) -> None:
        self._pause()
        asyncio.get_running_loop().call_later(_ACCEPT_PAUSE, self._listen)

    def _accept(self, listener: socket.socket) -> None:
        """Accept one connection. The next one is accepted in the next turn of the event loop, since a pod may flood its socket."""
        try:
            self._accept_one(listener)
        except OSError as error:
            self._log.refusal(f"cannot accept a connection: {error.strerror}")
            self._pause_for_a_moment()
        except Exception:
            report_internal_error("accepting a connection", self._log)
            # The connection may still wait there, and would call this method in each turn of the event loop.
            self._pause_for_a_moment()

    def _accept_one(self, listener: socket.socket) -> None:
        # It must not fill the driver's memory either.
        if self._capacity.connections >= limits.CONNECTIONS_MAX:
            self._pause()
            return
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        connection.setblocking(False)
        self._capacity.connections += 1
        self._capacity.accepted += 1
        task = asyncio.get_running_loop().create_task(self._run(connection, is_v1=listener is self._sockets.v1))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _run(self, connection: socket.socket, is_v1: bool) -> None:
        try:
            if self._serving < limits.REQUESTS_AT_ONCE:
                self._serving += 1
                try:
                    await (self._serve_v1 if is_v1 else self._serve_original)(connection)
                finally:
                    self._serving -= 1
            else:
                metrics.refused(Reason.TOO_MANY)
        except (BrokenPipeError, ConnectionResetError):
            self._log.debug("a client went before it had its answer")
        except OSError as error:
            self._log.refusal(f"a request failed: {error}")
        except Exception:
            report_internal_error("serving a request", self._log)
        self._close_in_thread(connection)

    def _close_in_thread(self, connection: socket.socket) -> None:
        """Close a connection, with all that is queued in it: fds that block the thread which drops them may be among it."""
        text = "a client's connection cannot be closed; it holds file descriptors that block whoever drops them"
        late = asyncio.get_running_loop().call_later(limits.REQUEST_WAIT, self._log.refusal, text)
        self._capacity.threads.finish(connection.close).add_done_callback(partial(self._connection_closed, late))

    def _connection_closed(self, late: asyncio.TimerHandle, closed: "asyncio.Future[None]") -> None:
        late.cancel()
        closed.exception()  # close(2) has closed it, whatever it says
        self._capacity.connections -= 1
        if self._capacity.on_room is not None:
            self._capacity.on_room()

    async def _serve_original(self, connection: socket.socket) -> None:
        try:
            fd = await self._handler.mount(MountRequest("", ""), _peer(connection))
        except Refused as refusal:
            # The original protocol knows no refusal but a close.
            metrics.refused(refusal.errno)
            self._log.refusal(f"mount refused: {refusal}")
            return
        _hand_over(connection, Reply(volume_name=self._volume_name), fd)

    async def _serve_v1(self, connection: socket.socket) -> None:
        try:
            packet = await self._receive(connection, limits.REQUEST_WAIT)
            if not packet:
                return
            request = protocol.decode_request(packet)
            protocol.check_fds(request, self._accepted_fds)
            if isinstance(request, MountRequest) and request.sync_init:
                await self._serve_sync_init(connection, request)
            elif isinstance(request, MountRequest):
                fd = await self._handler.mount(request, _peer(connection))
                _hand_over(connection, Reply(volume_name=self._volume_name), fd)
            else:
                await self._handler.unmount(request)
                fdpass.send_with_fds(connection, protocol.encode_reply(Reply()), [])
        except Refused as refusal:
            self._log.refusal(f"request refused: {refusal}")
            self._refuse(connection, str(refusal), refusal.errno)
        except ProtocolError as error:
            self._log.refusal(f"bad request: {error}")
            self._refuse(connection, f"bad request: {error}", EPROTO)
        except TooLate:
            metrics.refused(Reason.LATE)
            self._log.refusal("a client connected and did not send in time what it wants")
        except (BrokenPipeError, ConnectionResetError):
            raise
        except OSError as error:
            self._log.refusal(f"a request failed: {error}")
            self._refuse(connection, f"the driver failed: {error.strerror}", error.errno or EIO, Reason.FAILED)
        except Exception:
            report_internal_error("serving a request", self._log)
            self._refuse(connection, "the driver failed by a mistake of its own; its log has the details", EIO, Reason.FAILED)

    async def _serve_sync_init(self, connection: socket.socket, request: MountRequest) -> None:
        """The fd first; the client says when its program is ready to answer INIT, and hears how the mount went."""
        if self._preparing >= limits.PREPARED_AT_ONCE:
            raise Refused("mount failed: too many programs are about to mount", EBUSY)
        self._preparing += 1
        try:
            prepared = await self._handler.prepare(request, _peer(connection))
            try:
                fdpass.send_with_fds(connection, protocol.encode_reply(Reply(volume_name=self._volume_name)), [prepared.fd])
                packet = await self._wait_for_proceed(connection)
                if not packet:
                    return  # the program has changed its mind, or died
                protocol.check_proceed(packet)
                await self._mount_prepared(connection, prepared)
            finally:
                prepared.discard()
        finally:
            self._preparing -= 1
        fdpass.send_with_fds(connection, protocol.encode_reply(Reply()), [])

    async def _wait_for_proceed(self, connection: socket.socket) -> bytes:
        # It may last minutes, and must not keep the volume's other clients from theirs meanwhile.
        self._serving -= 1
        try:
            return await self._receive(connection, protocol.PROCEED_WAIT)
        finally:
            self._serving += 1

    async def _mount_prepared(self, connection: socket.socket, prepared: Prepared) -> None:
        loop = asyncio.get_running_loop()
        client_gone = loop.create_future()

        def went() -> None:
            loop.remove_reader(connection.fileno())
            _settle(client_gone)

        # It has nothing to say before it is answered: whatever comes is its end, or not of this protocol.
        loop.add_reader(connection.fileno(), went)
        try:
            await prepared.mount(client_gone)
        finally:
            loop.remove_reader(connection.fileno())

    def _refuse(self, connection: socket.socket, text: str, errno: int, reason: Reason | None = None) -> None:
        metrics.refused(errno if reason is None else reason)
        fdpass.send_with_fds(connection, protocol.encode_reply(Reply(error=text, errno=errno)), [])

    async def _receive(self, connection: socket.socket, limit: float) -> bytes:
        """Receive one packet, without the fds that are with it; empty where the client has gone. Raises ProtocolError, TooLate."""
        try:
            async with asyncio.timeout(limit):
                while (brings := _next_brings(connection)) is None:
                    await self._readable(connection)
                if brings is Brings.NOTHING:
                    return b""
                if brings is Brings.DATA:
                    return _packet(connection)
                # The kernel drops the fds here, and that may block.
                return await self._capacity.threads.run(limits.REQUEST_WAIT, lambda: _packet(connection))
        except fdpass.Truncated:
            raise ProtocolError(f"the packet is longer than {protocol.PACKET_MAX} bytes") from None
        except TimeoutError:
            raise TooLate from None

    async def _readable(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        readable = loop.create_future()
        self._waiting.add(readable)
        try:
            loop.add_reader(connection.fileno(), _settle, readable)
            await readable
        finally:
            loop.remove_reader(connection.fileno())
            self._waiting.discard(readable)


class TooLate(Exception):
    """The client did not send a packet within the time limit."""


class Brings(Enum):
    """What a connection's next packet has for whoever receives it."""

    NOTHING = "no data: mostly it is the client's end"
    DATA = "data alone"
    FDS = "fds, too"


def _next_brings(connection: socket.socket) -> Brings | None:
    """What the next packet has, which stays in its queue; None where none has come.

    A packet stays the next one until it is received: clients can only put others behind it.
    """
    try:
        data, _, flags, _ = connection.recvmsg(1, 0, socket.MSG_PEEK)
    except BlockingIOError:
        return None
    # There is no room for what belongs to a packet besides its data, so the kernel says whether there is any.
    return Brings.FDS if flags & socket.MSG_CTRUNC else Brings.DATA if data else Brings.NOTHING


def _packet(connection: socket.socket) -> bytes:
    data, _ = fdpass.receive_with_fds(connection, protocol.PACKET_MAX, 0)
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
