"""Serves the sockets of one volume: receives the requests of clients, and sends them fds of /dev/fuse.

Every byte that arrives is the pod's, so the size, the duration and the number of requests are limited. Fds that a client sends
along are never installed in the driver: the kernel drops them. But dropping an fd can block the thread that does it for as long
as the pod likes (a lingering TCP socket, a file of a file system that the pod serves), and closing a connection drops the fds
that are queued in it. So connections are always closed in threads of the volume's own, and packets with fds are received in
these threads. If all these threads block, connections that wait to be closed fill the volume's limit, and no connection is
accepted until a thread is free.
"""

import asyncio
import os
import socket
from collections.abc import Callable
from errno import EBUSY, EINVAL, EIO, EPROTO
from functools import partial

from driver.blocking.threads import Threads
from driver.linux import syscalls
from driver.model import limits
from driver.model.peer import Peer
from driver.model.policy import Refused
from driver.observe import metrics
from driver.observe.internalerror import report_internal_error
from driver.observe.logs import VolumeLog
from driver.observe.metrics import Reason
from driver.pods.handler import Handler, Prepared
from driver.pods.packets import Content, NoPacket, peek, receive_packet
from driver.pods.sockets import Sockets
from fusermount3_proxy.wire import fdpass, protocol
from fusermount3_proxy.wire.protocol import MountRequest, ProtocolError, Reply, UnmountRequest

_ACCEPT_PAUSE = 0.1  # seconds without accepting after an error, which a lack of fds may cause


class Capacity:
    """Holds the threads that one volume may use for its clients, and counts its connections that are not closed yet.

    A volume keeps it when it replaces its server. Otherwise a pod could make each server's threads block, and remove the
    sockets to get a new server with new threads.
    """

    def __init__(self) -> None:
        self.threads = Threads(limits.CONNECTION_THREADS, nudge=limits.PROBE_WAIT)
        self.listener_thread = Threads(limits.LISTENER_THREADS, nudge=limits.PROBE_WAIT)
        self.connections = 0
        self.accepted = 0  # connections since the driver started
        self.on_closed: Callable[[], None] | None = None  # called when a connection was closed


class FdServer:
    """Serves the listening sockets of a volume, or the one of a fuse device, which it owns."""

    def __init__(
        self,
        handler: Handler,
        sockets: Sockets,
        volume_name: str,
        log: VolumeLog,
        capacity: Capacity,
        accepted_fds: tuple[str, ...],
    ) -> None:
        """Begin to listen. `accepted_fds` has the names that the `fds` of a request may hold (docs/protocol.md); others are refused.

        Where there are any, requests stay in their connections' queues, and the handler has the fds received elsewhere.
        """
        self._handler = handler
        self._accepted_fds = accepted_fds
        self._capacity = capacity
        self._sockets = sockets
        self._volume_name = volume_name
        self._log = log
        self._serving = 0
        self._preparing = 0
        self._connections: list[asyncio.Task[None]] = []  # an empty list takes less memory than an empty set
        self._waiting: list[asyncio.Future[None]] = []
        self._is_listening = False
        self._is_stopped = False
        self._window_end = 0.0  # loop time; until then `_accepts_left` more connections are accepted
        self._accepts_left = limits.ACCEPTS_IN_WINDOW
        self._closed: asyncio.Future[None] | None = None  # settled when the listening sockets are closed
        capacity.on_closed = self._listen
        sockets.listen()
        self._listen()

    def stop(self) -> None:
        """Accept no more requests, and end the connections whose request has not arrived yet.

        A request that is being carried out goes on, because half an unmount would be worse.
        """
        self._is_stopped = True
        self._pause()
        self._capacity.on_closed = None  # else the two keep each other, and only a full garbage collection frees the volume
        for waiting in self._waiting:
            _settle(waiting, ConnectionResetError("the server stops"))

    def close(self) -> None:
        """Stop, and begin to close the listening sockets, the connections in their queues, and to remove the sockets' files.

        wait_closed() waits for the end.
        """
        self.stop()
        # Clients may have queued fds there that block the thread which drops them, or keep the directory of the files locked.
        self._closed = self._capacity.listener_thread.run_to_end(self._close)

    def _close(self) -> None:
        try:
            self._sockets.close()
        finally:
            self._sockets.remove()

    async def wait_closed(self) -> None:
        """Wait until all that close() began is done, for limits.PROBE_WAIT at most, and report what keeps it. Call close() before."""
        assert self._closed is not None
        await asyncio.wait({self._closed}, timeout=limits.PROBE_WAIT)
        if not self._closed.done():
            self._closed.add_done_callback(asyncio.Future.exception)  # nobody waits for it any more
            text = "the sockets are not closed and removed yet: clients have queued file descriptors in them whose close blocks, or a "
            self._log.warning(f"{text}process in a container keeps their directory locked")
        elif (error := self._closed.exception()) is not None:  # the files stay, and nobody answers there
            self._log.warning(f"cannot remove the sockets: {error}")

    def _listen(self) -> None:
        if self._is_stopped or self._is_listening or self._accepts_left == 0 or self._capacity.connections >= limits.CONNECTIONS_MAX:
            return
        self._is_listening = True
        loop = asyncio.get_running_loop()
        try:
            for listener in self._sockets.listening:
                loop.add_reader(listener.fileno(), self._accept, listener)
        except OSError as error:  # pods that run as root share the limit of epoll watches with the driver (epoll(7))
            self._log.refusal(f"cannot listen for connections: {error.strerror}")
            self._pause_for_a_moment()

    def _pause(self) -> None:
        if self._is_listening:
            self._is_listening = False
            loop = asyncio.get_running_loop()
            for listener in self._sockets.listening:
                loop.remove_reader(listener.fileno())

    def _pause_for_a_moment(self) -> None:
        self._pause()
        asyncio.get_running_loop().call_later(_ACCEPT_PAUSE, self._listen)

    def _accept(self, listener: socket.socket) -> None:
        """Accept one connection. Accepting only one in each turn of the event loop stops a pod that floods its socket."""
        try:
            self._accept_one(listener)
        except OSError as error:
            self._log.refusal(f"cannot accept a connection: {error.strerror}")
            self._pause_for_a_moment()
        except Exception:
            report_internal_error("accepting a connection", self._log)
            # The connection may still be in the queue, and would cause a call of this method in each turn of the event loop.
            self._pause_for_a_moment()

    def _accept_one(self, listener: socket.socket) -> None:
        # The limit stops a pod that fills the driver's memory with connections.
        if self._capacity.connections >= limits.CONNECTIONS_MAX:
            self._pause()
            return
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        self._count_accept()
        connection.setblocking(False)
        self._capacity.connections += 1
        self._capacity.accepted += 1
        task = asyncio.get_running_loop().create_task(self._run(connection, is_v1=listener is self._sockets.v1))
        self._connections.append(task)
        task.add_done_callback(self._connections.remove)

    def _count_accept(self) -> None:
        # The limit stops a pod that floods its socket: each connection costs the event loop some turns, and a thread.
        loop = asyncio.get_running_loop()
        if loop.time() >= self._window_end:
            self._window_end = loop.time() + limits.ACCEPT_WINDOW
            self._accepts_left = limits.ACCEPTS_IN_WINDOW
        self._accepts_left -= 1
        if self._accepts_left == 0:
            self._pause()
            loop.call_at(self._window_end, self._begin_window)

    def _begin_window(self) -> None:
        self._accepts_left = limits.ACCEPTS_IN_WINDOW
        self._listen()

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
            self._log.debug("a client closed its connection before it received the answer, or the server stops")
        except OSError as error:
            self._log.refusal(f"a request failed: {error}")
        except Exception:
            report_internal_error("serving a request", self._log)
        self._close_in_thread(connection)

    def _close_in_thread(self, connection: socket.socket) -> None:
        """Close a connection in a thread: the client may have queued fds in it that block the thread which drops them."""
        text = "a client's connection is not closed yet: the client has queued file descriptors in it whose close blocks"
        late = asyncio.get_running_loop().call_later(limits.REQUEST_WAIT, self._log.refusal, text)
        self._capacity.threads.run_to_end(connection.close).add_done_callback(partial(self._connection_closed, late))

    def _connection_closed(self, late: asyncio.TimerHandle, closed: "asyncio.Future[None]") -> None:
        late.cancel()
        closed.exception()  # close(2) closes the connection even if it reports an error
        self._capacity.connections -= 1
        if self._capacity.on_closed is not None:
            self._capacity.on_closed()

    async def _serve_original(self, connection: socket.socket) -> None:
        try:
            fd = await self._handler.mount(MountRequest("", ""), _peer(connection))
        except Refused as refusal:
            # The original protocol has no message for a refusal, so the connection is closed.
            metrics.refused(refusal.errno)
            self._log.refusal(f"mount refused: {refusal}")
            return
        _send_fd(connection, Reply(volume_name=self._volume_name), fd)

    async def _serve_v1(self, connection: socket.socket) -> None:
        try:
            packet = await self._receive(connection, limits.REQUEST_WAIT, stays=bool(self._accepted_fds))
            if not packet:
                return
            request = protocol.decode_request(packet)
            protocol.check_fds(request, self._accepted_fds)
            if isinstance(request, MountRequest) and request.sync_init:
                await self._serve_sync_init(connection, request)
            elif isinstance(request, MountRequest):
                fd = await self._handler.mount(request, _peer(connection))
                _send_fd(connection, Reply(volume_name=self._volume_name), fd)
            elif isinstance(request, UnmountRequest):
                await self._handler.unmount(request, _peer(connection))
                await self._drop_request(connection)
                fdpass.send_with_fds(connection, protocol.encode_reply(Reply()), [])
            else:
                # The client asks all sockets that it sees, so an answer that is no is nothing to report.
                await self._drop_request(connection)
                reply = Reply() if self._handler.find(request) else Reply(error="not mounted", errno=EINVAL)
                fdpass.send_with_fds(connection, protocol.encode_reply(reply), [])
        except Refused as refusal:
            self._log.refusal(f"request refused: {refusal}", refusal.level)
            await self._refuse(connection, str(refusal), refusal.errno)
        except ProtocolError as error:
            self._log.refusal(f"bad request: {error}")
            await self._refuse(connection, f"bad request: {error}", EPROTO)
        except NoPacket:
            metrics.refused(Reason.LATE)
            self._log.refusal("a client connected and did not send its request in time")
        except (BrokenPipeError, ConnectionResetError):
            raise
        except OSError as error:
            self._log.refusal(f"a request failed: {error}")
            await self._refuse(connection, f"the driver failed: {error.strerror}", error.errno or EIO, Reason.FAILED)
        except Exception:
            report_internal_error("serving a request", self._log)
            await self._refuse(connection, "the driver failed with an internal error; its log has the details", EIO, Reason.FAILED)

    async def _serve_sync_init(self, connection: socket.socket, request: MountRequest) -> None:
        """Serve a mount with synchronous INIT (docs/protocol.md).

        The client gets the fd first, sends `proceed` when its program is ready to answer INIT, and gets the result of the mount.
        """
        if self._preparing >= limits.PREPARED_AT_ONCE:
            raise Refused("mount failed: too many programs are about to mount", EBUSY)
        self._preparing += 1
        try:
            prepared = await self._handler.prepare(request, _peer(connection))
            try:
                fdpass.send_with_fds(connection, protocol.encode_reply(Reply(volume_name=self._volume_name)), [prepared.fd])
                packet = await self._wait_for_proceed(connection)
                if not packet:
                    return  # the client has closed the connection
                protocol.check_proceed(packet)
                await self._mount_prepared(connection, prepared)
            finally:
                prepared.discard()
        finally:
            self._preparing -= 1
        fdpass.send_with_fds(connection, protocol.encode_reply(Reply()), [])

    async def _wait_for_proceed(self, connection: socket.socket) -> bytes:
        # The client may take minutes. Its connection must not count meanwhile as one that is served, or others would be closed.
        self._serving -= 1
        try:
            return await self._receive(connection, protocol.PROCEED_WAIT)
        finally:
            self._serving += 1

    async def _mount_prepared(self, connection: socket.socket, prepared: Prepared) -> None:
        loop = asyncio.get_running_loop()
        client_gone = loop.create_future()

        def end() -> None:
            loop.remove_reader(connection.fileno())
            _settle(client_gone)

        # The protocol has no message for the client to send before the answer. So the connection becomes readable when the
        # client closes it or violates the protocol.
        loop.add_reader(connection.fileno(), end)
        try:
            await prepared.mount(client_gone)
        finally:
            loop.remove_reader(connection.fileno())

    async def _refuse(self, connection: socket.socket, text: str, errno: int, reason: Reason | None = None) -> None:
        metrics.refused(errno if reason is None else reason)
        await self._drop_request(connection)
        fdpass.send_with_fds(connection, protocol.encode_reply(Reply(error=text, errno=errno)), [])

    async def _receive(self, connection: socket.socket, limit: float, stays: bool = False) -> bytes:
        """Receive one packet, and drop the fds that are attached to it. Returns b"" if the client has closed the connection.

        With `stays` a packet with fds is left in the queue.

        Raises NoPacket if none arrives within `limit` seconds, and ProtocolError if the packet is too long.
        """
        try:
            async with asyncio.timeout(limit):
                while (content := peek(connection)) is None:
                    await self._wait_until_readable(connection)
                if content is Content.NOTHING:
                    return b""
                if content is Content.DATA:
                    return receive_packet(connection)
                if stays:
                    return receive_packet(connection, socket.MSG_PEEK)
                # The kernel drops the fds when the packet is received, and that may block the thread.
                return await self._capacity.threads.run(limits.REQUEST_WAIT, lambda: receive_packet(connection))
        except fdpass.Truncated:
            raise ProtocolError(f"the packet is longer than {protocol.PACKET_MAX} bytes") from None
        except TimeoutError:
            raise NoPacket from None

    async def _drop_request(self, connection: socket.socket) -> None:
        """Receive a request that was left in the queue: clients do not get the answer of a connection that is closed with data unread."""
        if self._accepted_fds and peek(connection) is Content.FDS:
            try:
                await self._capacity.threads.run(limits.REQUEST_WAIT, lambda: receive_packet(connection))
            except (fdpass.Truncated, TimeoutError):
                pass  # the thread that closes the connection drops the rest

    async def _wait_until_readable(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        readable = loop.create_future()
        self._waiting.append(readable)
        try:
            loop.add_reader(connection.fileno(), _settle, readable)
            await readable
        finally:
            loop.remove_reader(connection.fileno())
            self._waiting.remove(readable)


def _settle(future: "asyncio.Future[None]", error: OSError | None = None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)


def _send_fd(connection: socket.socket, reply: Reply, fd: int) -> None:
    """Send a reply with an fd, and close the fd. If the client has gone, the close ends the FUSE connection, and its mount is detached."""
    try:
        fdpass.send_with_fds(connection, protocol.encode_reply(reply), [fd])
    finally:
        os.close(fd)


def _peer(connection: socket.socket) -> Peer:
    return Peer(*syscalls.peer_credentials(connection), connection.fileno())
