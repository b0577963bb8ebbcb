import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from open_fds import no_more_fds, nothing_leaked, same_file
from standin_driver import Behaviour, Recorder, StandIn, answer, listen, sends, waits_for_end

from fusermount3_proxy import driver_socket, limits
from fusermount3_proxy.driver_socket import DriverError, OriginalProtocolOnly
from fusermount3_proxy.wire import protocol
from fusermount3_proxy.wire.protocol import MountRequest, UnmountRequest

OK = b'{"volumeName": "data"}'
REQUEST = MountRequest("/m", "ro")
UNMOUNT = UnmountRequest("/m", True, "0:45")


@pytest.fixture(autouse=True)
def no_fd_is_left() -> Iterator[None]:
    with nothing_leaked():
        yield


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SOCKET_RETRY", 0.01)
    monkeypatch.setattr(limits, "SOCKET_WAIT_SILENT", 0.05)


@pytest.fixture
def short_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ANSWER_WAIT", 0.2)


def nothing_reported(line: str) -> None:
    raise AssertionError(f"{line!r} was reported")


def mount(path: Path | str, wait: float = 0) -> tuple[str | None, int]:
    """Mount, and return the volume's name and the fd."""
    reply, fd = driver_socket.mount(str(path), REQUEST, wait, nothing_reported)
    assert reply.error is None
    return reply.volume_name, fd


def failure(path: Path | str, wait: float = 0) -> str:
    """Return the one line that a mount fails with."""
    with pytest.raises(DriverError) as caught:
        driver_socket.mount(str(path), REQUEST, wait, lambda line: None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- answers


def test_v1_takes_the_request_and_gives_the_fd(path: Path, fuse: int) -> None:
    driver = Recorder(OK, fuse)
    with StandIn(path, v1=driver):
        name, fd = mount(path)
        assert name == "data"
        assert same_file(fd, fuse)
        assert not os.get_inheritable(fd)
        os.close(fd)
    assert [json.loads(request) for request in driver.requests] == [{"op": "mount", "mountpoint": "/m", "options": "ro", "fds": []}]


def test_the_original_protocol_is_used_if_it_is_the_only_one(path: Path, fuse: int) -> None:
    with StandIn(path, original=sends(OK, fuse)):
        name, fd = mount(path)
        assert name == "data"
        assert same_file(fd, fuse)
        os.close(fd)


def test_v1_is_used_if_there_are_both(path: Path, fuse: int) -> None:
    with StandIn(path, v1=Recorder(OK, fuse), original=sends(b"wrong")) as driver:
        os.close(mount(path)[1])
        assert driver.connections == 1


def test_nothing_is_sent_in_the_original_protocol(path: Path, fuse: int) -> None:
    received = []

    def behaviour(connection: socket.socket) -> None:
        answer(connection, OK, fuse)
        try:
            received.append(connection.recv(100))
        except ConnectionResetError:
            received.append(b"")

    with StandIn(path, original=behaviour):
        os.close(mount(path)[1])
    assert received == [b""]


def test_a_message_of_the_original_protocol_may_come_in_pieces(path: Path, fuse: int) -> None:
    def behaviour(connection: socket.socket) -> None:
        answer(connection, OK[:7], fuse)
        for byte in OK[7:]:
            connection.send(bytes([byte]))

    with StandIn(path, original=behaviour):
        name, fd = mount(path)
        assert name == "data"
        os.close(fd)


def test_an_answer_of_v1_is_one_packet(path: Path, fuse: int, short_answer: None) -> None:
    def behaviour(connection: socket.socket) -> None:
        connection.recv(1 << 20)
        answer(connection, OK[:7], fuse)
        with suppress(OSError):  # the client may have closed the connection by now, as it should
            answer(connection, OK[7:])
            waits_for_end(connection)

    with StandIn(path, v1=behaviour):
        assert "cannot be read" in failure(path)


@pytest.mark.parametrize("space", [b"\n", b" "])
def test_space_after_an_answer_is_not_waited_for(path: Path, fuse: int, space: bytes, short_answer: None) -> None:
    def behaviour(connection: socket.socket) -> None:
        connection.recv(1 << 20)
        answer(connection, OK + space, fuse)
        waits_for_end(connection)

    with StandIn(path, v1=behaviour):
        name, fd = mount(path)
        os.close(fd)
        assert name == "data"


def test_a_refusal_is_an_answer(path: Path) -> None:
    with StandIn(path, v1=Recorder(b'{"error":"mount failed: Device or resource busy","errno":16}')):
        reply, fd = driver_socket.mount(str(path), REQUEST, 0, nothing_reported)
    assert (reply.error, reply.errno, fd) == ("mount failed: Device or resource busy", 16, -1)


def test_a_refusal_that_comes_with_an_fd_leaves_none(path: Path, fuse: int) -> None:
    with StandIn(path, v1=Recorder(b'{"error":"no","errno":1}', fuse)):
        reply, fd = driver_socket.mount(str(path), REQUEST, 0, nothing_reported)
    assert (reply.error, fd) == ("no", -1)


class Busy(Recorder):
    """Closes its first connections without an answer, as the driver does with those that are too many at once."""

    def __init__(self, times: int) -> None:
        super().__init__(b"{}")
        self.times = times

    def __call__(self, connection: socket.socket) -> None:
        self.times -= 1
        if self.times < 0:
            super().__call__(connection)


def test_a_fuse_devices_driver_that_is_busy_is_asked_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "DEVICE_SOCKET", str(path))
    driver = Busy(3)
    with StandIn(path, v1=driver):
        assert driver_socket.unmount(str(path), UNMOUNT, 10, nothing_reported).error is None
    assert len(driver.requests) == 1


def test_a_fuse_devices_driver_that_stays_busy_is_given_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "DEVICE_SOCKET", str(path))
    with StandIn(path, v1=Busy(1000)), pytest.raises(DriverError, match="closed the connection without an answer"):
        driver_socket.unmount(str(path), UNMOUNT, 0.2, nothing_reported)


@pytest.mark.parametrize(
    ("packet", "fds", "message"),
    [
        (b"", 0, "closed the connection without an answer"),
        (OK[:-3], 1, "cannot be read"),
        (b"mounted}", 1, "cannot be read"),
        (b"[1]", 1, "cannot be read"),
        (b'{"volumeName": 7}', 1, "cannot be read"),
        (b'{"error": "no", "errno": "x"}', 1, "cannot be read"),
        (b"\xff}", 0, "cannot be read"),
        (OK, 0, "0 file descriptors instead of one"),
        (OK, 2, "too many file descriptors"),
        (OK, 100, "too many file descriptors"),
        (b"{}", 1, "cannot be read: it has no volumeName"),
        (b" " * protocol.PACKET_MAX + OK, 1, "too long"),
    ],
)
def test_a_broken_answer_is_one_line_and_leaves_no_fd(path: Path, fuse: int, packet: bytes, fds: int, message: str) -> None:
    with StandIn(path, v1=Recorder(packet, *[fuse] * fds)):
        assert message in failure(path)


@pytest.mark.parametrize(
    ("packet", "fds", "message"),
    [
        (OK[:-3], 1, "cannot be read"),
        (b"[1]", 1, "cannot be read"),
        (b"{}", 1, "cannot be read"),
        (b'{"error": "no", "errno": 1}', 0, "cannot be read"),
        (OK, 0, "0 file descriptors instead of one"),
        (OK, 2, "too many file descriptors"),
        (b" " * 490 + OK, 1, "at most 500"),
    ],
)
def test_a_broken_original_message_is_one_line_and_leaves_no_fd(path: Path, fuse: int, packet: bytes, fds: int, message: str) -> None:
    with StandIn(path, original=sends(packet, *[fuse] * fds)):
        assert message in failure(path)


@pytest.mark.parametrize("protocol", ["v1", "original"])
def test_an_fd_that_this_process_may_not_have_has_its_own_error(path: Path, fuse: int, protocol: str) -> None:
    answered = threading.Event()

    def behaviour(connection: socket.socket) -> None:
        with no_more_fds():
            answer(connection, OK, fuse)
            answered.wait(10)

    with StandIn(path, **{protocol: behaviour}):
        try:
            assert "this process may open no more (ulimit -n)" in failure(path)
        finally:
            answered.set()


def test_a_refusal_in_the_original_protocol_is_a_close(path: Path) -> None:
    with StandIn(path, original=lambda connection: None):
        assert failure(path) == "the driver refused; its log says why"


def test_more_than_one_fd_in_pieces_leaves_none(path: Path, fuse: int) -> None:
    def behaviour(connection: socket.socket) -> None:
        answer(connection, OK[:7], fuse)
        answer(connection, OK[7:], fuse)

    with StandIn(path, original=behaviour):
        assert "2 file descriptors instead of one" in failure(path)


@pytest.mark.parametrize("protocol", ["v1", "original"])
def test_a_driver_that_never_answers_is_given_up(path: Path, protocol: str, short_answer: None) -> None:
    with StandIn(path, **{protocol: waits_for_end}):
        assert failure(path) == "the driver did not answer within 0.2 s"


def test_a_driver_that_answers_too_slowly_is_given_up(path: Path, fuse: int, short_answer: None) -> None:
    # Each byte comes in time, but the whole answer never does.
    def behaviour(connection: socket.socket) -> None:
        answer(connection, b"{", fuse)
        try:
            while True:
                connection.send(b" ")
                time.sleep(0.02)
        except OSError:
            return

    with StandIn(path, original=behaviour):
        began = time.monotonic()
        assert "did not answer within" in failure(path)
        assert time.monotonic() - began < 5


# ---- connecting


def test_a_socket_that_is_missing_is_one_line(path: Path) -> None:
    text = failure(path)
    assert str(path) in text
    assert "No such file or directory" in text
    assert "is the volume published" in text


def test_waiting_is_reported_once(path: Path) -> None:
    reported: list[str] = []
    with pytest.raises(DriverError):
        driver_socket.mount(str(path), REQUEST, 0.3, reported.append)
    assert reported == [f"waiting up to 0.3 s for the driver at {path} (No such file or directory)"]


def test_a_short_wait_is_not_reported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SOCKET_WAIT_SILENT", 60)
    with pytest.raises(DriverError):
        driver_socket.mount(str(path), REQUEST, 0.05, nothing_reported)


@pytest.mark.parametrize("protocol", ["v1", "original"])
def test_a_socket_that_appears_late_is_used(path: Path, fuse: int, protocol: str) -> None:
    behaviour: Behaviour = Recorder(OK, fuse) if protocol == "v1" else sends(OK, fuse)
    waiting, done = threading.Event(), threading.Event()

    def publish() -> None:
        assert waiting.wait(20)
        with StandIn(path, **{protocol: behaviour}):
            assert done.wait(20)

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        reply, fd = driver_socket.mount(str(path), REQUEST, 20, lambda line: waiting.set())
        os.close(fd)
        assert reply.volume_name == "data"
    finally:
        waiting.set()
        done.set()
        thread.join()


@pytest.mark.parametrize("suffix", ["", ".v1"])
def test_a_socket_that_nobody_listens_on_is_waited_for_and_reported(path: Path, suffix: str) -> None:
    kind = socket.SOCK_SEQPACKET if suffix else socket.SOCK_STREAM
    listen(f"{path}{suffix}", kind).close()
    reported: list[str] = []
    with pytest.raises(DriverError, match="Connection refused"):
        driver_socket.mount(str(path), REQUEST, 0.2, reported.append)
    assert len(reported) == 1


def test_a_v1_socket_that_refuses_is_not_passed_over(path: Path, fuse: int) -> None:
    # The driver is being replaced, and a mount at its original socket would not have the program's options.
    listen(f"{path}.v1", socket.SOCK_SEQPACKET).close()
    with StandIn(path, original=sends(OK, fuse)) as driver:
        assert "Connection refused" in failure(path)
        assert driver.connections == 0


def test_a_driver_whose_queue_is_full_is_waited_for(path: Path) -> None:
    with listen(f"{path}.v1", socket.SOCK_SEQPACKET, backlog=0):
        queued = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        queued.connect(f"{path}.v1")
        with queued:
            assert "Resource temporarily unavailable" in failure(path, wait=0.1)


def test_a_file_in_the_sockets_place_is_one_line(path: Path) -> None:
    path.with_name("fuse.sock.v1").touch()
    assert "Connection refused" in failure(path)


def test_a_socket_of_another_type_is_reported_at_once(path: Path) -> None:
    with listen(f"{path}.v1", socket.SOCK_STREAM):
        assert "Protocol wrong type for socket" in failure(path, wait=60)


def test_an_error_that_waiting_does_not_end_is_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert "Too many levels of symbolic links" in failure(tmp_path / "loop/fuse.sock", wait=60)
    (tmp_path / "file").touch()
    assert "Not a directory" in failure(tmp_path / "file/fuse.sock", wait=60)


@pytest.mark.parametrize("protocol", ["v1", "original"])
@pytest.mark.parametrize("length", [107, 108, 109, 110, 111, 300])
def test_a_path_of_any_length_is_connected_to(tmp_path: Path, fuse: int, protocol: str, length: int) -> None:
    # A Unix socket's address holds 107 bytes, which the path with the suffix may exceed although the path itself does not.
    folder = tmp_path
    while length - len(str(folder)) > 200:
        folder = folder / ("d" * 150)
    path = folder / ("s" * (length - len(str(folder)) - 1))
    folder.mkdir(parents=True, exist_ok=True)
    assert len(str(path)) == length
    behaviour: Behaviour = Recorder(OK, fuse) if protocol == "v1" else sends(OK, fuse)
    with StandIn(path, **{protocol: behaviour}):
        os.close(mount(path)[1])


def test_a_long_path_that_is_missing_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 200)
    reported: list[str] = []
    with pytest.raises(DriverError, match="No such file"):
        driver_socket.mount(str(path), REQUEST, 0.2, reported.append)
    assert len(reported) == 1


def test_a_path_that_is_too_long_for_any_file_is_one_line(tmp_path: Path) -> None:
    assert "File name too long" in failure(tmp_path / ("x" * 300), wait=60)
    assert "File name too long" in failure("/x" * 5000, wait=60)


@pytest.mark.parametrize("path", ["a\0b", "\0abstract"])
def test_a_path_with_nul_is_one_line(path: str) -> None:
    assert "NUL" in failure(path)


def test_a_path_of_any_bytes_is_connected_to(tmp_path: Path, fuse: int) -> None:
    path = tmp_path / "so\ncket\udcff"
    with StandIn(path, v1=Recorder(OK, fuse)):
        os.close(mount(path)[1])


def test_a_request_that_is_too_long_is_refused_before_it_is_sent(path: Path) -> None:
    with StandIn(path, v1=Recorder(OK)) as driver:
        with pytest.raises(DriverError, match="the text of the options has 65536 bytes"):
            driver_socket.mount(str(path), MountRequest("/m", "x" * 65536), 0, nothing_reported)
        assert driver.connections == 0


# ---- unmounting


def test_unmount_sends_what_the_client_sees(path: Path) -> None:
    driver = Recorder(b"{}")
    with StandIn(path, v1=driver):
        assert driver_socket.unmount(str(path), UNMOUNT, 0, nothing_reported).error is None
    assert json.loads(driver.requests[0]) == {"op": "unmount", "mountpoint": "/m", "lazy": True, "dev": "0:45", "fds": []}


def test_unmount_gives_the_refusal_and_drops_fds(path: Path, fuse: int) -> None:
    with StandIn(path, v1=Recorder(b'{"error":"busy","errno":16}', fuse)):
        reply = driver_socket.unmount(str(path), UNMOUNT, 0, nothing_reported)
    assert (reply.error, reply.errno) == ("busy", 16)


def test_unmount_is_not_in_the_original_protocol(path: Path) -> None:
    with StandIn(path, original=lambda connection: None) as driver:
        with pytest.raises(OriginalProtocolOnly):
            driver_socket.unmount(str(path), UNMOUNT, 60, nothing_reported)
        assert driver.connections == 0


@pytest.mark.parametrize("packet", [b"", b"}", b"[]", b'{"volumeName":7}'])
def test_a_broken_answer_to_unmount_is_one_line(path: Path, packet: bytes) -> None:
    with StandIn(path, v1=Recorder(packet)), pytest.raises(DriverError):
        driver_socket.unmount(str(path), UNMOUNT, 0, nothing_reported)
