"""Test the Go plugin's protocol in both directions: its programs with our driver, and our programs with its driver."""

import json
import os
import socket
import threading
from collections.abc import Iterator

import pytest
from harness import mounts
from harness.container import Bind, Container
from harness.events import wait_until
from harness.kubelet import SOCKET
from harness.pod import PLACE, SOCKETS, VARIABLE, Node, Pod
from harness.programs import SOURCES, static_fuse_program

HELLO = "/usr/bin/hello"
CLIENT = "/usr/bin/original-client"


@pytest.fixture
def binds() -> list[Bind]:
    return [
        Bind(static_fuse_program(), HELLO, read_only=True),
        Bind(SOURCES / "original_client.py", CLIENT, read_only=True),
    ]


def test_an_original_client_mounts_with_our_driver(pod: Pod, binds: list[Bind]) -> None:
    """Connecting is the request; the answer is one message with the fd. The program serves it at /dev/fd/3."""
    volume = pod.publish(attributes={"mountOptions": "noexec"})
    application, fuse = pod.application(volume), pod.fuse(volume, binds=binds)
    program = fuse.start(f"python3 {CLIENT} {SOCKETS}/{SOCKET} {HELLO} -f /dev/fd/3")
    mount = volume.wait_mounted(program)
    assert application.check("cat /data/hello") == "Hello World!\n"
    assert json.loads(program.out) == {"volumeName": "fuse-csi-ephemeral"}
    assert (mount.source, mount.fstype) == ("/dev/fuse", "fuse")
    assert "noexec" in mount.options


@pytest.mark.parametrize("end", ["fusermount3 -u /data", "pkill -KILL -x hello"])
def test_a_client_that_removes_its_socket_can_mount_again_when_its_program_has_gone(pod: Pod, binds: list[Bind], end: str) -> None:
    """Nothing is republished here."""
    volume = pod.publish()
    application, fuse = pod.application(volume), pod.fuse(volume, binds=binds)
    path = pod.folder.empty_dir() / SOCKET
    for _ in range(3):
        wait_until("the socket is there", path.is_socket)
        program = volume.mounted_by(fuse, f"python3 {CLIENT} {SOCKETS}/{SOCKET} {HELLO} -f /dev/fd/3")
        assert application.check("cat /data/hello") == "Hello World!\n"
        assert not path.exists()
        fuse.check(end)
        program.wait()


def test_an_original_client_that_is_refused_sees_a_close(node: Node, pod: Pod, binds: list[Bind]) -> None:
    volume = pod.publish()
    fuse = pod.fuse(volume, binds=binds)
    volume.mounted_by(fuse, f"{HELLO} -f /data")
    result = fuse.run(f"python3 {CLIENT} {SOCKETS}/{SOCKET} true")
    assert (result.code, result.out) == (1, "")
    (line,) = [line for line in node.driver.log.splitlines() if "refused" in line and volume.request.volume_id in line]
    assert os.strerror(16) in line


class OriginalDriver:
    """Does what the Go driver does for one volume: it makes one socket, gives one answer, and closes the socket."""

    def __init__(self, pod: Pod) -> None:
        self.empty_dir = pod.folder.empty_dir()
        self.target = pod.folder.target()
        self.target.mkdir()
        mounts.mount("-t", "tmpfs", "-o", "mode=0777", "original", self.target)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # The path is longer than sun_path.
        folder = os.open(self.empty_dir, os.O_PATH)
        self._listener.bind(f"/proc/self/fd/{folder}/{SOCKET}")
        os.close(folder)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        self._listener.close()
        with connection:
            fd = mounts.mount_fuse(self.target)
            socket.send_fds(connection, [json.dumps({"volumeName": "fuse-csi-ephemeral"}).encode()], [fd])
            os.close(fd)

    def close(self) -> None:
        self._thread.join(10)
        mounts.unmount_all_below(self.target)
        self.target.rmdir()


@pytest.fixture
def original_driver(pod: Pod) -> Iterator[OriginalDriver]:
    driver = OriginalDriver(pod)
    yield driver
    pod.stop_containers()
    driver.close()


def containers(pod: Pod, driver: OriginalDriver, binds: list[Bind]) -> tuple[Container, Container]:
    (driver.empty_dir / "dev-fuse").touch()
    fuse = pod.fuse(None, binds=[*binds, Bind(driver.target, "/data", "rslave")], environment={VARIABLE: f"{SOCKETS}/{SOCKET}"})
    return fuse, pod.container([Bind(driver.target, "/data", "rslave")])


def test_our_fusermount3_with_an_original_driver(pod: Pod, original_driver: OriginalDriver, binds: list[Bind]) -> None:
    fuse, application = containers(pod, original_driver, binds)
    program = fuse.start(f"{HELLO} -f /data")
    application.wait_for("cat /data/hello")
    assert application.check("cat /data/hello") == "Hello World!\n"
    # That protocol has no request to unmount.
    result = fuse.run("fusermount3 -u -q /data")
    assert (result.code, result.err) == (1, "")
    assert program.is_running


def test_unmounting_with_an_original_driver_is_reported_as_impossible(pod: Pod, original_driver: OriginalDriver, binds: list[Bind]) -> None:
    fuse, application = containers(pod, original_driver, binds)
    result = fuse.run("fusermount3 -u /data")
    assert result.code == 1
    (line,) = result.err.splitlines()
    assert line.startswith("fusermount3: ")
    fuse.start(f"{HELLO} -f /data")  # its one socket is unharmed
    application.wait_for("cat /data/hello")


def test_our_fuse_starter_with_an_original_driver(pod: Pod, original_driver: OriginalDriver, binds: list[Bind]) -> None:
    fuse, application = containers(pod, original_driver, binds)
    fuse.start(f"{PLACE}/fuse-starter --fd-passing-socket-path {SOCKETS}/{SOCKET} -- {HELLO} -f /dev/fd/3")
    application.wait_for("cat /data/hello")
    assert application.check("cat /data/hello") == "Hello World!\n"
