import array
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from open_fds import no_more_fds, nothing_leaked, same_file
from pod_programs import ROOT

from fusermount3_proxy.wire import fdpass

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(params=[socket.SOCK_STREAM, socket.SOCK_SEQPACKET], ids=["STREAM", "SEQPACKET"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    yield from connected(request.param)


@pytest.fixture
def packets() -> Iterator[Pair]:
    yield from connected(socket.SOCK_SEQPACKET)


def connected(kind: int) -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    ours.settimeout(10)
    theirs.settimeout(10)
    with ours, theirs:
        yield ours, theirs


def send(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def test_data_and_fds_arrive_together(pair: Pair) -> None:
    ours, theirs = pair
    with open("/dev/null") as null, open("/dev/zero") as zero, nothing_leaked():
        fdpass.send_with_fds(ours, b"data", [null.fileno(), zero.fileno()])
        data, fds = fdpass.receive_with_fds(theirs, 100, 2)
        assert data == b"data"
        assert same_file(fds[0], null.fileno())
        assert same_file(fds[1], zero.fileno())
        assert not any(os.get_inheritable(fd) for fd in fds)
        fdpass.close_all(fds)


def test_data_without_fds(pair: Pair) -> None:
    ours, theirs = pair
    fdpass.send_with_fds(ours, b"data", [])
    assert fdpass.receive_with_fds(theirs, 100, 1) == (b"data", [])


def test_end_of_file_is_empty_data(pair: Pair) -> None:
    ours, theirs = pair
    ours.close()
    assert fdpass.receive_with_fds(theirs, 100, 1) == (b"", [])


@pytest.mark.parametrize("sent", [1, 2, 7, 200])
def test_fds_that_the_receiver_has_no_room_for_are_dropped(pair: Pair, sent: int) -> None:
    ours, theirs = pair
    with open("/dev/null") as null, nothing_leaked():
        send(ours, b"data", [null.fileno()] * sent)
        assert fdpass.receive_with_fds(theirs, 100, 0) == (b"data", [])


@pytest.mark.parametrize(("sent", "room"), [(2, 1), (3, 1), (3, 2), (253, 1)])
def test_more_fds_than_there_is_room_for_are_all_closed(pair: Pair, sent: int, room: int) -> None:
    ours, theirs = pair
    with open("/dev/null") as null, nothing_leaked():
        send(ours, b"data", [null.fileno()] * sent)
        with pytest.raises(fdpass.Truncated):
            fdpass.receive_with_fds(theirs, 100, room)


@pytest.mark.parametrize("sent", [1, 2, 3])
def test_fds_that_a_process_may_not_have_are_an_error_of_their_own(pair: Pair, sent: int) -> None:
    ours, theirs = pair
    with open("/dev/null") as null, nothing_leaked():
        send(ours, b"data", [null.fileno()] * sent)
        with no_more_fds(), pytest.raises(fdpass.FdsNotReceived):
            fdpass.receive_with_fds(theirs, 100, 2)


@pytest.mark.parametrize("sent", [0, 1, 5])
def test_a_packet_that_is_too_long_is_truncated_and_its_fds_closed(packets: Pair, sent: int) -> None:
    ours, theirs = packets
    with open("/dev/null") as null, nothing_leaked():
        send(ours, b"12345", [null.fileno()] * sent) if sent else ours.send(b"12345")
        with pytest.raises(fdpass.Truncated):
            fdpass.receive_with_fds(theirs, 4, 1)
        # The next packet is whole.
        ours.send(b"1234")
        assert fdpass.receive_with_fds(theirs, 4, 1) == (b"1234", [])


def test_a_packet_of_exactly_the_size_is_whole(packets: Pair) -> None:
    ours, theirs = packets
    ours.send(b"1234")
    assert fdpass.receive_with_fds(theirs, 4, 0) == (b"1234", [])


def test_a_closed_peer_is_an_error(pair: Pair) -> None:
    ours, theirs = pair
    theirs.close()
    with pytest.raises(BrokenPipeError), nothing_leaked():
        fdpass.send_with_fds(ours, b"\0", [0])


def test_a_closed_peer_sends_no_signal_even_if_sigpipe_is_not_ignored() -> None:
    code = f"""
import signal, socket, sys
sys.path.insert(0, {str(ROOT)!r})
from fusermount3_proxy.wire import fdpass
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
ours, theirs = socket.socketpair()
theirs.close()
try:
    fdpass.send_with_fds(ours, b"x", [])
except BrokenPipeError:
    sys.exit(3)
"""
    assert subprocess.run([sys.executable, "-I", "-c", code], timeout=30).returncode == 3


def test_close_all_continues_after_an_fd_that_is_not_open() -> None:
    reader, writer = os.pipe()
    fdpass.close_all([999999, -1, reader, writer])
    for fd in (reader, writer):
        with pytest.raises(OSError):
            os.fstat(fd)
