"""Tests --sync-init of fusermount3, with stand-ins for the FUSE library and the driver."""

import json
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from errno import EBUSY, EIO
from pathlib import Path

import pytest
from open_fds import same_file
from pod_programs import SOCKET_VARIABLE, end, start
from standin_driver import DEADLINE, Recorder, StandIn, answer, receive, sends, waits_for_end

OK = b'{"volumeName": "data"}'
DONE = b"{}"


class Library:
    """Stands in for libfuse 3.19: runs the helper with --sync-init."""

    def __init__(self, path: Path, mountpoint: Path) -> None:
        self.comm, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.comm.settimeout(DEADLINE)
        environment = {"_FUSE_COMMFD": str(theirs.fileno()), SOCKET_VARIABLE: str(path)}
        arguments = ["--sync-init", "-o", "ro", "--", str(mountpoint)]
        self.helper: subprocess.Popen[bytes] = start("fusermount3", arguments, environment, [theirs.fileno()])
        theirs.close()

    def receive_fd(self) -> int:
        data, (fd,) = receive(self.comm)
        assert data == b"\0"
        return fd

    def go_on(self) -> None:
        self.comm.sendall(b"\0")

    def result(self) -> int:
        (result,) = struct.unpack("i", self.comm.recv(100))
        return int(result)

    def ended(self) -> tuple[int, str]:
        """Return exit code and standard error of the helper, which must have sent no further data."""
        ended = end(self.helper)
        assert ended.stdout == b""
        try:
            assert self.comm.fileno() < 0 or self.comm.recv(100) == b""
        except ConnectionResetError:  # the helper has not read what was sent
            pass
        return ended.code, ended.stderr.decode()


@pytest.fixture
def library(path: Path, tmp_path: Path) -> Iterator[Callable[[], Library]]:
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    made: list[Library] = []

    def make() -> Library:
        made.append(Library(path, mountpoint))
        return made[-1]

    yield make
    for each in made:
        each.comm.close()
        each.helper.kill()
        each.helper.communicate()


class Driver:
    """Behaves as a driver that sends the fd, and answers proceed with `outcome`."""

    def __init__(self, fuse: int, outcome: bytes | None = DONE) -> None:
        self.fuse = fuse
        self.outcome = outcome
        self.packets: list[bytes] = []

    def __call__(self, connection: socket.socket) -> None:
        self.packets.append(connection.recv(1 << 20))
        answer(connection, OK, self.fuse)
        self.packets.append(connection.recv(1 << 20))
        if self.packets[-1] and self.outcome is not None:
            answer(connection, self.outcome)
        if self.packets[-1]:
            self.packets.append(connection.recv(1 << 20))


def test_the_driver_mounts_when_the_program_asks_for_it(library: Callable[[], Library], path: Path, fuse: int) -> None:
    driver = Driver(fuse)
    with StandIn(path, v1=driver):
        program = library()
        fd = program.receive_fd()
        assert same_file(fd, fuse)
        os.close(fd)
        assert len(driver.packets) == 1
        program.go_on()
        assert program.result() == 0
        assert program.ended() == (0, "")
    request, proceed, last = driver.packets
    assert json.loads(request)["syncInit"] is True
    assert json.loads(request)["options"] == "ro"
    assert json.loads(proceed) == {"op": "proceed"}
    assert last == b""


def test_a_failed_mount_is_reported_to_the_program_and_to_the_user(library: Callable[[], Library], path: Path, fuse: int) -> None:
    outcome = f'{{"error":"mount failed: Device or resource busy","errno":{EBUSY}}}'.encode()
    with StandIn(path, v1=Driver(fuse, outcome)):
        program = library()
        os.close(program.receive_fd())
        program.go_on()
        assert program.result() == -EBUSY
        assert program.ended() == (1, "fusermount3: mount failed: Device or resource busy\n")


def test_a_refusal_before_proceed_comes_without_an_fd(library: Callable[[], Library], path: Path) -> None:
    with StandIn(path, v1=Recorder(b'{"error":"unknown option \'x\'","errno":22}')):
        assert library().ended() == (1, "fusermount3: unknown option 'x'\n")


def test_a_driver_of_the_original_protocol_gets_no_request(library: Callable[[], Library], path: Path, fuse: int) -> None:
    """To connect would be a request to mount, and libfuse's next call could then not mount."""
    with StandIn(path, original=sends(OK, fuse)) as driver:
        code, text = library().ended()
        assert driver.connections == 0
    assert code == 1
    assert text.startswith("fusermount3: --sync-init is not supported: ") and text.count("\n") == 1


@pytest.mark.parametrize("how", ["close", "shutdown"])
def test_a_program_that_closes_the_socket_ends_the_helper(library: Callable[[], Library], path: Path, fuse: int, how: str) -> None:
    driver = Driver(fuse)
    with StandIn(path, v1=driver):
        program = library()
        os.close(program.receive_fd())
        if how == "close":
            program.comm.close()
        else:
            program.comm.shutdown(socket.SHUT_WR)
        assert program.ended() == (1, "fusermount3: the FUSE program ended before it was mounted, or closed its end of the comm socket\n")
    assert driver.packets[1:] == [b""]


def test_a_program_that_dies_while_it_is_mounted_ends_the_drivers_wait(library: Callable[[], Library], path: Path, fuse: int) -> None:
    driver = Driver(fuse, outcome=None)
    with StandIn(path, v1=driver):
        program = library()
        os.close(program.receive_fd())
        program.go_on()
        program.comm.close()
        assert program.ended() == (1, "fusermount3: the FUSE program ended while it was mounted, or closed its end of the comm socket\n")
    assert driver.packets[2:] == [b""]


def test_a_helper_that_is_killed_ends_the_drivers_wait(library: Callable[[], Library], path: Path, fuse: int) -> None:
    driver = Driver(fuse, outcome=None)
    with StandIn(path, v1=driver):
        program = library()
        os.close(program.receive_fd())
        program.go_on()
        program.helper.send_signal(signal.SIGTERM)
        assert program.ended()[0] == -signal.SIGTERM
    assert driver.packets[-1] == b""


def test_a_driver_that_ends_before_proceed_is_reported(library: Callable[[], Library], path: Path, fuse: int) -> None:
    def gives_the_fd(connection: socket.socket) -> None:
        connection.recv(1 << 20)
        answer(connection, OK, fuse)

    with StandIn(path, v1=gives_the_fd):
        program = library()
        os.close(program.receive_fd())
        code, text = program.ended()
    assert (code, text.count("\n")) == (1, 1)
    assert "the driver closed the connection" in text


@pytest.mark.parametrize("outcome", [b"", b"no JSON", b"[]", b'{"error":7}'])
def test_a_broken_answer_is_reported_to_the_program_and_to_the_user(
    library: Callable[[], Library], path: Path, fuse: int, outcome: bytes
) -> None:
    def answers_badly(connection: socket.socket) -> None:
        connection.recv(1 << 20)
        answer(connection, OK, fuse)
        connection.recv(1 << 20)
        if outcome:
            answer(connection, outcome)

    with StandIn(path, v1=answers_badly):
        program = library()
        os.close(program.receive_fd())
        program.go_on()
        assert program.result() == -EIO
        code, text = program.ended()
    assert (code, text.count("\n")) == (1, 1)
    assert "Traceback" not in text


def test_a_program_that_ends_before_it_gets_the_fd(library: Callable[[], Library], path: Path, fuse: int) -> None:
    driver = Driver(fuse)
    with StandIn(path, v1=driver):
        program = library()
        program.comm.close()
        assert program.ended()[0] == 1
    assert driver.packets[1:] in ([b""], [])


def test_its_options_are_checked_before_the_driver_is_asked(path: Path, tmp_path: Path) -> None:
    with StandIn(path, v1=waits_for_end) as driver:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            environment = {"_FUSE_COMMFD": str(theirs.fileno()), SOCKET_VARIABLE: str(path)}
            arguments = ["--sync-init", "-o", "bogus", "--", str(tmp_path)]
            ended = end(start("fusermount3", arguments, environment, [theirs.fileno()]))
        assert driver.connections == 0
    assert (ended.code, ended.stderr) == (1, b"fusermount3: unknown option 'bogus'\n")
