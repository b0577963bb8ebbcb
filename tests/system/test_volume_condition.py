"""Test that NodeGetVolumeStats, and `status` on the node, report a volume's condition in a sentence, whatever its program does."""

import json
import os
import re
import time

import grpc
import pytest
from harness import mounts
from harness.events import wait_until
from harness.kubelet import Published, refused
from harness.pod import Node, Pod

from driver.api.rpc import csi_pb2

PROBE_WAIT = 1  # seconds that the driver waits for a FUSE program
BYTES, INODES = csi_pb2.VolumeUsage.BYTES, csi_pb2.VolumeUsage.INODES


class Stats:
    """Holds an answer of NodeGetVolumeStats."""

    def __init__(self, volume: Published) -> None:
        began = time.monotonic()
        answer = volume.stats()
        self.seconds = time.monotonic() - began
        self.is_abnormal = answer.volume_condition.abnormal
        self.text = answer.volume_condition.message
        self.usage = {usage.unit: usage for usage in answer.usage}
        assert set(self.usage) == {BYTES, INODES}


def threads(node: Node) -> int:
    return len(os.listdir(f"/proc/{node.driver.pid}/task"))


def test_the_capabilities_are_reported(node: Node) -> None:
    answer = node.kubelet.node().NodeGetCapabilities(csi_pb2.NodeGetCapabilitiesRequest())
    kinds = csi_pb2.NodeServiceCapability.RPC
    assert {kinds.GET_VOLUME_STATS, kinds.VOLUME_CONDITION} <= {capability.rpc.type for capability in answer.capabilities}


def test_a_volume_through_its_life(pod: Pod) -> None:
    volume = pod.publish()
    stats = Stats(volume)
    assert stats.is_abnormal
    assert "no FUSE program has mounted it yet" in stats.text
    assert stats.usage[BYTES].total == 4096  # of the placeholder

    fuse = pod.fuse(volume)
    program = volume.served_by(fuse)
    stats = Stats(volume)
    assert (stats.is_abnormal, stats.text[:13]) == (False, "mounted since")
    expected = os.statvfs(volume.target)
    assert stats.usage[BYTES].total == expected.f_blocks * expected.f_frsize > 4096
    assert 0 < stats.usage[BYTES].available <= stats.usage[BYTES].total
    assert stats.usage[INODES].total == expected.f_files

    program.kill("KILL")
    volume.wait_waiting()
    stats = wait_until("it is reported", lambda: found if "waiting" in (found := Stats(volume)).text else None)
    assert stats.is_abnormal
    assert "its FUSE program has ended without unmounting" in stats.text

    program = volume.served_by(fuse)
    assert not Stats(volume).is_abnormal
    fuse.check("fusermount3 -u /data")
    program.wait()
    assert "it was unmounted, and not mounted again" in Stats(volume).text


def test_a_program_that_hangs_blocks_nobody(node: Node, pod: Pod) -> None:
    volume, other = pod.publish(), node.pod().publish()
    program = volume.served_by(pod.fuse(volume))
    Stats(volume)
    before = threads(node)
    program.kill("STOP")
    for _ in range(3):
        stats = Stats(volume)
        assert stats.is_abnormal
        assert "the FUSE program does not answer within 1 s" in stats.text
        assert stats.seconds < 10 * PROBE_WAIT
        # The usage is all zeros, and not left out: kubelet drops the condition of an answer without usage.
        assert [stats.usage[BYTES].total, stats.usage[INODES].total] == [0, 0]
        assert Stats(other).seconds < PROBE_WAIT
        done = node.driver.cli("status")
        assert done.returncode == 0
        assert "the FUSE program does not answer within 1 s" in done.stdout
    # Nobody waits for the program any more; some of gRPC's threads come and go.
    wait_until("nothing is left of it", lambda: not node.driver.children())
    assert threads(node) <= before + 3
    program.kill("CONT")
    wait_until("it answers again", lambda: not Stats(volume).is_abnormal)


def test_warnings_about_the_volume_are_reported(pod: Pod) -> None:
    volume = pod.publish(attributes={"mountOptions": "noexec,bogus\x1b[31m"})
    volume.served_by(pod.fuse(volume))
    stats = Stats(volume)
    assert stats.is_abnormal
    assert "mountOptions: " in stats.text and "bogus" in stats.text
    assert stats.text.isprintable()


def test_sockets_that_cannot_be_made_again_are_reported_until_they_can(pod: Pod) -> None:
    volume = pod.publish()
    volume.served_by(pod.fuse(volume))
    volume.socket.unlink()
    volume.socket.mkdir()
    volume.republish()
    stats = Stats(volume)
    assert stats.is_abnormal
    assert volume.socket.name in stats.text and "remove it" in stats.text
    volume.socket.rmdir()
    volume.republish()
    assert not Stats(volume).is_abnormal


def stats_request(volume_id: str, path: str) -> csi_pb2.NodeGetVolumeStatsRequest:
    return csi_pb2.NodeGetVolumeStatsRequest(volume_id=volume_id, volume_path=path)


def test_a_volume_that_is_not_there(node: Node, pod: Pod) -> None:
    volume = pod.publish()
    volume_id, path = volume.request.volume_id, volume.request.target_path
    for wrong in (("csi-other", path), (volume_id, f"{path}/x"), (volume_id, "/"), (volume_id, "relative"), (volume_id, f"{path}\0")):
        with refused(grpc.StatusCode.NOT_FOUND):
            node.kubelet.node().NodeGetVolumeStats(stats_request(*wrong))
    volume.unpublish()
    with refused(grpc.StatusCode.NOT_FOUND):
        node.kubelet.node().NodeGetVolumeStats(stats_request(volume_id, path))


@pytest.mark.parametrize("missing", ["volume_id", "volume_path"])
def test_a_field_that_is_missing(node: Node, pod: Pod, missing: str) -> None:
    volume = pod.publish()
    request = stats_request(volume.request.volume_id, volume.request.target_path)
    request.ClearField(missing)  # type: ignore[arg-type]
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as refusal:
        node.kubelet.node().NodeGetVolumeStats(request)
    assert missing in refusal.text


def test_status_says_the_same(node: Node, pod: Pod) -> None:
    volume = pod.publish()
    fuse = pod.fuse(volume)
    for _ in range(2):
        program = volume.served_by(fuse)
        fuse.check("fusermount3 -u /data")
        program.wait()
    program = volume.served_by(fuse)
    done = node.driver.cli("status", "--output", "json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["problem"] == ""
    (shown,) = [each for each in answer["volumes"] if each["volume"] == volume.request.volume_id]
    assert shown["pod"] == f"default/pod-{pod.folder.uid[:8]}"
    assert (shown["state"], shown["mounts"], shown["abnormal"]) == ("mounted", 3, False)
    assert shown["condition"] == Stats(volume).text
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", shown["since"])
    assert shown["since"].replace("T", " ") in shown["condition"]
    (line,) = [line for line in node.driver.cli("status", "--output", "wide").stdout.splitlines() if volume.request.volume_id in line]
    assert line.split()[2:5] == ["mounted", shown["since"], "3"]
    assert line.endswith(shown["condition"])


def test_the_condition_survives_a_restart_of_the_driver(node: Node, pod: Pod) -> None:
    volume = pod.publish()
    fuse = pod.fuse(volume)
    volume.served_by(fuse).kill("KILL")
    volume.wait_waiting()
    volume.served_by(fuse)
    before = node.driver.cli("status", "--output", "json").stdout
    assert '"mounts": 2' in before
    node.driver.restart()
    assert node.driver.cli("status", "--output", "json").stdout == before
    assert not Stats(volume).is_abnormal


def test_a_mount_that_ended_while_no_driver_ran_is_reported(node: Node, pod: Pod) -> None:
    volume = pod.publish()
    program = volume.served_by(pod.fuse(volume))
    node.driver.stop()
    mounts.unmount(volume.target)
    program.wait()
    node.driver.start()
    assert "its FUSE program has ended without unmounting" in Stats(volume).text
