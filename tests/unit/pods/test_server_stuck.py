"""Tests connections and sockets whose close blocks because of the fds that clients have queued in them."""

import asyncio
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fd_service import UNMOUNT, NoFolder, answer, in_thread, listening, send, serving, soon
from standin_driver import DEADLINE
from with_processes import until

from driver.model import limits
from driver.observe.logs import VolumeLog
from driver.pods.server import FdServer
from driver.pods.sockets import PodSockets


class Stuck(socket.socket):
    """Blocks in close(), as a connection in which a client has queued certain fds."""

    go_on = threading.Event()

    def close(self) -> None:
        if self.fileno() >= 0:
            assert Stuck.go_on.wait(DEADLINE)
        super().close()


class AcceptsStuckOnes(socket.socket):
    """Accepts connections whose close blocks."""

    stuck = 0

    def accept(self) -> tuple[socket.socket, Any]:
        connection, address = super().accept()
        if AcceptsStuckOnes.stuck:
            AcceptsStuckOnes.stuck -= 1
            return Stuck(fileno=connection.detach()), address
        return connection, address


@pytest.fixture(autouse=True)
def stuck_until_the_end() -> Iterator[None]:
    """Let all blocked closes return when a test has ended or failed."""
    Stuck.go_on.clear()
    yield
    Stuck.go_on.set()


@pytest.mark.parametrize("stuck", [1, limits.REQUESTS_AT_ONCE - 1])
async def test_connections_that_cannot_be_closed_hang_nobody_else(folder: Path, monkeypatch: pytest.MonkeyPatch, stuck: int) -> None:
    monkeypatch.setattr(limits, "REQUEST_WAIT", 1.0)
    async with serving(folder, AcceptsStuckOnes) as served:
        AcceptsStuckOnes.stuck = stuck
        for _ in range(stuck):
            assert (await served.ask(UNMOUNT))[0] == {}
        # This holds while the closes block, and after the driver has logged that.
        assert (await served.ask(UNMOUNT))[0] == {}
        await until(lambda: not served.server._connections)
        for _ in range(2 * limits.REQUESTS_AT_ONCE):
            assert (await served.ask(UNMOUNT))[0] == {}
        Stuck.go_on.set()


async def test_room_comes_back_when_connections_can_be_closed_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REQUEST_WAIT", 0.1)
    monkeypatch.setattr(limits, "CONNECTIONS_MAX", 20)
    async with serving(folder, AcceptsStuckOnes) as served:
        AcceptsStuckOnes.stuck = 20
        clients = [served.connect() for _ in range(25)]
        await until(lambda: served.server._capacity.connections == 20 and not served.server._connections)
        with served.connect() as client:
            send(client, UNMOUNT)
            assert not (await in_thread(lambda: select.select([client], [], [], 0.3)))[0]
            Stuck.go_on.set()
            # The surplus connections are closed, so they do not count any more.
            for other in clients:
                other.close()
            assert (await answer(client))[0] == {}


def connect_at_once(path: Path) -> socket.socket | None:
    """Return a connection, or None if the queue of the socket is full."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.setblocking(False)
    try:
        client.connect(f"{path}.v1")
    except BlockingIOError:
        client.close()
        return None
    return client


async def test_of_many_connections_some_are_served_some_are_to_be_closed_and_some_wait_in_the_queue(folder: Path) -> None:
    async with serving(folder, AcceptsStuckOnes) as served:
        AcceptsStuckOnes.stuck = 1000
        served.handler.go_on.clear()
        clients = []
        for _ in range(limits.REQUESTS_AT_ONCE):
            clients.append(served.connect())
            send(clients[-1], UNMOUNT)
            await soon(served.handler.began.acquire())
        accepted = limits.REQUESTS_AT_ONCE + limits.CONNECTIONS_TO_CLOSE
        while len(clients) < accepted:
            clients.append(served.connect())
            await until(lambda: served.server._capacity.connections == len(clients))
        while (client := connect_at_once(folder / "s")) is not None:
            clients.append(client)
            await asyncio.sleep(0)
        assert served.server._capacity.connections == accepted == limits.CONNECTIONS_MAX
        assert len(served.server._connections) == limits.REQUESTS_AT_ONCE
        # The kernel queues one connection more than the backlog.
        assert len(clients) - accepted == limits.CONNECTIONS_IN_QUEUE + 1
        AcceptsStuckOnes.stuck = 0
        Stuck.go_on.set()
        served.handler.go_on.set()
        for client in clients[: limits.REQUESTS_AT_ONCE]:
            assert (await answer(client))[0] == {}
        for client in clients:
            client.close()
        await until(lambda: served.server._capacity.connections == 0)


async def test_the_next_server_has_what_the_former_one_left(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod that removes the sockets gets new ones, but no more threads or connections."""
    monkeypatch.setattr(limits, "REQUEST_WAIT", 0.1)
    monkeypatch.setattr(limits, "CONNECTIONS_MAX", 10)
    async with serving(folder, AcceptsStuckOnes) as served:
        AcceptsStuckOnes.stuck = 10
        clients = [served.connect() for _ in range(10)]
        await until(lambda: served.server._capacity.connections == 10 and not served.server._connections)
        path = folder / "next"
        sockets = PodSockets(listening(path, ""), listening(path, ".v1"), NoFolder(), "next", ())
        server = FdServer(served.handler, sockets, "data", VolumeLog("default/pod", "csi-1"), served.server._capacity, ())
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.settimeout(DEADLINE)
            client.connect(f"{path}.v1")
            send(client, UNMOUNT)
            assert not (await in_thread(lambda: select.select([client], [], [], 0.3)))[0]
            Stuck.go_on.set()
            assert (await answer(client))[0] == {}
        server.close()
        await soon(server.wait_closed())
        for client in clients:
            client.close()
        await until(lambda: served.server._capacity.connections == 0)


class StuckListener(socket.socket):
    """Blocks in close(), as a listening socket with certain fds in its queue."""

    def close(self) -> None:
        if self.fileno() >= 0:
            assert Stuck.go_on.wait(DEADLINE)
        super().close()


async def test_closing_ends_where_the_sockets_cannot_be_closed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PROBE_WAIT", 0.1)
    async with serving(folder, StuckListener) as served:
        served.server.close()
        await soon(served.server.wait_closed())
        assert served.sockets.v1.fileno() >= 0
        Stuck.go_on.set()
        await until(lambda: served.sockets.v1.fileno() < 0 and served.sockets.original.fileno() < 0)
