"""Tests how the driver registers with kubelet, over a real socket."""

import asyncio
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from standin_driver import answer_once, listen

from driver.api import csi, registration, services
from driver.api.endpoint import PlacedSocket
from driver.api.rpc import pluginregistration_pb2, pluginregistration_pb2_grpc
from driver.model.errors import StartError

ENDPOINT = "/var/lib/kubelet/plugins/x/csi.sock"


@pytest.fixture
def folder() -> Iterator[Path]:
    # The path of pytest's temporary folder is too long for a Unix socket.
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


def placed(folder: Path) -> PlacedSocket:
    return PlacedSocket(str(folder), registration.SOCKET_NAME)


def ask(folder: Path, *statuses: pluginregistration_pb2.RegistrationStatus) -> tuple[pluginregistration_pb2.PluginInfo, list[str]]:
    """Return the driver's answer to kubelet, and the refusals that the driver noted."""
    refusals: list[str] = []

    async def session() -> pluginregistration_pb2.PluginInfo:
        registration_socket = placed(folder)
        server = await services._register(ENDPOINT, registration_socket, refusals.append)
        try:
            async with grpc.aio.insecure_channel(f"unix:{registration_socket.path}") as channel:
                kubelet = pluginregistration_pb2_grpc.RegistrationStub(channel)
                info = await kubelet.GetInfo(pluginregistration_pb2.InfoRequest())
                for status in statuses:
                    await kubelet.NotifyRegistrationStatus(status)
                return info
        finally:
            await server.stop(None)

    return asyncio.run(session()), refusals


def test_kubelet_gets_what_it_needs(folder: Path) -> None:
    info, _ = ask(folder)
    assert (info.type, info.name, info.endpoint) == ("CSIPlugin", "meta-fuse-csi-plugin.csi.storage.pfn.io", ENDPOINT)
    assert list(info.supported_versions) == ["1.0.0"]


def test_the_socket_has_the_drivers_name_and_is_roots_alone(folder: Path) -> None:
    async def session() -> None:
        registration_socket = placed(folder)
        server = await services._register(ENDPOINT, registration_socket, lambda text: None)
        (path,) = folder.iterdir()
        assert path.name == f"{csi.NAME}-reg.sock"
        assert path.stat().st_mode & 0o777 == 0o600
        registration_socket.remove()
        await server.stop(None)
        # kubelet forgets a plugin whose socket is removed, and pods' events then say that the driver is missing.
        assert list(folder.iterdir()) == []

    asyncio.run(session())


def test_a_socket_that_has_replaced_this_one_stays(folder: Path) -> None:
    async def session() -> None:
        old, new = placed(folder), placed(folder)
        servers = [await services._register(ENDPOINT, old, lambda text: None)]
        try:
            os.unlink(old.path)  # as node-driver-registrar does
            servers.append(await services._register(ENDPOINT, new, lambda text: None))
            old.remove()
            await servers.pop(0).stop(None)
            assert [path.name for path in folder.iterdir()] == [f"{csi.NAME}-reg.sock"]
            new.remove()
        finally:
            for server in servers:  # the process would not end if one were left
                await server.stop(None)
        new.remove()
        assert list(folder.iterdir()) == []

    asyncio.run(session())


def test_a_socket_that_another_process_serves_is_reported(folder: Path) -> None:
    with listen(placed(folder).path, socket.SOCK_STREAM) as server:
        answer_once(server)
        with pytest.raises(StartError, match="another process"):
            ask(folder)


@pytest.mark.parametrize("error", ["", "the reason\nof kubelet"])
def test_a_refusal_is_handed_on_in_one_line(folder: Path, error: str) -> None:
    good = pluginregistration_pb2.RegistrationStatus(plugin_registered=True)
    bad = pluginregistration_pb2.RegistrationStatus(plugin_registered=False, error=error)
    assert ask(folder, good)[1] == []
    (refusal,) = ask(folder, good, bad)[1]
    assert refusal.isprintable()
    assert "reason" in refusal


def test_a_folder_that_cannot_be_used_is_reported(folder: Path) -> None:
    (folder / "file").touch()
    with pytest.raises(StartError, match="--plugin-registration-path"):
        ask(folder / "file")
