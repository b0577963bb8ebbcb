"""Test that a pod which locks a directory in which the driver works delays nobody but itself.

The kernel locks a directory while a process reads it, and the process can make the read last for ever (hold_directory.py).
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from harness import mounts
from harness.container import Bind
from harness.events import wait_until, within
from harness.hostile import Numbers, is_refused_as_busy, mount_and_end, numbers, recovers
from harness.kubelet import SOCKET, Published, refused
from harness.pod import TEST_PROGRAMS, Node, Pod

from driver.api.rpc import csi_pb2
from driver.model import limits

LOCKED = "locked"  # the name of the emptyDir, and of the volume with its sockets there
RETRIES = 2
USUAL = 2.0  # seconds that some calls for another volume take at most; they would wait for more than twice as long
MOMENT = 1.0  # seconds that a call takes at most beyond its limit

# Others must not be delayed meanwhile, which the load of other tests would hide.
pytestmark = pytest.mark.alone


class Holder:
    """Represents a container of the pod that can lock directories which it sees."""

    def __init__(self, pod: Pod, binds: Sequence[Bind]) -> None:
        self._volume = pod.publish()  # its FUSE program serves the memory that the directories are read into
        self._container = pod.fuse(self._volume, binds=[TEST_PROGRAMS, *binds])

    @contextmanager
    def holds(self, directory: str) -> Iterator[None]:
        server = self._container.start("python3 /programs/hostile_fuse.py never-read /data")
        server.wait_until_it_says("serves")
        process = self._container.start(f"python3 /programs/hold_directory.py {directory} /data/hello")
        server.wait_until_it_says("asked 15")
        try:
            yield
            assert process.is_running
        finally:
            server.kill("KILL")
            assert process.wait() == 0

    def warm_up(self) -> "Holder":
        """Make the driver start everything that it starts at the first use."""
        with self.holds("/tmp"):
            pass
        self._volume.wait_waiting()
        return self


@pytest.fixture
def directory(pod: Pod) -> Path:
    """Make the emptyDir that is going to be locked."""
    return pod.folder.empty_dir(LOCKED)


@pytest.fixture
def holder(pod: Pod, directory: Path) -> Holder:
    return Holder(pod, [Bind(directory, f"/{LOCKED}")]).warm_up()


def asked(pod: Pod) -> csi_pb2.NodePublishVolumeRequest:
    """Return kubelet's request for the volume whose sockets are in that emptyDir."""
    return pod.folder.request(volume=LOCKED, empty_dir=LOCKED)


@pytest.fixture
def volume(pod: Pod, directory: Path) -> Published:
    """Publish the volume."""
    return pod.folder.publish(asked(pod))


def others_work(node: Node) -> None:
    """Check that another pod's volume is published, mounted, republished and unpublished as usual."""
    for _ in range(3):
        with within(USUAL, "another pod's volume"):
            pod = node.pod()
            other = pod.publish()
            mount_and_end(other)
            other.republish()
            other.unpublish()


def while_others_work(node: Node, call: Callable[[], object], limit: float) -> None:
    """Make a call that may take `limit` seconds, and check meanwhile that another pod's volumes are not delayed."""
    with ThreadPoolExecutor(1) as pool, within(limit + MOMENT, "the call"):
        running = pool.submit(call)
        others_work(node)
        running.result()


def is_refused(call: Callable[[], object], directory: Path) -> Callable[[], None]:
    """Return a call that checks that `call` is refused with one line that says why, and what to do."""

    def checked() -> None:
        with refused(grpc.StatusCode.DEADLINE_EXCEEDED) as refusal:
            call()
        assert refusal.text == (
            f"{directory}: a process in a container keeps this directory locked for more than {limits.DIRECTORY_WAIT:g} s: "
            "end the FUSE program that the process waits for, or delete the pod"
        )

    return checked


def threads_are(node: Node, before: Numbers, more: int) -> None:
    wait_until(f"the driver has {more} more threads", lambda: node.driver.threads() == before.threads + more)


def retries_share_a_thread(node: Node, before: Numbers, call: Callable[[], object], limit: float) -> None:
    """Make a call again and again while a directory is locked. One thread of the driver waits for the lock, for all of them."""
    for _ in range(RETRIES):
        while_others_work(node, call, limit)
        threads_are(node, before, 1)


def works_again(node: Node, before: Numbers, volume: Published) -> None:
    """Check that the thread ends when the directory is free, and that a republish makes everything usual."""
    threads_are(node, before, 0)
    volume.republish()
    mount_and_end(volume)
    recovers(node, before)


def is_left_alone(node: Node, directory: Path, before: Numbers) -> None:
    """Check that the driver has what it had, and that no socket is left that nobody serves."""
    recovers(node, before)
    wait_until("no socket is left", lambda: set(os.listdir(directory)) <= {"dev-fuse"})


def test_a_directory_that_is_locked_before_publish(node: Node, pod: Pod, holder: Holder, directory: Path) -> None:
    """The pod runs already: a former driver had published the volume, and this one does not know it."""
    pod.folder.target(LOCKED).mkdir(parents=True)
    before = numbers(node)
    with holder.holds(f"/{LOCKED}"):
        retries_share_a_thread(node, before, is_refused(lambda: pod.folder.publish(asked(pod)), directory), limits.DIRECTORY_WAIT)
        with within(MOMENT, "unpublish"):
            Published(pod.folder, asked(pod)).unpublish()
    is_left_alone(node, directory, before)
    volume = pod.folder.publish(asked(pod))
    mount_and_end(volume)
    volume.unpublish()
    is_left_alone(node, directory, before)


def test_a_directory_that_is_locked_when_its_sockets_are_made_again(node: Node, holder: Holder, directory: Path, volume: Published) -> None:
    before = numbers(node)
    for name in (SOCKET, f"{SOCKET}.v1"):
        (directory / name).unlink()

    def is_reported() -> None:
        volume.republish()
        assert f"{directory}: a process in a container keeps this directory locked" in volume.condition

    with holder.holds(f"/{LOCKED}"):
        retries_share_a_thread(node, before, is_reported, limits.DIRECTORY_WAIT)
    works_again(node, before, volume)
    assert "locked" not in volume.condition
    volume.unpublish()


def test_a_directory_that_is_locked_at_unpublish(node: Node, pod: Pod, holder: Holder, directory: Path) -> None:
    before = numbers(node)
    volume = pod.folder.publish(asked(pod))
    with holder.holds(f"/{LOCKED}"):
        while_others_work(node, volume.unpublish, limits.PROBE_WAIT)
        threads_are(node, before, 1)
        assert "or a process in a container keeps their directory locked" in node.driver.log
        # kubelet may publish and unpublish the volume meanwhile.
        for _ in range(RETRIES):
            while_others_work(node, is_refused(lambda: pod.folder.publish(asked(pod)), directory), limits.DIRECTORY_WAIT)
            volume.unpublish()
            threads_are(node, before, 1)
    is_left_alone(node, directory, before)


def test_a_directory_that_is_locked_when_the_driver_starts(node: Node, holder: Holder, volume: Published) -> None:
    other = node.pod().publish()
    before = numbers(node)
    with holder.holds(f"/{LOCKED}"):
        node.driver.stop(signal.SIGKILL)
        with within(limits.RESTORE_WAIT + 2 * MOMENT, "the driver's start, and another pod's mount"):
            node.driver.start()
            mount_and_end(other)
        assert "not listening" in volume.condition and "locked" in volume.condition
        retries_share_a_thread(node, before, volume.republish, limits.DIRECTORY_WAIT)
    works_again(node, before, volume)


def test_a_mount_while_the_directory_is_locked(node: Node, pod: Pod, holder: Holder, volume: Published) -> None:
    """Although a thread of the driver waits for the lock, for another volume. fusermount3 changes nothing in the directory."""
    before = numbers(node)
    fuse = pod.fuse(volume)
    fuse.check("mkdir /source")
    pod.folder.target("second").mkdir(parents=True)
    with holder.holds(f"/{LOCKED}"):
        with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
            pod.folder.publish(pod.folder.request(volume="second", empty_dir=LOCKED, socket="second.sock"))
        threads_are(node, before, 1)
        with within(10 * MOMENT, "the mount and unmount"):
            program = volume.mounted_by(fuse, "bindfs -f /source /data")
            while_others_work(node, lambda: fuse.check("fusermount3 -u /data"), MOMENT)
            assert program.wait() == 0
            volume.wait_waiting()
    recovers(node, before)


def test_a_placeholder_that_is_locked(node: Node, pod: Pod, volume: Published) -> None:
    """mount(2) waits for the lock of the directory that it mounts on."""
    holder = Holder(pod, [Bind(volume.target, "/placeholder", "rslave")]).warm_up()
    before = numbers(node)
    with holder.holds("/placeholder"):
        retries_share_a_thread(node, before, lambda: is_refused_as_busy(volume), limits.MOUNT_WAIT)
    threads_are(node, before, 0)
    mount_and_end(volume)
    recovers(node, before)


# ---- the target's directory itself, which a container sees that has started while nothing was mounted there


@pytest.fixture
def bare(pod: Pod, volume: Published) -> Holder:
    """Unmount the volume's placeholder, and start a container that sees the directory beneath."""
    mounts.unmount_lazily(volume.target)
    return Holder(pod, [Bind(volume.target, "/bare")]).warm_up()


def test_a_target_that_is_locked_before_publish(node: Node, bare: Holder, volume: Published) -> None:
    node.driver.stop()
    for record in (node.driver.run_dir / "state").glob("*.json"):
        if LOCKED in record.read_text():
            record.unlink()
    node.driver.start()
    before = numbers(node)
    with bare.holds("/bare"):
        retries_share_a_thread(node, before, is_refused(volume.republish, volume.target), limits.MOUNT_WAIT)
    threads_are(node, before, 0)
    volume.republish()
    assert len(volume.mounts) == 1
    mount_and_end(volume)
    volume.unpublish()
    recovers(node, before)


def test_a_target_that_is_locked_at_unpublish(node: Node, bare: Holder, volume: Published) -> None:
    volume.republish()
    volume.wait_waiting()
    before = numbers(node)

    def is_late() -> None:
        with refused(grpc.StatusCode.DEADLINE_EXCEEDED) as refusal:
            volume.unpublish()
        assert str(volume.target) in refusal.text

    with bare.holds("/bare"):
        retries_share_a_thread(node, before, is_late, limits.DETACH_WAIT)
    volume.unpublish()
    recovers(node, before, published=-1)


def test_a_target_that_is_locked_when_the_driver_starts(node: Node, bare: Holder, volume: Published) -> None:
    before = numbers(node)
    with bare.holds("/bare"):
        node.driver.stop(signal.SIGKILL)
        with within(2 * MOMENT, "the driver's start"):
            node.driver.start()
        while_others_work(node, volume.republish, limits.MOUNT_WAIT)
        threads_are(node, before, 1)
    works_again(node, before, volume)


def test_a_locked_directory_delays_the_drivers_end_until_it_is_free(node: Node, pod: Pod, holder: Holder) -> None:
    """The kernel lets no process end that waits for the lock. kubelet kills a pod's programs first."""
    pod.folder.target(LOCKED).mkdir(parents=True)
    with holder.holds(f"/{LOCKED}"):
        with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
            pod.folder.publish(asked(pod))
        node.driver.signal(signal.SIGTERM)
        time.sleep(MOMENT)
        assert node.driver.is_alive
    assert node.driver.wait() == 0
    node.driver.start()
    pod.folder.publish(asked(pod)).unpublish()
