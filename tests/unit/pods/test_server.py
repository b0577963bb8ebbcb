"""Tests the server on real sockets, with a handler that stands in for a volume."""

import array
import asyncio
import logging
import os
import socket
from collections.abc import Callable
from errno import EBUSY, EIO, EMFILE, ENOSPC, EPROTO
from pathlib import Path
from typing import Any, ClassVar

import pytest
from fd_service import (
    MOUNT,
    NAME,
    UNMOUNT,
    answer,
    in_thread,
    is_closed,
    nobody_holds_the_other_end,
    send,
    serving,
    soon,
)
from open_fds import same_file
from standin_driver import DEADLINE, receive
from with_processes import run, until

from driver.model import limits
from driver.model.peer import Peer
from driver.model.policy import Refused
from driver.observe import metrics
from driver.observe.logs import log
from driver.pods import packets, server
from driver.pods.packets import Content
from fusermount3_proxy.wire import protocol
from fusermount3_proxy.wire.protocol import MountRequest, UnmountRequest

# ---- what is served


async def test_a_mount_is_answered_with_the_name_and_the_fd(folder: Path) -> None:
    async with serving(folder) as served:
        reply, (fd,) = await served.ask(MOUNT)
        assert reply == NAME
        with open("/dev/null") as null:
            assert same_file(fd, null.fileno())
        os.close(fd)
        assert served.handler.mounts == [("/m", "ro", Peer(os.getpid(), os.geteuid(), os.getegid()))]


async def test_an_unmount_is_answered(folder: Path) -> None:
    async with serving(folder) as served:
        assert await served.ask(UNMOUNT) == ({}, [])
        assert served.handler.unmounts == [("/m", True, "0:45")]


async def test_the_original_socket_mounts_for_every_client_that_connects(folder: Path) -> None:
    async with serving(folder) as served:
        with served.connect("") as client:
            reply, (fd,) = await answer(client)
            assert reply == NAME
            os.close(fd)
            assert await is_closed(client)
        assert [mount[:2] for mount in served.handler.mounts] == [("", "")]


async def test_where_there_is_no_epoll_watch_it_listens_when_there_is_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pods that run as root share the limit of epoll watches with the driver."""
    async with serving(folder) as served:
        loop = asyncio.get_running_loop()
        fail, add = [False, True] * 2, loop.add_reader

        def refuses(fd: int, callback: Any, *arguments: Any) -> None:
            if fail and fail.pop(0):
                raise OSError(ENOSPC, os.strerror(ENOSPC))
            add(fd, callback, *arguments)

        served.server._pause()
        monkeypatch.setattr(loop, "add_reader", refuses)
        served.server._listen()
        reply, (fd,) = await served.ask(MOUNT)
        assert (reply, fail) == (NAME, [])
        os.close(fd)


class Noted(socket.socket):
    """Records the order in which the driver accepts connections."""

    accepted: ClassVar[list[int]] = []

    def accept(self) -> tuple[socket.socket, Any]:
        found = super().accept()
        Noted.accepted.append(self.fileno())
        return found


async def test_a_flooded_volume_takes_turns_with_another(folder: Path) -> None:
    for name in ("flooded", "other"):
        (folder / name).mkdir()
    async with serving(folder / "flooded", Noted) as flooded, serving(folder / "other", Noted) as other:
        Noted.accepted.clear()
        clients = [flooded.connect() for _ in range(50)]
        with other.connect() as client:
            send(client, UNMOUNT)
            assert await answer(client) == ({}, [])
        # Each turn of the event loop accepts one connection at each socket.
        assert Noted.accepted.index(other.sockets.v1.fileno()) <= 1
        for client in clients:
            client.close()
        # The limit on accepts lets them in over several moments.
        await until(lambda: Noted.accepted.count(flooded.sockets.v1.fileno()) == 50)
        await until(lambda: flooded.server._capacity.connections == 0)


async def test_the_sockets_serve_again_and_again(folder: Path) -> None:
    async with serving(folder) as served:
        for _ in range(3 * limits.REQUESTS_AT_ONCE):
            reply, (fd,) = await served.ask(MOUNT)
            os.close(fd)
            assert reply == NAME
            with served.connect("") as client:
                reply, (fd,) = await answer(client)
                os.close(fd)
                assert reply == NAME


async def test_a_connection_carries_one_request(folder: Path) -> None:
    async with serving(folder) as served:
        with served.connect() as client:
            send(client, UNMOUNT)
            send(client, MOUNT)
            await soon(served.handler.began.acquire())
            for task in list(served.server._connections):
                await soon(task)
        assert (len(served.handler.unmounts), len(served.handler.mounts)) == (1, 0)


FD = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]).tobytes())]


@pytest.mark.parametrize(
    ("packet", "with_it", "content"),
    [
        (b"x", [], Content.DATA),
        (b"x" * (protocol.PACKET_MAX + 1), [], Content.DATA),
        (b"x", FD, Content.FDS),
        (b"", FD, Content.FDS),
        (b"", [], Content.NOTHING),
    ],
)
def test_what_a_packet_holds_is_known_before_it_is_received(packet: bytes, with_it: list[tuple[int, int, bytes]], content: Content) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        assert packets.peek(ours) is None
        theirs.sendmsg([packet], with_it)
        assert [packets.peek(ours) for _ in range(2)] == [content, content]
        ours.recv(1)
        theirs.close()
        assert packets.peek(ours) is Content.NOTHING


# ---- refusals


@pytest.mark.parametrize("packet", [MOUNT, UNMOUNT])
async def test_a_refusal_is_answered_with_text_and_errno(folder: Path, packet: bytes) -> None:
    async with serving(folder) as served:
        served.handler.outcome = Refused("mount failed: Device or resource busy", EBUSY)
        assert await served.ask(packet) == ({"error": "mount failed: Device or resource busy", "errno": EBUSY}, [])
        # The volume still serves the next client.
        served.handler.outcome = None
        assert (await served.ask(UNMOUNT))[0] == {}


async def test_a_refusal_on_the_original_socket_is_a_close_without_a_byte(folder: Path) -> None:
    async with serving(folder) as served:
        served.handler.outcome = Refused("mount failed: Device or resource busy", EBUSY)
        with served.connect("") as client:
            assert await is_closed(client)


async def test_a_refusal_of_any_length_is_an_answer(folder: Path) -> None:
    # The text includes what the pod sent, and escaping makes it longer.
    async with serving(folder) as served:
        served.handler.outcome = Refused(f"unknown option '{chr(233) * 60000}'")
        with served.connect() as client:
            send(client, MOUNT)
            packet, _ = await in_thread(lambda: receive(client))
        # decode_reply() refuses a packet that is too long.
        assert (protocol.decode_reply(packet).error or "").startswith("unknown option '\u00e9\u00e9")


async def test_an_oserror_of_the_driver_is_answered(folder: Path) -> None:
    async with serving(folder) as served:
        served.handler.outcome = OSError(EMFILE, "Too many open files", "/somewhere")
        reply, _ = await served.ask(MOUNT)
        assert reply == {"error": "the driver failed: Too many open files", "errno": EMFILE}


@pytest.fixture
def internal_errors(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Callable[[], int]:
    """Return a function that returns how many internal errors were reported. caplog has their tracebacks."""
    monkeypatch.setattr(log, "propagate", True)
    monkeypatch.setattr(metrics, "_instruments", None)
    metrics.start(dict, lambda: 0, lambda: 0, lambda: 0)

    def number() -> int:
        (line,) = [line for line in metrics.text().decode().splitlines() if line.startswith("mfcp_internal_errors_total ")]
        return int(float(line.split()[1]))

    return number


@pytest.mark.parametrize("suffix", ["", ".v1"])
@pytest.mark.parametrize("mistake", [ZeroDivisionError("a mistake"), KeyError("a mistake"), TypeError("a mistake")])
def test_an_internal_error_is_reported_and_costs_one_connection(
    folder: Path, suffix: str, mistake: Exception, internal_errors: Callable[[], int], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with serving(folder) as served:
            served.handler.outcome = mistake
            with served.connect(suffix) as client:
                if suffix:
                    send(client, MOUNT)
                    text = "the driver failed with an internal error; its log has the details"
                    assert await answer(client) == ({"error": text, "errno": EIO}, [])
                assert await is_closed(client)
            served.handler.outcome = None
            assert (await served.ask(UNMOUNT))[0] == {}

    run(main())
    assert internal_errors() == 1
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "internal error while serving a request" in record.getMessage()
    assert "in _work" in caplog.text  # the traceback


def test_a_client_that_is_gone_is_no_internal_error(folder: Path, internal_errors: Callable[[], int]) -> None:
    async def main() -> None:
        async with serving(folder) as served:
            served.handler.go_on.clear()
            for suffix in ("", ".v1"):
                with served.connect(suffix) as client:
                    if suffix:
                        send(client, UNMOUNT)
                    await soon(served.handler.began.acquire())
            served.handler.go_on.set()
            assert (await served.ask(UNMOUNT))[0] == {}

    run(main())
    assert internal_errors() == 0


class Mistaken(socket.socket):
    """Causes an internal error in the first calls of accept()."""

    mistakes = 0

    def accept(self) -> tuple[socket.socket, Any]:
        if Mistaken.mistakes:
            Mistaken.mistakes -= 1
            raise KeyError("a mistake")
        return super().accept()


def test_an_internal_error_while_accepting_is_reported(
    folder: Path, internal_errors: Callable[[], int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_ACCEPT_PAUSE", 0.01)

    async def main() -> None:
        async with serving(folder, Mistaken) as served:
            Mistaken.mistakes = 2
            assert (await served.ask(UNMOUNT))[0] == {}
            assert Mistaken.mistakes == 0

    run(main())
    assert internal_errors() == 2
    assert "internal error while accepting a connection" in caplog.text
    assert {getattr(record, "volume", None) for record in caplog.records} == {"csi-1"}


# ---- what a hostile pod sends


@pytest.mark.parametrize(
    "packet",
    [
        b" ",
        b"x",
        b"{}",
        b"[]",
        b"\xff\xfe",
        b'{"op":"format"}',
        b'{"op":"mount"}',
        b'{"op":"mount","mountpoint":"\\u0100"}',
        MOUNT[:-1],
        b"[" * protocol.PACKET_MAX,
        b" " * protocol.PACKET_MAX + MOUNT,
        b"x" * (protocol.PACKET_MAX + 1),
        b"x" * 150000,
    ],
)
async def test_what_is_no_request_is_answered_with_an_error(folder: Path, packet: bytes) -> None:
    async with serving(folder) as served:
        reply, fds = await served.ask(packet)
        assert reply["errno"] == EPROTO
        assert reply["error"].startswith("bad request: ")
        assert fds == []
        assert served.handler.mounts == []
        assert (await served.ask(UNMOUNT))[0] == {}


async def test_a_packet_of_exactly_the_limit_is_taken(folder: Path) -> None:
    async with serving(folder) as served:
        packet = protocol.encode_request(UnmountRequest("/m")).ljust(protocol.PACKET_MAX)
        assert (await served.ask(packet))[0] == {}


@pytest.mark.parametrize("packet", [MOUNT, UNMOUNT, b"{", b"x" * 70000])
@pytest.mark.parametrize("sent", [1, 2, 253])
async def test_fds_that_come_with_a_packet_are_never_taken(folder: Path, packet: bytes, sent: int) -> None:
    async with serving(folder) as served:
        served.handler.go_on.clear()
        reader, writer = os.pipe()
        with served.connect() as client:
            send(client, packet, *[writer] * sent)
            os.close(writer)
            # The end of the pipe shows that the driver has no copy of the fd, while it works on the request or after it refused it.
            assert await nobody_holds_the_other_end(reader)
            os.close(reader)
            served.handler.go_on.set()
            for fd in (await answer(client))[1]:
                os.close(fd)


NAMED_FD = protocol.encode_request(MountRequest("/m", "ro", fds=("mountpoint",)))


async def test_a_request_that_names_an_fd_is_refused_where_the_socket_accepts_none(folder: Path) -> None:
    async with serving(folder) as served:
        reader, writer = os.pipe()
        refusal = {"error": "bad request: fds names 'mountpoint'; this socket accepts no file descriptors", "errno": EPROTO}
        assert await served.ask(NAMED_FD, writer) == (refusal, [])
        assert await served.ask(NAMED_FD) == (refusal, [])
        os.close(writer)
        assert await nobody_holds_the_other_end(reader)
        os.close(reader)
        assert served.handler.mounts == []
        assert (await served.ask(UNMOUNT))[0] == {}


async def test_the_kind_of_socket_says_which_fds_a_request_may_name(folder: Path) -> None:
    async with serving(folder, accepted_fds=("mountpoint",)) as served:
        reply, (fd,) = await served.ask(NAMED_FD)
        assert reply == NAME
        os.close(fd)
        reply, fds = await served.ask(protocol.encode_request(UnmountRequest("/m", fds=("other",))))
        assert (reply["error"], fds) == ("bad request: fds names 'other'; this socket accepts mountpoint", [])


async def test_fds_on_the_original_socket_go_with_the_connection(folder: Path) -> None:
    async with serving(folder) as served:
        served.handler.go_on.clear()
        reader, writer = os.pipe()
        with served.connect("") as client:
            send(client, b"nobody reads this", writer)
            os.close(writer)
            await soon(served.handler.began.acquire())
            served.handler.go_on.set()
            assert await nobody_holds_the_other_end(reader)
            os.close(reader)
        assert len(served.handler.mounts) == 1


async def test_a_client_that_sends_nothing_is_closed_after_the_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REQUEST_WAIT", 0.1)
    async with serving(folder) as served:
        with served.connect() as client:
            assert await is_closed(client)
        assert (await served.ask(UNMOUNT))[0] == {}


async def test_an_answer_may_take_longer_than_the_limit_of_a_request(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REQUEST_WAIT", 0.05)
    async with serving(folder) as served:
        served.handler.go_on.clear()
        asyncio.get_running_loop().call_later(0.3, served.handler.go_on.set)
        assert (await served.ask(UNMOUNT))[0] == {}


@pytest.mark.parametrize("send_first", [False, True])
async def test_more_connections_than_the_limit_are_closed(folder: Path, send_first: bool) -> None:
    async with serving(folder) as served:
        served.handler.go_on.clear()
        clients = [served.connect() for _ in range(limits.REQUESTS_AT_ONCE)]
        await until(lambda: len(served.server._connections) == len(clients))
        if send_first:
            for client in clients:
                send(client, UNMOUNT)
            for _ in clients:
                await soon(served.handler.began.acquire())
        for suffix in ("", ".v1"):
            with served.connect(suffix) as one_more:
                assert await is_closed(one_more)
        # The first clients are served, and then there is room again.
        served.handler.go_on.set()
        for client in clients:
            if not send_first:
                send(client, UNMOUNT)
            assert await answer(client) == ({}, [])
            client.close()
        for task in list(served.server._connections):
            await soon(task)
        assert (await served.ask(UNMOUNT))[0] == {}
        assert len(served.handler.unmounts) == limits.REQUESTS_AT_ONCE + 1
        assert served.handler.mounts == []


async def test_a_client_that_closes_its_connection_makes_room(folder: Path) -> None:
    async with serving(folder) as served:
        for _ in range(5 * limits.REQUESTS_AT_ONCE):
            with served.connect() as client:
                await asyncio.sleep(0)
                client.shutdown(socket.SHUT_WR)
                assert await is_closed(client)
        assert (await served.ask(UNMOUNT))[0] == {}


async def test_a_flood_of_connections_leaves_the_volume_usable(folder: Path) -> None:
    async with serving(folder) as served:

        def flood() -> None:
            connections = 0
            while connections < 500:
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
                    client.setblocking(False)
                    try:
                        client.connect("s.v1")
                    except BlockingIOError:
                        continue
                    connections += 1
                    highest.append(served.server._capacity.connections)

        highest: list[int] = []
        await in_thread(flood)
        assert max(highest) <= limits.CONNECTIONS_MAX
        reply: dict[str, Any] = {"error": "nothing yet"}
        # The last connections of the flood may not be closed yet.
        deadline = asyncio.get_running_loop().time() + DEADLINE
        while reply != {}:
            assert asyncio.get_running_loop().time() < deadline
            try:
                reply, _ = await served.ask(UNMOUNT)
            except (AssertionError, OSError):
                await asyncio.sleep(0.01)


async def test_an_fd_for_a_client_that_has_gone_is_closed(folder: Path) -> None:
    async with serving(folder) as served:
        served.handler.go_on.clear()
        for suffix in ("", ".v1"):
            client = served.connect(suffix)
            if suffix:
                send(client, MOUNT)
            await soon(served.handler.began.acquire())
            client.close()
        served.handler.go_on.set()
        for task in list(served.server._connections):
            await soon(task)
        assert len(served.handler.handed_out) == 2
        for fd in served.handler.handed_out:
            with pytest.raises(OSError):
                os.fstat(fd)
        assert (await served.ask(UNMOUNT))[0] == {}


# ---- the end, and trouble


async def test_stopping_ends_those_who_have_not_asked_and_lets_those_at_work_end(folder: Path) -> None:
    async with serving(folder) as served:
        served.handler.go_on.clear()
        with served.connect() as idle, served.connect() as at_work:
            send(at_work, UNMOUNT)
            await soon(served.handler.began.acquire())
            served.server.stop()
            assert await is_closed(idle)
            served.handler.go_on.set()
            assert await answer(at_work) == ({}, [])


async def test_after_stopping_nobody_is_served(folder: Path) -> None:
    async with serving(folder) as served:
        served.server.stop()
        with served.connect() as client:
            send(client, UNMOUNT)
            client.setblocking(False)
            for _ in range(10):
                await asyncio.sleep(0)
            with pytest.raises(BlockingIOError):
                client.recv(100)
        assert served.handler.unmounts == []


class WithoutFds(socket.socket):
    """Fails in the first calls of accept() as if the process had no fd left."""

    failures = 0

    def accept(self) -> tuple[socket.socket, Any]:
        if WithoutFds.failures:
            WithoutFds.failures -= 1
            raise OSError(EMFILE, os.strerror(EMFILE))
        return super().accept()


async def test_accepting_goes_on_after_there_were_no_fds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_ACCEPT_PAUSE", 0.01)
    async with serving(folder, WithoutFds) as served:
        WithoutFds.failures = 3
        assert (await served.ask(UNMOUNT))[0] == {}
        assert WithoutFds.failures == 0
        with served.connect("") as client:
            reply, (fd,) = await answer(client)
            os.close(fd)
            assert reply == NAME


async def test_stopping_while_accepting_pauses_is_for_good(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_ACCEPT_PAUSE", 0.01)
    async with serving(folder, WithoutFds) as served:
        WithoutFds.failures = 1
        with served.connect() as client:
            send(client, UNMOUNT)
            while WithoutFds.failures:
                await asyncio.sleep(0)
            # A driver that stops leaves the sockets to the next one.
            served.server.stop()
            await asyncio.sleep(0.1)
            assert served.handler.unmounts == []


async def test_a_flood_of_connections_is_accepted_at_a_limited_rate(folder: Path) -> None:
    """Each connection costs the event loop some turns, which the requests of other volumes need."""
    async with serving(folder) as served:
        loop = asyncio.get_running_loop()
        began = loop.time()
        number = 10 * limits.ACCEPTS_IN_WINDOW
        clients = [served.connect() for _ in range(number)]
        await until(lambda: served.server._capacity.accepted == number)
        assert loop.time() - began >= 8 * limits.ACCEPT_WINDOW
        for client in clients:
            client.close()
