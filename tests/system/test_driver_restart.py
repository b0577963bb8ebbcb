"""Test that volumes and their mounts go on when the driver is stopped and started. test_recovery.py has programs that die meanwhile."""

import fcntl
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from harness import mounts
from harness.container import Background, Container
from harness.driver import Driver
from harness.events import wait_until, within
from harness.hostile import mount, mount_and_end
from harness.kubelet import Published, refused
from harness.pod import Node, Pod

LATE = 10.0  # seconds until a death is found by a periodic check (limits.CHECK_INTERVAL)

how = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])


class Served:
    """Represents a volume with a bindfs on it, and an application from before and one from after the mount."""

    def __init__(self, pod: Pod) -> None:
        self.volume: Published = pod.publish()
        self.before: Container = pod.application(self.volume)
        self.fuse: Container = pod.fuse(self.volume)
        self.fuse.check("mkdir /source && echo content >/source/file")
        self.program = self.mount()
        self.after: Container = pod.application(self.volume)
        self.works()

    def mount(self) -> Background:
        return self.volume.mounted_by(self.fuse, "bindfs -f /source /data")

    def works(self) -> None:
        for application in (self.before, self.after):
            assert application.check("cat /data/file") == "content\n"

    def is_gone(self) -> None:
        for application in (self.before, self.after):
            assert application.check("ls -A /data") == ""


def restart(node: Node, served: Served, number: signal.Signals) -> None:
    code = node.driver.stop(number)
    assert code == (0 if number == signal.SIGTERM else -number)
    try:
        served.works()
    finally:
        node.driver.start()
    served.works()


@how
def test_mounts_go_on_and_are_unmounted_by_the_next_driver(node: Node, pod: Pod, number: signal.Signals) -> None:
    served = Served(pod)
    device = served.volume.fuse.device
    restart(node, served, number)
    served.volume.republish()
    assert served.volume.fuse.device == device
    served.works()
    served.fuse.check("fusermount3 -u /data")
    assert served.program.wait() == 0
    served.is_gone()
    served.mount()
    served.works()


@how
def test_a_volume_that_nobody_has_mounted_yet_is_served_by_the_next_driver(node: Node, pod: Pod, number: signal.Signals) -> None:
    """It is served before kubelet publishes again, and the program need not wait for that."""
    volume = pod.publish(read_only=True)
    application, fuse = pod.application(volume), pod.fuse(volume)
    fuse.wait_until_running()
    node.driver.restart(number)
    mount = volume.wait_mounted(fuse.start("bindfs -f /srv /data"))
    assert "ro" in mount.super_options
    assert "Read-only file system" in application.run("touch /data/new").err


def test_the_next_driver_knows_what_was_published(node: Node, pod: Pod) -> None:
    volume = pod.publish()
    node.driver.restart()
    with refused(grpc.StatusCode.ALREADY_EXISTS):
        pod.publish(read_only=True)
    volume.republish()


def test_volumes_without_kubernetes_go_on(node: Node) -> None:
    assert node.driver.cli("volume", "add", "lasting", "--read-only").returncode == 0
    before = node.driver.cli("volume", "list").stdout
    node.driver.restart()
    assert "lasting" in before
    assert node.driver.cli("volume", "list").stdout == before
    assert node.driver.cli("volume", "remove", "lasting").returncode == 0


@pytest.mark.parametrize("republish", [True, False])
def test_the_next_driver_unpublishes(node: Node, pod: Pod, republish: bool) -> None:
    """It does so even where kubelet did not publish again, because the pod was deleted meanwhile."""
    served = Served(pod)
    restart(node, served, signal.SIGTERM)
    if republish:
        served.volume.republish()
    served.volume.unpublish()
    served.program.wait()
    served.is_gone()


def test_the_next_driver_waits_for_the_end_of_one_that_is_reported_to_stop(node: Node, pod: Pod) -> None:
    """This happens where a driver's pod is deleted by force while kubelet waits for an answer."""
    volume = pod.publish()
    fd = mount(volume)  # nobody serves it, so kubelet's question takes a second
    following = Driver(node.folder)
    asking = threading.Thread(target=lambda: volume.condition)
    asking.start()
    try:
        wait_until("a process of the driver asks", node.driver.children)
        node.driver.signal(signal.SIGTERM)
        wait_until("it takes no more calls", lambda: not node.driver.csi_socket.exists())
        following.start()
        assert node.driver.wait() == 0
        status = following.cli("status", "--output", "wide").stdout
        assert str(volume.target) in status
        assert "mounted" in status
        os.close(fd)
        volume.wait_waiting()
    finally:
        asking.join()
        following.end()
        if not node.driver.is_started:
            node.driver.start()


def test_a_driver_that_is_reported_to_stop_while_it_waits_begins_nothing(node: Node) -> None:
    """Only one of the two drivers may finish what the first one is finishing just now."""
    driver = node.driver
    driver.stop()
    said = len(driver.log)
    records = os.open(driver.run_dir / "state", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(records, fcntl.LOCK_EX)
        driver.begin()
        wait_until("it waits", lambda: "waiting for its end" in driver.log[said:])
        assert driver.stop() == 0
        assert driver.log[said:].count("\n") == 1
    finally:
        os.close(records)
        driver.end()
        driver.start()


def test_a_driver_whose_starter_is_killed_ends_with_an_error(node: Node, pod: Pod) -> None:
    """Such a driver would notice no death any more. It is started again because of its exit code, as by systemd's on-failure."""
    volume = pod.publish()
    starter = node.driver.starter()
    os.kill(starter, signal.SIGKILL)
    assert node.driver.wait() == 1
    assert node.driver.log.splitlines()[-1].startswith("Error: the process that starts the driver's other processes has ended: ")
    node.driver.start()
    fuse = pod.fuse(volume)
    program = volume.mounted_by(fuse)
    program.kill("KILL")
    volume.wait_waiting()


def test_the_end_of_a_mount_that_was_never_recorded_is_noticed_at_once(node: Node, pod: Pod) -> None:
    """The driver was killed after it had made the mount, and before it had written the record."""
    volume = pod.publish()
    records = {path: path.read_bytes() for path in (node.driver.run_dir / "state").glob("*.json")}
    application, fuse = pod.application(volume), pod.fuse(volume)
    program = volume.served_by(fuse)
    node.driver.stop(signal.SIGKILL)
    for path, content in records.items():
        path.write_bytes(content)
    node.driver.start()
    assert volume.fuse is not None
    (reported,) = json.loads(node.driver.cli("status", "--output", "json").stdout)["volumes"]
    assert (reported["state"], reported["mounts"]) == ("mounted", 1)
    with within(LATE / 2, "the death"):
        program.kill("KILL")
        volume.wait_waiting(LATE)
    assert application.check("ls -A /data") == ""


def test_what_somebody_has_left_in_the_drivers_folder_is_reported_and_stays(node: Node) -> None:
    driver = node.driver
    driver.stop()
    said = len(driver.log)
    folders = [driver.run_dir / "private-full", driver.run_dir / "dev" / "folder"]
    files = [driver.run_dir / "private-file", driver.run_dir / "dev" / "file"]
    fifo = driver.run_dir / "dev" / "fifo"
    for folder in folders:
        (folder / "own").mkdir(parents=True)
    for file in files:
        file.touch()
    os.mkfifo(fifo)
    try:
        driver.start()
        for path in (*folders, *files, fifo):
            (line,) = [line for line in driver.log[said:].splitlines() if f"{path} " in line]
            assert "left as it is" in line
            assert path.exists()
    finally:
        for folder in folders:
            shutil.rmtree(folder)
        for file in (*files, fifo):
            file.unlink()
        driver.end()
        driver.start()


def test_what_was_being_taken_off_without_the_private_tmpfs_is_cleared_away(node: Node) -> None:
    """Somebody had unmounted the private tmpfs, and then the driver was killed."""
    driver = node.driver
    driver.stop()
    left = driver.run_dir / "private-0123456789abcdef"
    (left / "place").mkdir(parents=True)
    for name in ("place", "other"):
        (left / f"{name}.target").symlink_to(node.driver.pods_dir)
    try:
        driver.start()
        assert not left.exists()
    finally:
        shutil.rmtree(left, ignore_errors=True)
        driver.end()
        driver.start()


def test_it_ends_well_without_its_private_folder(node: Node) -> None:
    (private,) = node.driver.run_dir.glob("private-*")
    mounts.unmount_lazily(private)
    private.rmdir()
    assert node.driver.stop() == 0
    node.driver.start()


@pytest.fixture
def own_run_dir(node: Node) -> Iterator[Path]:
    """Give the driver a run folder that is a file system of its own."""
    driver = node.driver
    driver.stop()
    mounts.mount("-t", "tmpfs", "mfcp-test-run", driver.run_dir)
    try:
        driver.start()
        yield driver.run_dir
    finally:
        driver.end()
        mounts.unmount_lazily(driver.run_dir)
        driver.start()


def test_it_ends_well_where_its_folder_has_become_read_only(node: Node, own_run_dir: Path) -> None:
    mounts.mount("-o", "remount,ro", own_run_dir)
    assert node.driver.stop() == 0


def test_a_program_that_ends_where_its_folder_has_become_read_only(node: Node, own_run_dir: Path) -> None:
    """The device node stays, and that keeps no mount."""
    devices = own_run_dir / "dev"
    volume = node.pod().publish()
    fd = mount(volume)
    (name,) = os.listdir(devices)
    mounts.mount("-o", "remount,ro", own_run_dir)
    os.close(fd)
    volume.wait_waiting()
    assert f"the device node {devices / name} stays until the next start: Read-only file system" in node.driver.log
    mounts.mount("-o", "remount,rw", own_run_dir)
    node.driver.restart()
    assert os.listdir(devices) == []
    mount_and_end(volume)
    volume.unpublish()


def test_one_that_nothing_runs_in_ends_when_it_is_reported_to(node: Node, tmp_path: Path) -> None:
    """The test is here because nobody reads its log. gRPC stops its event loop as well where it got no threads at the start."""
    driver = node.driver
    log = tmp_path / "log"
    os.mkfifo(log)
    fd = os.open(log, os.O_RDWR | os.O_NONBLOCK)
    driver.stop()
    driver.wrapper = ("sh", "-c", f'exec "$@" 2>{log}', "sh")
    try:
        driver.start()
        with pytest.raises(BlockingIOError):
            while True:
                os.write(fd, b"\n")
        assert driver.stop() == -signal.SIGALRM
    finally:
        os.close(fd)
        driver.wrapper = ()
        driver.end()
        driver.start()
