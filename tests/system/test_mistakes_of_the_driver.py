"""Test that after a mistake of the driver in the middle of a mount nothing stays mounted, no fd stays open, and a program can mount."""

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import broken_driver, hostile
from harness.events import wait_until
from harness.pod import Node

PLACES = [
    "driver.mounts.fusemount:mounted",
    "driver.observe.metrics:mounted",
    "driver.mounts.deathwatch:DeathWatch.begin",
    "driver.volumes.volumes:Volumes._changed",
    "driver.volumes.requests:VolumeRequests._log_mounted",
]


@pytest.fixture
def broken(module_node: Node, request: pytest.FixtureRequest) -> Iterator[Node]:
    """Run a node whose driver makes a mistake once."""
    driver = module_node.driver
    driver.stop()
    driver.wrapper = (sys.executable, str(Path(broken_driver.__file__)), request.param)
    driver.start()
    yield module_node
    module_node.delete_pods()
    driver.wrapper = ()
    driver.end()
    driver.start()


broken_at = pytest.mark.parametrize("broken", PLACES, indirect=True)


@broken_at
def test_a_mistake_in_a_mount(broken: Node) -> None:
    volume = broken.pod().publish()
    before, fds = hostile.numbers(broken), broken.driver.fds()
    said = len(broken.driver.log)
    _, received = hostile.request(volume, hostile.MOUNT)
    assert received == []
    assert broken_driver.TEXT in broken.driver.log[said:]
    volume.wait_waiting()
    hostile.recovers(broken, before)
    wait_until("the driver has the fds that it had", lambda: broken.driver.fds() == fds)
    assert os.listdir(broken.driver.run_dir / "dev") == []
    hostile.mount_and_end(volume)


@broken_at
def test_a_mistake_in_a_mount_with_synchronous_init(broken: Node) -> None:
    volume = broken.pod().publish()
    before, fds = hostile.numbers(broken), broken.driver.fds()
    said = len(broken.driver.log)
    with hostile.connect(volume) as connection:
        socket.send_fds(connection, [hostile.SYNC_MOUNT], [])
        _, (fd,) = hostile.receive(connection)
        connection.send(hostile.PROCEED)
        answer, _ = hostile.receive(connection)
        assert "error" in answer or not answer
    log = broken.driver.log[said:]
    assert broken_driver.TEXT in log
    if "_log_mounted" not in str(broken.driver.wrapper):
        assert answer["error"] == "mount failed: Input/output error"
        assert "internal error while beginning to follow a new mount" in log
        assert [mount.fstype for mount in volume.mounts] == ["tmpfs"]  # although the program lives
    os.close(fd)
    volume.wait_waiting()
    hostile.recovers(broken, before)
    wait_until("the driver has the fds that it had", lambda: broken.driver.fds() == fds)
    wait_until("its device node is removed", lambda: os.listdir(broken.driver.run_dir / "dev") == [])
    hostile.mount_and_end(volume)
