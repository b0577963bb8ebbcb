"""Shows what grpcio itself costs: a grpc.aio server with CSI's Node service, whose methods do nothing."""

import asyncio
import os
import sys

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # as in the driver

import grpc.aio

from driver.api.rpc import csi_pb2, csi_pb2_grpc


class Node(csi_pb2_grpc.NodeServicer):
    """Answers at once."""

    async def NodePublishVolume(
        self, request: csi_pb2.NodePublishVolumeRequest, context: "grpc.aio.ServicerContext[object, object]"
    ) -> csi_pb2.NodePublishVolumeResponse:
        return csi_pb2.NodePublishVolumeResponse()

    async def NodeUnpublishVolume(
        self, request: csi_pb2.NodeUnpublishVolumeRequest, context: "grpc.aio.ServicerContext[object, object]"
    ) -> csi_pb2.NodeUnpublishVolumeResponse:
        return csi_pb2.NodeUnpublishVolumeResponse()


async def main(endpoint: str) -> None:
    """Serve until killed."""
    server = grpc.aio.server()
    csi_pb2_grpc.add_NodeServicer_to_server(Node(), server)
    server.add_insecure_port(endpoint)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
