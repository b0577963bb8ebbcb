"""Test that publish, republish, unmount, stats, unpublish and the driver's end stay bounded in time with hostile FUSE servers."""

import fcntl
import os
import signal
from errno import EIO, ENODEV

import grpc
import pytest
from harness.container import Background, Container
from harness.events import wait_until, within
from harness.hostile import can_mount, is_refused_as_busy, mount, mount_and_end, numbers, recovers
from harness.kubelet import Published
from harness.pod import TEST_PROGRAMS, Node, Pod

from driver.api.rpc import csi_pb2

STATS_WAIT = 10  # seconds, ten times what the driver waits for a FUSE program
UNPUBLISH_WAIT = 10

_FUSE_DEV_IOC_CLONE = 0x8004E500  # _IOR(229, 0, uint32_t), <linux/fuse.h>


class Served:
    """Represents a volume that a hostile server has mounted, in its container."""

    def __init__(self, pod: Pod, how: str) -> None:
        self.volume: Published = pod.publish()
        self.fuse: Container = pod.fuse(self.volume, binds=[TEST_PROGRAMS])
        self.program: Background = self.start(how)

    def start(self, how: str) -> Background:
        program = self.fuse.start(f"python3 /programs/hostile_fuse.py {how} /data")
        program.wait_until_it_says("serves")
        return program


def stats(volume: Published) -> csi_pb2.NodeGetVolumeStatsResponse:
    """Call NodeGetVolumeStats, which must answer in time."""
    with within(STATS_WAIT, "stats"):
        answer = volume.stats()
    for usage in answer.usage:
        assert min(usage.total, usage.available, usage.used) >= 0
    return answer


SERVERS = [
    *("never-getattr", "never-statfs", "never-opendir", "never-anything", "reads-nothing", "garbage", "unlocks"),
    *("root-is-link", "root-is-file", "root-is-device", "root-is-nothing"),
    *("getattr-enotconn", "statfs-enotconn", "getattr-fails", "huge"),
]


@pytest.mark.parametrize("how", SERVERS)
def test_a_hostile_server_blocks_nobody(node: Node, pod: Pod, how: str) -> None:
    other = node.pod().publish()
    before = numbers(node)
    served = Served(pod, how)
    for _ in range(2):
        stats(served.volume)
        with within(STATS_WAIT, "republish, and a request"):
            served.volume.republish()
            is_refused_as_busy(served.volume)
    mount_and_end(other)
    with within(UNPUBLISH_WAIT + STATS_WAIT, "unmount, mount and unpublish"):
        served.fuse.check("fusermount3 -u -z /data")
        served.volume.wait_waiting()
        # A process of the driver's may still wait for an answer, and so the file system is in use. The second unmount ends it.
        served.fuse.run("fusermount3 -u /data")
        recovers(node, before, published=1)
        served.start(how)
        served.volume.unpublish()
    recovers(node, before)


def test_a_server_that_answers_enotconn_is_not_taken_for_dead(pod: Pod) -> None:
    """The program of a network file system may answer so when its server is gone."""
    served = Served(pod, "statfs-enotconn")
    assert "but the FUSE program answers that it is not connected" in stats(served.volume).volume_condition.message


BAD_ROOTS = [how for how in SERVERS if how.startswith("root-is-")]


def ask_for_root(served: Served) -> None:
    """Ask for the root, as any process may. From then on the kernel answers all questions about it with EIO."""
    with pytest.raises(OSError) as error:
        os.stat(served.volume.target)
    assert error.value.errno == EIO


@pytest.mark.parametrize("how", BAD_ROOTS)
def test_a_root_that_is_no_directory_is_unmounted_and_unpublished(node: Node, pod: Pod, how: str) -> None:
    served = Served(pod, how)
    ask_for_root(served)
    served.volume.republish()
    served.fuse.check("fusermount3 -u -z /data")
    served.volume.wait_waiting()
    served.start(how)
    ask_for_root(served)
    node.driver.restart(signal.SIGKILL)
    assert served.volume.condition.startswith("mounted since")
    served.volume.unpublish()


@pytest.mark.parametrize("how", BAD_ROOTS)
def test_a_root_that_is_no_directory_is_detached_when_its_program_dies(pod: Pod, how: str) -> None:
    served = Served(pod, how)
    ask_for_root(served)
    served.program.kill("KILL")
    served.volume.wait_waiting()
    served.start("unlocks")
    assert served.volume.condition.startswith("mounted since")
    served.volume.unpublish()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("how", ["never-anything", "reads-nothing"])
def test_the_driver_can_be_replaced_whatever_a_server_does(node: Node, pod: Pod, how: str, number: signal.Signals) -> None:
    """A thread that waits for an answer to a request that the server has read cannot be killed, nor can its process."""
    served = Served(pod, how)
    assert stats(served.volume).volume_condition.abnormal
    with within(10, "the driver's end"):
        node.driver.stop(number)
    node.driver.start()
    assert served.volume.fuse is not None
    stats(served.volume)
    served.volume.unpublish()


def test_a_process_that_is_left_behind_holds_nothing_of_the_drivers(node: Node, pod: Pod) -> None:
    """With the driver's output it would keep the driver's container: the engine reports it as running while somebody can write."""
    served = Served(pod, "never-anything")
    stats(served.volume)
    starter, left = str(node.driver.starter()), node.driver.children()
    assert left, "no process waits for the program"

    def opened(pid: str) -> dict[str, str]:
        return {fd: os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}

    streams = {str(fd): "/dev/null" for fd in range(3)}
    assert {fd: what for fd, what in opened(starter).items() if not what.startswith(("socket:", "anon_inode:[pidfd]"))} == streams
    node.driver.stop(signal.SIGKILL)
    try:
        for pid in left:
            own = opened(pid)
            (answers,) = [fd for fd, what in own.items() if what.startswith("socket:")]
            # This is what it asks about: a copy of the mount, whose path is only "/".
            assert {fd: what for fd, what in own.items() if fd != answers and what != "/"} == streams
            assert os.readlink(f"/proc/{pid}/cwd") == "/"
    finally:
        node.driver.start()
        served.volume.unpublish()


def test_a_program_that_removes_its_lock_is_not_taken_for_dead(pod: Pod) -> None:
    served = Served(pod, "unlocks")
    for _ in range(3):
        served.volume.republish()
        is_refused_as_busy(served.volume)
    assert not stats(served.volume).volume_condition.abnormal
    assert served.program.is_running


def test_a_program_that_removes_its_lock_and_dies_is_noticed(pod: Pod) -> None:
    served = Served(pod, "unlocks-and-dies")
    served.volume.wait_waiting()
    served.start("never-getattr")
    served.volume.unpublish()


def test_a_cloned_fd_neither_fakes_a_death_nor_hides_one(pod: Pod) -> None:
    """FUSE_DEV_IOC_CLONE: the connection lives as long as the clone, whatever has become of the first fd."""
    volume = pod.publish()
    fd = mount(volume)
    clone = os.open("/dev/fuse", os.O_RDWR)
    fcntl.ioctl(clone, _FUSE_DEV_IOC_CLONE, fd.to_bytes(4, "little"))
    os.close(fd)
    # Nobody answers, so nobody can say whether it is dead: it is not taken for dead.
    for _ in range(2):
        volume.republish()
        is_refused_as_busy(volume)
    assert volume.fuse is not None
    os.close(clone)
    # This closes no fd that the driver watches. The next check finds it: at a republish, a request, or the driver's own.
    wait_until("the next client mounts", lambda: can_mount(volume))
    volume.unpublish()


@pytest.mark.parametrize("how", ["child-keeps", "exits-group"])
def test_a_process_that_keeps_the_fd_keeps_the_mount_until_unpublish(pod: Pod, how: str) -> None:
    served = Served(pod, how)
    volume = served.volume
    volume.republish()
    assert volume.fuse is not None
    assert not stats(volume).volume_condition.abnormal
    volume.unpublish()


def test_an_fd_held_by_another_pod_ends_with_the_volume(pod: Pod) -> None:
    """The test holds the fd, and is in no container of the pod."""
    volume = pod.publish()
    fd = mount(volume)
    volume.unpublish()
    with pytest.raises(OSError) as caught:
        os.read(fd, 1 << 18)
    assert caught.value.errno == ENODEV  # nothing is left to serve
    os.close(fd)


def test_the_condition_of_a_volume_whose_root_is_a_file_says_so(pod: Pod) -> None:
    """A program that serves a disk image as a file mounts so, where the mountpoint is a directory."""
    served = Served(pod, "root-is-file")
    assert "but its root directory cannot be used: Input/output error" in served.volume.condition
    served.volume.unpublish()


def test_a_volume_whose_root_is_a_link_leads_nowhere(node: Node, pod: Pod) -> None:
    served = Served(pod, "root-is-link")
    stats(served.volume)
    request_ = csi_pb2.NodeGetVolumeStatsRequest(volume_id=served.volume.request.volume_id, volume_path="/")
    with pytest.raises(grpc.RpcError):
        node.kubelet.node().NodeGetVolumeStats(request_)
    served.volume.unpublish()
