"""What a close would drop."""

import array
import os
import socket
from collections.abc import Iterator
from errno import EMFILE
from pathlib import Path
from typing import Any

import pytest
from fd_service import listening

from driver import queues

FD = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]).tobytes())]


@pytest.fixture(autouse=True)
def new_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are of the queues, not of the kernel."""
    monkeypatch.setattr(queues, "_closes_collect", False)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The driver's end of a connection, and a client's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


def test_nothing_was_sent(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    assert queues.holds_nothing(ours)
    with pytest.raises(BrokenPipeError):
        theirs.send(b"too late")


def test_the_client_has_gone(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    theirs.close()
    assert queues.holds_nothing(ours)


def test_what_was_sent_has_been_received(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    theirs.sendmsg([b"x"], FD)
    ours.recv(1)
    assert queues.holds_nothing(ours)


@pytest.mark.parametrize("packet", [b"", b"x", b"x" * 100])
@pytest.mark.parametrize("with_it", [[], FD])
@pytest.mark.parametrize("before", [[], [b""], [b"", b""]])
def test_something_is_queued(
    ends: tuple[socket.socket, socket.socket], packet: bytes, with_it: list[tuple[int, int, bytes]], before: list[bytes]
) -> None:
    ours, theirs = ends
    for each in before:
        theirs.send(each)
    theirs.sendmsg([packet], with_it)
    theirs.close()
    assert not queues.holds_nothing(ours)


def test_nobody_waits_and_nobody_can(folder: Path) -> None:
    with listening(folder / "s", ".v1") as listener, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as late:
        assert queues.first_waiting([listener]) is None
        with pytest.raises(ConnectionRefusedError):
            late.connect("s.v1")


def test_somebody_waits_at_the_second(folder: Path) -> None:
    with listening(folder / "a", "") as first, listening(folder / "b", "") as second, socket.socket(socket.AF_UNIX) as client:
        client.connect("b")
        waiting = queues.first_waiting([first, second])
        assert waiting is not None
        (connection,) = waiting
        connection.close()
        assert client.recv(1) == b""


class WithoutFds(socket.socket):
    """A listening socket in a process that has no fd left."""

    def accept(self) -> tuple[socket.socket, Any]:
        raise OSError(EMFILE, os.strerror(EMFILE))


def test_where_nothing_can_be_accepted_somebody_may_wait(folder: Path) -> None:
    with listening(folder / "s", "", WithoutFds) as listener:
        assert queues.first_waiting([listener]) == []


def test_where_a_close_collects_others_sockets_it_is_never_said_to_drop_nothing(
    ends: tuple[socket.socket, socket.socket], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues, "_closes_collect", True)
    assert not queues.holds_nothing(ends[0])
    with listening(folder / "s", "") as listener:
        assert queues.first_waiting([listener]) == []
