"""Test two drivers with one run folder in two mount namespaces: for example a package on the host, and a DaemonSet with /run/mfcp."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import hostile
from harness.driver import Driver
from harness.events import wait_until, within
from harness.kubelet import Kubelet, Published
from harness.pod import Node

OWN_NAMESPACE = ("unshare", "--mount", "--propagation", "unchanged")
AT_ONCE = 10.0  # seconds; a former driver that is stopping would be waited for 15 s


@pytest.fixture(params=[(OWN_NAMESPACE, ()), ((), OWN_NAMESPACE), ((), ())], ids=["first apart", "second apart", "together"])
def second(module_node: Node, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Driver]:
    """Make a driver that does not run yet, with the node's run folder and another endpoint. The node's driver runs."""
    first = module_node.driver
    first.stop()
    place = module_node.folder / "second"
    place.mkdir()
    second = Driver(place)
    second.pods_dir, second.run_dir = first.pods_dir, first.run_dir
    first.wrapper, second.wrapper = request.param
    first.start()
    try:
        yield second
    finally:
        second.end()
        first.wrapper = ()
        first.end()
        first.start()
        module_node.delete_pods()
        shutil.rmtree(place)


def folders(driver: Driver) -> set[Path]:
    return set(driver.run_dir.glob("private-*"))


def ends_well(volume: Published, fd: int) -> None:
    """Check that the volume's driver detaches the mount, for which it needs its private folder."""
    os.close(fd)
    volume.wait_waiting()


@pytest.mark.parametrize("state_dir", [False, True])
def test_the_second_does_not_start_while_the_first_serves(module_node: Node, second: Driver, tmp_path: Path, state_dir: bool) -> None:
    first = module_node.driver
    if state_dir:
        second.options = ("--state-dir", str(tmp_path / "state"))
    volume = module_node.pod().publish()
    fd = hostile.mount(volume)
    before = folders(first)
    with within(AT_ONCE, "the refusal"):
        second.begin()
        assert second.wait() == 1
    (reported,) = second.log.splitlines()
    assert reported == (
        f"Error: another driver (pid {first.pid}) serves from {first.run_dir} (--run-dir): "
        "stop it first, or give each driver a --run-dir and an --endpoint of its own"
    )
    assert folders(first) == before
    ends_well(volume, fd)
    hostile.mount_and_end(volume)


def test_a_driver_that_does_not_answer_is_replaced_and_keeps_what_it_uses(module_node: Node, second: Driver) -> None:
    first = module_node.driver
    volume = module_node.pod().publish()
    fd = hostile.mount(volume)
    before = folders(first)
    with first.paused():
        second.start()
        wait_until("all of it serves", lambda: "serves CSI on" in second.log)
        assert f"a process (pid {first.pid}) has {first.run_dir}/admin.sock and does not answer" in second.log
        assert before < folders(first)
    ends_well(volume, fd)
    assert second.stop() == 0, second.log
    assert folders(first) == before
    hostile.mount_and_end(volume)


def test_a_killed_driver_is_replaced(module_node: Node, second: Driver) -> None:
    """The second driver goes on with the volumes of the first."""
    first = module_node.driver
    volume = module_node.pod().publish()
    fd = hostile.mount(volume)
    first.stop(signal.SIGKILL)
    second.start()
    assert len(folders(second)) == 1
    assert str(volume.target) in second.cli("status", "--output", "wide").stdout
    volume.pod.kubelet = Kubelet(second.csi_socket, second.pods_dir)
    ends_well(volume, fd)
    volume.unpublish()


def test_a_third_driver_leaves_alone_what_a_driver_without_the_lock_uses(module_node: Node, second: Driver) -> None:
    """The second one took the place of a driver that did not answer. Now it does not answer itself, and lives on."""
    first = module_node.driver
    firsts = folders(first)
    first.signal(signal.SIGSTOP)
    second.start()
    wait_until("all of it serves", lambda: "serves CSI on" in second.log)
    seconds = folders(first) - firsts
    folder = Kubelet(second.csi_socket, second.pods_dir).pod()
    folder.empty_dir()
    volume = folder.publish()
    fd = hostile.mount(volume)
    first.stop(signal.SIGKILL)
    with second.paused():
        first.start()
        assert seconds < folders(first) and not firsts & folders(first)
    ends_well(volume, fd)
    folder.delete()
