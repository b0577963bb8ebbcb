"""Test that a container that reads a volume notices nothing when another driver replaces the driver, ours or the Go plugin's."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import mounts
from harness.events import wait_until
from harness.fleet import Application, shows
from harness.kubelet import Published
from harness.pod import TEST_PROGRAMS, Node, Pod
from harness.programs import SOURCES

# This program reads and writes again and again, and ends with the first error.
WORKER = "sh -c 'while cat /data/file && echo $$ >/data/written-{name}; do :; done'"


def test_readers_and_writers_go_on_without_an_error(node: Node, pod: Pod) -> None:
    """The driver is stopped and started, and killed and started, with containers from before and after the mount."""
    volume = pod.publish()
    before, fuse = pod.application(volume), pod.fuse(volume)
    fuse.check("mkdir /source && echo content >/source/file")
    volume.mounted_by(fuse, "bindfs -f /source /data")
    fuse.wait_for("cat /data/file")
    after = pod.application(volume)
    workers = [application.start(WORKER.format(name=name)) for application, name in ((before, "before"), (after, "after"))]

    def work_goes_on() -> None:
        said = [len(worker.out) for worker in workers]
        wait_until("all work on", lambda: all(len(worker.out) > n for worker, n in zip(workers, said, strict=True)))

    for number in (signal.SIGTERM, signal.SIGKILL):
        work_goes_on()
        node.driver.stop(number)
        work_goes_on()
        began = time.monotonic()
        node.driver.start()
        print(f"{number.name}: the next driver answers after {time.monotonic() - began:.2f} s")
        work_goes_on()
        volume.republish()
        work_goes_on()
    for worker in workers:
        assert worker.is_running and worker.err == ""
        worker.kill()
        worker.wait()


class Former:
    """Represents a FUSE file system that another driver mounted at the target before ours, and that has no record."""

    def __init__(self, pod: Pod, on_tmpfs: bool, text: str = "former") -> None:
        pod.folder.empty_dir()
        self.target: Path = pod.folder.target()
        self.target.mkdir()
        if on_tmpfs:
            mounts.mount("-t", "tmpfs", "-o", "mode=0777", "former", self.target)
        fd = mounts.mount_fuse(self.target)
        self._server = subprocess.Popen([sys.executable, SOURCES / "serve_fd.py", str(fd), text], pass_fds=[fd])
        os.close(fd)
        shows(self.target, text)

    def kill(self) -> None:
        self._server.kill()
        self._server.wait()

    def wait(self) -> int:
        return self._server.wait(10)


both = pytest.mark.parametrize("on_tmpfs", [False, True], ids=["bare", "on a tmpfs"])


@pytest.fixture
def former(pod: Pod, on_tmpfs: bool) -> Iterator[Former]:
    former = Former(pod, on_tmpfs)
    yield former
    former.kill()


@both
def test_a_mount_of_another_driver_is_adopted_and_unpublished(pod: Pod, former: Former) -> None:
    application = Application(Published(pod.folder, pod.folder.request()))
    try:
        volume = pod.publish()
        volume.republish()
        shows(application.seen, "former")
    finally:
        application.end()
    volume.unpublish()
    assert former.wait() == 0  # it saw the end of its mount


@both
def test_its_death_is_noticed_at_a_republish_and_the_next_program_is_seen(pod: Pod, former: Former) -> None:
    application = Application(Published(pod.folder, pod.folder.request()))
    try:
        volume = pod.publish()
        former.kill()
        volume.republish()
        wait_until("it is off", lambda: volume.fuse is None)
        shows(application.seen, "")
        fuse = pod.fuse(volume, binds=[TEST_PROGRAMS])
        volume.mounted_by(fuse, "python3 /programs/odd_program.py serves /data second")
        shows(application.seen, "second")
    finally:
        application.end()


@both
def test_it_is_unmounted_by_hand(pod: Pod, former: Former) -> None:
    volume = pod.publish()
    fuse = pod.fuse(volume)
    fuse.check("fusermount3 -u /data")
    assert former.wait() == 0
    assert not fuse.check("ls -A /data")


@both
def test_options_that_an_adopted_mount_lacks_are_reported_until_it_ends(node: Node, pod: Pod, former: Former) -> None:
    """The volume is read-only, and the other driver has ignored that."""
    volume = pod.publish(read_only=True)
    reported = "the FUSE file system that was mounted there before is not ro, nosuid, nodev"
    assert reported in volume.condition
    assert reported in node.driver.log
    node.driver.restart()
    assert reported in volume.condition
    former.kill()
    volume.republish()
    wait_until("it is not reported any more", lambda: reported not in volume.condition)
