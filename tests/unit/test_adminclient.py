"""Tests the commands' side of the admin socket, with a driver that answers what a test says."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import click
import grpc
import pytest
from click.testing import CliRunner

from driver import adminclient, cli
from driver.api.rpc import admin_pb2, admin_pb2_grpc


@contextmanager
def answering(folder: Path, admin: admin_pb2_grpc.AdminServicer) -> Iterator[str]:
    """Serve `admin`; the block gets the socket's path."""
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_insecure_port(f"unix:{folder}/admin.sock")
    admin_pb2_grpc.add_AdminServicer_to_server(admin, server)
    server.start()
    try:
        yield f"{folder}/admin.sock"
    finally:
        server.stop(None).wait()


def test_an_answer_of_very_many_volumes_is_taken(tmp_path: Path) -> None:
    """gRPC's usual limit is 4 MiB."""
    answer = admin_pb2.GetStatusResponse(volumes=[admin_pb2.Volume(name=f"v{number}", condition="x" * 1000) for number in range(10_000)])

    class Admin(admin_pb2_grpc.AdminServicer):
        def GetStatus(self, request: admin_pb2.GetStatusRequest, context: grpc.ServicerContext) -> admin_pb2.GetStatusResponse:
            return answer

    with answering(tmp_path, Admin()) as socket:
        assert len(adminclient.status(socket).volumes) == 10_000


def test_a_driver_that_is_older_than_the_command_is_named(tmp_path: Path) -> None:
    with answering(tmp_path, admin_pb2_grpc.AdminServicer()) as socket, pytest.raises(click.ClickException) as caught:
        adminclient.readiness(socket)
    assert "older than this program" in caught.value.message
    assert socket in caught.value.message


@pytest.mark.parametrize("problem", ["", "run 'modprobe fuse' on the node"])
@pytest.mark.parametrize("command", ["ready", "status"])
def test_a_command_says_whether_the_driver_is_ready(tmp_path: Path, command: str, problem: str) -> None:
    class Admin(admin_pb2_grpc.AdminServicer):
        def GetReadiness(self, request: admin_pb2.GetReadinessRequest, context: grpc.ServicerContext) -> admin_pb2.GetReadinessResponse:
            return admin_pb2.GetReadinessResponse(problem=problem)

        def GetStatus(self, request: admin_pb2.GetStatusRequest, context: grpc.ServicerContext) -> admin_pb2.GetStatusResponse:
            return admin_pb2.GetStatusResponse(version="1.0", problem=problem)

    with answering(tmp_path, Admin()) as socket:
        ended = CliRunner().invoke(cli.main, ["--admin-socket", socket, command])
    assert ended.exit_code == (1 if problem else 0)
    line = ended.output.splitlines()[0]
    assert line.removeprefix("meta-fuse-csi-plugin 1.0: ") == (f"not ready: {problem}" if problem else "ready")
    assert command == "status" or ended.output == f"{line}\n"
