"""Calls a driver as kubelet does, one call after another, as lines on standard input command.

    python -m bench.caller SOCKET PODS COUNT

makes COUNT pods. For each line `publish` or `unpublish` it calls the driver for all of them, and answers `done`. A second
line `publish` is a republish. `cycle` publishes and unpublishes all of them until the next line comes.
"""

import os
import select
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests/system")]

import grpc  # noqa: E402
from harness.kubelet import Kubelet  # noqa: E402

from driver.api.rpc import csi_pb2, csi_pb2_grpc  # noqa: E402

_TIMEOUT = 60.0  # seconds


def main(csi_socket: str, pods_dir: str, count: str) -> None:
    kubelet = Kubelet(Path(csi_socket), Path(pods_dir))
    publishes, unpublishes = [], []
    for _ in range(int(count)):
        pod = kubelet.pod()
        pod.empty_dir()
        request = pod.request()
        publishes.append(request)
        unpublishes.append(csi_pb2.NodeUnpublishVolumeRequest(volume_id=request.volume_id, target_path=request.target_path))
    with grpc.insecure_channel(f"unix:{csi_socket}") as channel:
        node = csi_pb2_grpc.NodeStub(channel)

        def publish() -> None:
            for request in publishes:
                node.NodePublishVolume(request, timeout=_TIMEOUT)

        def unpublish() -> None:
            for request in unpublishes:
                node.NodeUnpublishVolume(request, timeout=_TIMEOUT)

        grpc.channel_ready_future(channel).result(_TIMEOUT)
        print("ready", flush=True)
        # The parent mounts at these targets.
        for request in publishes:
            print(request.target_path)
        print("end", flush=True)
        while command := os.read(0, 100).decode().strip():
            if command == "cycle":
                while not select.select([0], [], [], 0)[0]:
                    publish()
                    unpublish()
            else:
                {"publish": publish, "unpublish": unpublish}[command]()
            print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
