"""NodeUnpublishVolume: whatever the pod does, it ends in bounded time, and deletes no file."""

import time

import grpc
import pytest
from harness.container import Background, Container
from harness.events import wait_until
from harness.kubelet import Published, refused
from harness.pod import Node, Pod

from driver.rpc import csi_pb2

BOUND = 10  # seconds


def mounted(volume: Published, fuse: Container) -> Background:
    fuse.check("mkdir /source && echo content >/source/file")
    program = fuse.start("bindfs -f /source /data")
    volume.wait_mounted(program)
    assert fuse.check("cat /data/file") == "content\n"  # it serves
    return program


def unpublish_in_time(volume: Published) -> None:
    start = time.monotonic()
    volume.unpublish()
    assert time.monotonic() - start < BOUND


def test_while_it_is_mounted_and_in_use(pod: Pod) -> None:
    """The program is told, though containers still hold its file system."""
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
    # The connection is aborted: who waited gets an answer.
    assert reader.wait() == 1
    program.kill("CONT")
    program.wait()


def test_after_the_program_died(pod: Pod) -> None:
    volume = pod.publish()
    fuse = pod.fuse(volume)
    mounted(volume, fuse).kill("KILL")
    unpublish_in_time(volume)


def test_twice(pod: Pod) -> None:
    volume = pod.publish()
    volume.unpublish()
    volume.unpublish()


def test_of_something_unknown(node: Node, pod: Pod) -> None:
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
    assert not file.exists()  # the placeholder is over it
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
