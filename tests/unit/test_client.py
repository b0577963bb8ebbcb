"""The commands' side of the admin socket, with a driver that answers what a test says."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from driver import client
from driver.rpc import admin_pb2, admin_pb2_grpc


def test_an_answer_of_very_many_volumes_is_taken(tmp_path: Path) -> None:
    """gRPC's usual limit is 4 MiB."""
    answer = admin_pb2.GetStatusResponse(volumes=[admin_pb2.Volume(name=f"v{number}", condition="x" * 1000) for number in range(10_000)])

    class Admin(admin_pb2_grpc.AdminServicer):
        def GetStatus(self, request: admin_pb2.GetStatusRequest, context: grpc.ServicerContext) -> admin_pb2.GetStatusResponse:
            return answer

    server = grpc.server(ThreadPoolExecutor(1))
    server.add_insecure_port(f"unix:{tmp_path}/admin.sock")
    admin_pb2_grpc.add_AdminServicer_to_server(Admin(), server)
    server.start()
    try:
        assert len(client.status(f"{tmp_path}/admin.sock").volumes) == 10_000
    finally:
        server.stop(None).wait()
