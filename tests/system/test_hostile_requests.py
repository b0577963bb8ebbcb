"""Test that each bad request to the driver's sockets gets an error or a closed connection, and that the volume stays usable."""

import contextlib
import json
import os
import re
import socket
import struct
from collections.abc import Iterator
from errno import EINVAL

import pytest
from harness.container import Container
from harness.events import wait_until
from harness.hostile import MOUNT, connect, mount, receive, request
from harness.kubelet import Published
from harness.pod import Node, Pod

REQUEST_WAIT = 5  # seconds that the driver waits for a request
AT_ONCE = 8  # requests of one volume


class Setup:
    def __init__(self, pod: Pod) -> None:
        self.volume: Published = pod.publish()
        self.fuse: Container = pod.fuse(self.volume)
        self.fuse.wait_until_running()


@pytest.fixture(scope="module")
def setup(module_node: Node) -> Setup:
    return Setup(module_node.pod())


@pytest.fixture
def still_works(node: Node, setup: Setup) -> Iterator[None]:
    """Check after the test that a program can mount the same volume and unmount it."""
    yield
    program = setup.volume.mounted_by(setup.fuse)
    setup.fuse.check("fusermount3 -u /data")
    program.wait()
    setup.volume.wait_waiting()


pytestmark = pytest.mark.usefixtures("still_works")


def answer(volume: Published, packet: bytes) -> dict[str, object]:
    """Send one request, and return its answer, which must come without an fd."""
    reply, fds = request(volume, packet)
    assert fds == []
    return reply


def asks(options: str) -> bytes:
    """Return a request to mount with these options."""
    return json.dumps({"op": "mount", "mountpoint": "/data", "options": options, "fds": []}).encode()


@pytest.mark.parametrize(
    "packet",
    [
        b"not JSON",
        b"\xff\xff",
        b"[]",
        b"{}",
        b"{" * 60000,
        b'{"op":"format"}',
        b'{"op":"mount"}',
        b'{"op":"mount","mountpoint":7}',
        b'{"op":"mount","mountpoint":"/x","options":["ro"]}',
        '{"op":"mount","mountpoint":"/€","options":""}'.encode(),
        b'{"op":"unmount","mountpoint":"/x","lazy":"yes"}',
        b'{"op":"unmount","mountpoint":"/x","dev":7}',
        MOUNT[:-1],
        MOUNT + b"x",
        MOUNT.ljust(65537),
    ],
    ids=[
        *("not JSON", "not UTF-8", "array", "empty object", "deep", "unknown op", "no mountpoint", "mountpoint", "options"),
        *("above Latin-1", "lazy", "dev", "cut off", "too much", "too long"),
    ],
)
def test_a_packet_that_is_no_request(node: Node, setup: Setup, packet: bytes) -> None:
    reply = answer(setup.volume, packet)
    assert str(reply["error"]).startswith("bad request: ")
    assert reply["errno"]
    assert setup.volume.fuse is None


@pytest.mark.parametrize(
    "options",
    [
        "suid,nonsense",
        "max_read=1\\,fd=0",
        "max_read=99999999999999999999",
        "max_read=-1",
        "blksize=x",
        "fsname=",
        "subtype=",
        "subtype=a\0b",
    ],
)
def test_options_that_are_refused(node: Node, setup: Setup, options: str) -> None:
    assert answer(setup.volume, asks(options))["error"]
    assert setup.volume.fuse is None


def test_options_cannot_take_nosuid_and_nodev_away(node: Node, setup: Setup) -> None:
    fd = mount(setup.volume, asks("suid,dev,allow_other"))
    try:
        assert {"nosuid", "nodev"} <= setup.volume.fuse.options
        assert "default_permissions" in setup.volume.fuse.super_options
    finally:
        os.close(fd)
    setup.volume.wait_waiting()


def test_fds_that_nobody_asked_for_are_not_kept(node: Node, setup: Setup) -> None:
    read, write = os.pipe()
    with connect(setup.volume) as connection, contextlib.ExitStack() as stack:
        stack.callback(os.close, read)
        socket.send_fds(connection, [b"not JSON"], [write] * 100)
        os.close(write)
        reply, fds = receive(connection)
        assert reply["error"] and fds == []
        # The pipe has ended: nobody holds its other side any more.
        os.set_blocking(read, False)
        assert os.read(read, 1) == b""


def test_unmounting_what_is_not_mounted(node: Node, setup: Setup) -> None:
    assert answer(setup.volume, b'{"op":"unmount","mountpoint":"/data","lazy":false,"fds":[],"dev":null}')["errno"] == EINVAL


def test_a_client_that_sends_nothing_is_disconnected(node: Node, setup: Setup) -> None:
    with connect(setup.volume, timeout=REQUEST_WAIT + 5) as connection:
        assert connection.recv(1) == b""
        idle = [connect(setup.volume) for _ in range(AT_ONCE)]
        # This is one too many: it is closed at once, and not after the time of the others.
        with connect(setup.volume, timeout=REQUEST_WAIT / 2) as extra:
            assert extra.recv(1) == b""
        for connection in idle:
            connection.close()


@pytest.mark.parametrize("suffix", ["", ".v1"])
def test_a_client_that_leaves_before_its_answer(node: Node, pod: Pod, suffix: str) -> None:
    volume = pod.publish()  # its own volume: nothing more is logged for a volume with many refusals
    said = len(node.driver.log)
    for _ in range(5):
        connection = connect(volume, suffix)
        if suffix:
            connection.send(MOUNT)
        # Everything that has arrived is lost with the connection.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    wait_until("all are served", lambda: len(re.findall(": (?:mounted|request refused|mount refused)", node.driver.log[said:])) == 5)
    volume.wait_waiting()


def test_what_is_sent_on_the_original_socket_is_not_read(node: Node, setup: Setup) -> None:
    with connect(setup.volume, "") as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(b"x" * 100)
        reply, fds = receive(connection)
        assert reply == {"volumeName": "fuse-csi-ephemeral"}
        for fd in fds:
            os.close(fd)
    setup.volume.wait_waiting()
