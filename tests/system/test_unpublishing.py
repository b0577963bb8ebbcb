"""Test that NodeUnpublishVolume ends in bounded time whatever the pod does, and deletes no file."""

import os
import subprocess
import sys

import grpc
import pytest
from harness import mounts
from harness.container import Background, Container
from harness.events import wait_until, within
from harness.hostile import numbers
from harness.kubelet import Published, refused
from harness.pod import Node, Pod
from harness.programs import SOURCES

from driver.api.rpc import csi_pb2

BOUND = 10  # seconds


def mounted(volume: Published, fuse: Container) -> Background:
    fuse.check("mkdir /source && echo content >/source/file")
    program = volume.mounted_by(fuse, "bindfs -f /source /data")
    assert fuse.check("cat /data/file") == "content\n"  # the program serves
    return program


def unpublish_in_time(volume: Published) -> None:
    with within(BOUND, "unpublish"):
        volume.unpublish()


def test_while_it_is_mounted_and_in_use(pod: Pod) -> None:
    """The program sees the end of its mount, although containers still hold the file system."""
    volume = pod.publish()
    before, fuse = pod.application(volume), pod.fuse(volume)
    program = mounted(volume, fuse)
    after = pod.application(volume)
    users = [application.start("sh -c 'exec 5</data/file; echo open; exec sleep 1000'") for application in (before, after)]
    for user in users:
        wait_until("the file is open", lambda user=user: user.out == "open\n")
    unpublish_in_time(volume)
    assert program.wait() == 0, program.err
    assert not volume.socket.exists()
    assert not volume.socket.with_name(f"{volume.socket.name}.v1").exists()


def test_while_the_program_is_stopped_and_applications_wait_for_it(pod: Pod) -> None:
    volume = pod.publish()
    application, fuse = pod.application(volume), pod.fuse(volume)
    program = mounted(volume, fuse)
    program.kill("STOP")
    reader = application.start("cat /data/file")
    assert reader.pid
    unpublish_in_time(volume)
    # The connection is aborted, so everyone who waited gets an answer.
    assert reader.wait() == 1
    program.kill("CONT")
    program.wait()


def test_after_the_program_died(pod: Pod) -> None:
    volume = pod.publish()
    fuse = pod.fuse(volume)
    mounted(volume, fuse).kill("KILL")
    unpublish_in_time(volume)


def test_unpublish_twice(pod: Pod) -> None:
    volume = pod.publish()
    volume.unpublish()
    volume.unpublish()


def test_an_unknown_volume_is_unpublished(node: Node, pod: Pod) -> None:
    node.kubelet.node().NodeUnpublishVolume(
        csi_pb2.NodeUnpublishVolumeRequest(volume_id="csi-unknown", target_path=str(pod.folder.target("unknown")))
    )


@pytest.mark.parametrize("missing", ["volume_id", "target_path"])
def test_without_what_the_specification_demands(node: Node, pod: Pod, missing: str) -> None:
    fields = {"volume_id": "csi-x", "target_path": str(pod.folder.target())}
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as refusal:
        node.kubelet.node().NodeUnpublishVolume(csi_pb2.NodeUnpublishVolumeRequest(**(fields | {missing: ""})))
    assert missing in refusal.text


def test_files_under_a_target_that_was_never_published_stay(node: Node, pod: Pod) -> None:
    target = pod.folder.target()
    target.mkdir()
    file = target / "file"
    file.write_text("somebody's\n")
    request = csi_pb2.NodeUnpublishVolumeRequest(volume_id="csi-x", target_path=str(target))
    with refused(grpc.StatusCode.FAILED_PRECONDITION) as refusal:
        node.kubelet.node().NodeUnpublishVolume(request)
    assert str(target) in refusal.text
    assert file.read_text() == "somebody's\n"
    file.unlink()
    node.kubelet.node().NodeUnpublishVolume(request)
    assert not target.exists()


def test_files_under_a_published_target_stay(pod: Pod) -> None:
    target = pod.folder.target()
    target.mkdir()
    file = target / "file"
    file.write_text("somebody's\n")
    volume = pod.publish()
    assert not file.exists()  # the placeholder covers it
    program = mounted(volume, pod.fuse(volume))
    with refused(grpc.StatusCode.FAILED_PRECONDITION):
        volume.unpublish()
    program.wait()
    assert "it was unmounted to be unpublished" in volume.condition
    assert file.read_text() == "somebody's\n"
    file.unlink()
    volume.unpublish()


def test_a_file_in_place_of_the_target_stays(node: Node, pod: Pod) -> None:
    target = pod.folder.target()
    target.write_text("somebody's\n")
    request = csi_pb2.NodeUnpublishVolumeRequest(volume_id="csi-x", target_path=str(target))
    with refused(grpc.StatusCode.INTERNAL) as refusal:
        node.kubelet.node().NodeUnpublishVolume(request)
    assert target.read_text() == "somebody's\n"
    assert refusal.text == f"cannot remove {target}: Not a directory"
    target.unlink()


def test_what_the_pod_put_beside_the_sockets_stays(pod: Pod) -> None:
    volume = pod.publish()
    own = volume.socket.parent / "own"
    own.write_text("the pod's\n")
    volume.unpublish()
    assert own.read_text() == "the pod's\n"


FOREIGN = "a tmpfs file system that the driver did not mount is there"


def restart_without_records(node: Node) -> None:
    """Start the driver again so that it knows no volume."""
    node.driver.stop()
    for record in (node.driver.run_dir / "state").glob("*.json"):
        record.unlink()
    node.driver.start()


def is_refused_until_unmounted(volume: Published) -> None:
    """Check that unpublish leaves what is mounted at the target, says what to do, and succeeds when that is done."""
    (before,) = volume.mounts
    for _ in range(2):
        with refused(grpc.StatusCode.FAILED_PRECONDITION) as refusal:
            volume.unpublish()
        assert (
            refusal.text == f"{volume.target}: a {before.fstype} file system that the driver did not mount is there: unmount it on the node"
        )
        assert volume.mounts == [before]
    mounts.unmount(volume.target)
    volume.unpublish()
    assert not volume.target.exists()


def test_what_publish_refused_to_work_on_stays(pod: Pod) -> None:
    pod.folder.empty_dir()
    request = pod.folder.request()
    volume = Published(pod.folder, request)
    volume.target.mkdir()
    mounts.mount("-t", "tmpfs", "something", volume.target)
    with refused(grpc.StatusCode.FAILED_PRECONDITION) as refusal:
        pod.folder.publish(request)
    assert refusal.text == f"{volume.target}: {FOREIGN}"
    is_refused_until_unmounted(volume)


@pytest.mark.parametrize("how", ["republished", "at once", "restarted", "unknown"])
def test_what_somebody_mounted_in_place_of_the_placeholder_stays(node: Node, pod: Pod, how: str) -> None:
    """The kernel mostly gives it the placeholder's device number."""
    volume = pod.publish()
    mounts.unmount(volume.target)
    mounts.mount("-t", "tmpfs", "something", volume.target)
    if how == "republished":
        volume.republish()
        assert FOREIGN in volume.condition
    elif how == "restarted":
        node.driver.restart()
    elif how == "unknown":
        restart_without_records(node)
    is_refused_until_unmounted(volume)


def test_what_somebody_mounted_in_place_of_a_fuse_mount_stays(node: Node, pod: Pod) -> None:
    """The kernel mostly gives it the device number of the FUSE file system or of the placeholder; both are free."""
    volume = pod.publish()
    program = mounted(volume, pod.fuse(volume))
    with node.driver.paused():  # it would mount the placeholder again in between
        for _ in range(2):
            mounts.unmount_lazily(volume.target)
        for _ in range(2):
            mounts.mount("-t", "tmpfs", "something", volume.target)
    before = volume.mounts
    with refused(grpc.StatusCode.FAILED_PRECONDITION) as refusal:
        volume.unpublish()
    assert FOREIGN in refusal.text
    assert volume.mounts == before
    for _ in range(2):
        mounts.unmount(volume.target)
    volume.unpublish()
    program.wait()


@pytest.mark.parametrize("is_known", [True, False])
def test_what_somebody_mounted_over_the_placeholder_goes(node: Node, pod: Pod, is_known: bool) -> None:
    volume = pod.publish()
    for _ in range(2):
        mounts.mount("-t", "tmpfs", "something", volume.target)
    if not is_known:
        restart_without_records(node)
    volume.unpublish()
    assert not volume.target.exists()


def test_a_fuse_mount_beneath_something_else_goes_when_nobody_knows_it(node: Node, pod: Pod) -> None:
    """It is detached from all containers, and its program ends."""
    volume = pod.publish()
    program = mounted(volume, pod.fuse(volume))
    application = pod.application(volume)
    mounts.mount("-t", "tmpfs", "something", volume.target)
    restart_without_records(node)
    volume.unpublish()
    program.wait()
    assert application.check("ls -A /data") == ""


@pytest.mark.parametrize("layers", [0, 1])
def test_a_fuse_mount_on_the_bare_directory_goes(pod: Pod, layers: int) -> None:
    """The Go plugin's driver mounts so, and publish would adopt such a mount."""
    target = pod.folder.target()
    target.mkdir()
    fd = mounts.mount_fuse(target)
    for _ in range(layers):
        mounts.mount("-t", "tmpfs", "something", target)
    Published(pod.folder, pod.folder.request()).unpublish()
    assert not target.exists()
    os.close(fd)


def test_retries_of_a_hung_unpublish_share_one_thread(node: Node, pod: Pod) -> None:
    """The driver does not know the volume, and kubelet's folder is on a file system whose server never answers an rmdir."""
    volume = pod.publish()
    mounts.unmount(volume.target)
    volume.target.rmdir()
    restart_without_records(node)
    folder = volume.target.parent
    fd = mounts.mount_fuse(folder)
    server = subprocess.Popen([sys.executable, SOURCES / "never_removes.py", str(fd)], pass_fds=[fd])
    os.close(fd)
    before = numbers(node).threads
    try:
        for _ in range(3):
            with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
                volume.unpublish()
            assert numbers(node).threads == before + 1
        with refused(grpc.StatusCode.ABORTED):  # what the hung thread removes must not be a new volume's target
            volume.republish()
    finally:
        server.kill()
        server.wait()
        mounts.unmount_lazily(folder)
    wait_until("the thread has ended", lambda: node.driver.threads() == before)
    volume.republish()
    volume.unpublish()
    assert numbers(node).threads == before
