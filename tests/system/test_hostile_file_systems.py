"""FUSE servers that are hostile: publish, republish, unmount, stats, unpublish and the driver's end stay bounded."""

import time

import pytest
from harness.container import Background, Bind, Container
from harness.events import wait_until
from harness.kubelet import Published
from harness.pod import Node, Pod
from harness.programs import SOURCES

from driver.rpc import csi_pb2

PROGRAMS = "/programs"


class Served:
    def __init__(self, pod: Pod, how: str) -> None:
        self.volume: Published = pod.publish()
        self.fuse: Container = pod.fuse(self.volume, binds=[Bind(SOURCES, PROGRAMS, read_only=True)])
        self.program: Background = self.start(how)

    def start(self, how: str) -> Background:
        program = self.fuse.start(f"python3 {PROGRAMS}/hostile_fuse.py {how} /data")
        wait_until("it serves", lambda: "serves" in program.out or (not program.is_running and pytest.fail(program.err)))
        return program


def stats(node: Node, volume: Published) -> csi_pb2.NodeGetVolumeStatsResponse:
    request = csi_pb2.NodeGetVolumeStatsRequest(volume_id=volume.request.volume_id, volume_path=volume.request.target_path)
    return node.kubelet.node().NodeGetVolumeStats(request)


@pytest.mark.parametrize("how", ["reads-nothing", "never-anything"])
def test_the_driver_can_be_replaced(node: Node, pod: Pod, how: str) -> None:
    served = Served(pod, how)
    assert stats(node, served.volume).volume_condition.abnormal
    began = time.monotonic()
    assert node.driver.stop() == 0
    print(time.monotonic() - began)
    node.driver.start()
