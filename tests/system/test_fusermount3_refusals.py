"""Test that fusermount3 prints one clear line, exits with 1 and leaves nothing behind where something is wrong."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import mounts
from harness.container import Background, Bind, Container
from harness.pod import SOCKETS, VARIABLE, Node, Pod
from harness.programs import SOURCES, static_fuse_program
from standin_driver import Behaviour, StandIn

LIBRARY = "/usr/bin/library"
ANSWER_WAIT = 30  # seconds that the client waits for an answer

GOOD = b'{"volumeName":"v"}'


class Setup:
    """Represents a pod without a volume: stand-ins for the driver listen at its sockets."""

    def __init__(self, pod: Pod) -> None:
        self.empty_dir = pod.folder.empty_dir()
        self.fuse: Container = pod.fuse(None, dev_fuse=False, binds=[Bind(SOURCES / "library.py", LIBRARY, read_only=True)], environment={})
        self.fuse.wait_until_running()

    def mount(self, name: str, arguments: str = "-- /mnt", kind: str = "stream") -> dict[str, object]:
        return json.loads(self.fuse.check(self.command(name, arguments, kind)))

    def command(self, name: str, arguments: str = "-- /mnt", kind: str = "stream") -> str:
        return f"env {VARIABLE}={SOCKETS}/{name} python3 {LIBRARY} {kind} {arguments}"


@pytest.fixture(scope="module")
def setup(module_node: Node) -> Setup:
    return Setup(module_node.pod())


@contextmanager
def driver(setup: Setup, name: str, answer: Behaviour) -> Iterator[list[bytes]]:
    """Run a stand-in for the driver, of protocol v1, with the behaviour `answer`; yields the requests."""
    requests: list[bytes] = []

    def behaviour(connection: socket.socket) -> None:
        requests.append(connection.recv(65536))
        answer(connection)

    with StandIn(setup.empty_dir / name, v1=behaviour):
        yield requests


def null() -> int:
    return os.open("/dev/null", os.O_RDWR)


def with_fds(data: bytes, count: int) -> Behaviour:
    def answer(connection: socket.socket) -> None:
        fds = [null() for _ in range(count)]
        socket.send_fds(connection, [data], fds)
        for fd in fds:
            os.close(fd)

    return answer


@pytest.mark.parametrize("kind", ["stream", "seqpacket"])
def test_the_fd_of_a_good_answer_is_passed_on(node: Node, setup: Setup, kind: str) -> None:
    with driver(setup, "good", with_fds(GOOD, 1)) as requests:
        result = setup.mount("good", "-o ro,fsname=x -- /mnt", kind)
    assert result == {"code": 0, "out": "", "err": "", "data": "00", "fds": ["/dev/null"]}
    request = json.loads(requests[0])
    assert request == {"op": "mount", "mountpoint": "/mnt", "options": "ro,fsname=x", "fds": []}


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (with_fds(GOOD[:-4], 1), "JSON"),
        (with_fds(b"not JSON", 1), "JSON"),
        (with_fds(b"[1, 2]", 1), "JSON"),
        (with_fds(b"\xff\xfe", 1), "JSON"),
        (with_fds(b'{"volumeName":7}', 1), "volumeName"),
        (with_fds(b'{"volumeName":"' + b"v" * 66000 + b'"}', 1), "too long"),
        (with_fds(GOOD, 0), "instead of one"),
        (with_fds(GOOD, 2), "too many file descriptors"),
        (with_fds(b"{}", 1), "no volumeName"),
        (lambda connection: None, "closed the connection"),
        (with_fds(b'{"error":"no such luck","errno":5}', 0), "no such luck"),
        (with_fds(b'{"error":"no such luck","errno":5}', 1), "no such luck"),
    ],
    ids=[
        *("cut off", "not JSON", "no object", "not UTF-8", "wrong type", "too long", "no fd", "two fds", "no volume"),
        *("closed", "refusal", "refusal with fd"),
    ],
)
def test_a_bad_answer(node: Node, setup: Setup, answer: Behaviour, word: str) -> None:
    with driver(setup, "bad", answer):
        result = setup.mount("bad")
    assert (result["code"], result["out"], result["data"], result["fds"]) == (1, "", "", [])
    (line,) = str(result["err"]).splitlines()
    assert line.startswith("fusermount3: ")
    assert word in line


def test_a_driver_that_stops_answering(node: Node, setup: Setup) -> None:
    """Both kinds of socket are tested at once, since it takes its time."""
    release = threading.Event()

    def say_nothing(connection: socket.socket) -> None:
        release.wait(2 * ANSWER_WAIT)

    with StandIn(setup.empty_dir / "silent", v1=say_nothing), StandIn(setup.empty_dir / "original", original=say_nothing):
        try:
            start = time.monotonic()
            programs: list[Background] = [setup.fuse.start(setup.command(name).removeprefix("env ")) for name in ("silent", "original")]
            for program in programs:
                assert program.wait(ANSWER_WAIT + 5) == 0
                assert time.monotonic() - start >= ANSWER_WAIT
                result = json.loads(program.out)
                assert result["code"] == 1
                (line,) = result["err"].splitlines()
                assert line == f"fusermount3: the driver did not answer within {ANSWER_WAIT} s"
        finally:
            release.set()


@pytest.fixture
def unasked(setup: Setup) -> Iterator[list[bytes]]:
    """Run a stand-in for the driver that should get no request; yields the requests."""
    with driver(setup, "unasked", with_fds(GOOD, 1)) as requests:
        yield requests


@pytest.mark.parametrize(
    ("variable", "line"),
    [
        ("", "fusermount3: old style mounting not supported"),
        # What is no number is 0 for atoi(3).
        ("_FUSE_COMMFD=nonsense", "sending file descriptor: Socket operation on non-socket"),
        ("_FUSE_COMMFD=-1", "sending file descriptor: Bad file descriptor"),
        ("_FUSE_COMMFD=", "sending file descriptor: Socket operation on non-socket"),
        ("_FUSE_COMMFD=99", "sending file descriptor: Bad file descriptor"),
        ("_FUSE_COMMFD=1", "sending file descriptor: Socket operation on non-socket"),
    ],
    ids=["missing", "no number", "negative", "empty", "not open", "no socket"],
)
def test_a_bad_comm_fd(node: Node, setup: Setup, unasked: list[bytes], variable: str, line: str) -> None:
    """The bad fd is found before the driver is asked, so nothing has to be undone."""
    result = setup.fuse.run(f"{VARIABLE}={SOCKETS}/unasked {variable} fusermount3 -- /mnt")
    assert (result.code, result.out, result.err.splitlines()) == (1, "", [line])
    assert unasked == []


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ("", "missing mountpoint argument"),
        ("/mnt /srv", "extra arguments after the mountpoint"),
        ("--bogus /mnt", "unrecognized option '--bogus'"),
        ("-x /mnt", "invalid option -- 'x'"),
        ("/mnt -o", "option requires an argument -- 'o'"),
        ("-- /no/such/folder", "/no/such/folder"),
        ("-- ''", "mountpoint"),
        ("-o bogus -- /mnt", "unknown option 'bogus'"),
        ("-o blkdev -- /mnt", "option blkdev is privileged"),
    ],
)
def test_a_bad_command_line(node: Node, setup: Setup, unasked: list[bytes], arguments: str, word: str) -> None:
    result = setup.mount("unasked", arguments)
    assert (result["code"], result["out"], result["fds"]) == (1, "", [])
    (line,) = str(result["err"]).splitlines()
    assert line.startswith("fusermount3: ")
    assert word in line
    assert unasked == []


def test_no_socket_to_be_found(node: Node, setup: Setup) -> None:
    assert list(Path(setup.empty_dir).iterdir()) == []
    result = setup.fuse.run(f"python3 {LIBRARY} stream -- /mnt")
    (line,) = json.loads(result.out)["err"].splitlines()
    assert VARIABLE in line
    assert SOCKETS in line


def test_a_library_that_is_refused_with_a_subtype_calls_again_without(pod: Pod) -> None:
    """libfuse hides the output of the first call. The second call must find everything as it was."""
    target = pod.folder.target()
    target.mkdir()
    mounts.mount("-t", "tmpfs", "-o", "mode=0777", "stand-in", target)
    mounts.mount("--make-shared", target)

    def refuses_subtypes(connection: socket.socket) -> None:
        if "subtype=" in json.loads(requests[-1])["options"]:
            connection.send(b'{"error":"mount failed: No such device","errno":19}')
            return
        fd = mounts.mount_fuse(target)
        socket.send_fds(connection, [GOOD], [fd])
        os.close(fd)

    setup = Setup(pod)
    try:
        with driver(setup, "without-subtypes", refuses_subtypes) as requests:
            (setup.empty_dir / "dev-fuse").touch()
            binds = [Bind(static_fuse_program(), "/usr/bin/hello", read_only=True), Bind(target, "/data", "rslave")]
            fuse = pod.fuse(None, binds=binds, environment={VARIABLE: f"{SOCKETS}/without-subtypes"})
            program = fuse.start("hello -f -o fsname=source,subtype=kind /data")
            fuse.wait_for("cat /data/hello")
            assert fuse.check("cat /data/hello") == "Hello World!\n"
            assert ["subtype=" in json.loads(request)["options"] for request in requests] == [True, False]
            assert "No such device" not in program.err
    finally:
        pod.stop_containers()
        mounts.unmount_all_below(target)
        target.rmdir()
