"""Stands in for the parts of kubelet that device plugins talk to, over real sockets and gRPC."""

import asyncio
import os
import socket
import stat
from pathlib import Path

import grpc
import grpc.aio

from driver.api.rpc import deviceplugin_pb2, deviceplugin_pb2_grpc, podresources_pb2, podresources_pb2_grpc


class FakeKubelet(deviceplugin_pb2_grpc.RegistrationServicer):
    """Registers device plugins as kubelet does: it connects to a plugin before it answers, and then reads its devices."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.refusal = ""  # refuses registrations with this text
        self.requests: list[deviceplugin_pb2.RegisterRequest] = []
        self.healths: list[set[str]] = []  # the health of the devices in each list that came
        self.delay = 0.0  # seconds from a registration until the devices are read
        self.devices: dict[str, dict[str, str]] = {}  # maps resources to the health of each device; without those that are away
        self._server: grpc.aio.Server | None = None
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._readers: list[asyncio.Task[None]] = []

    @property
    def socket(self) -> Path:
        return self.folder / "kubelet.sock"

    def empty_the_folder(self) -> None:
        """Remove all but folders and kubelet's own records, as a kubelet does that starts."""
        for path in self.folder.iterdir():
            if stat.S_ISSOCK(path.lstat().st_mode):
                path.unlink()

    async def start(self, empties: bool = True) -> None:
        if empties:
            self.empty_the_folder()
        self.socket.unlink(missing_ok=True)
        self._server = grpc.aio.server()
        deviceplugin_pb2_grpc.add_RegistrationServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{self.socket}")
        await self._server.start()

    async def stop(self) -> None:
        """End as a kubelet does that is killed: its socket stays, and nobody listens there."""
        if self._server is None:
            return
        for resource in list(self._channels):
            await self.disconnect(resource)
        await asyncio.gather(*self._readers)
        self._readers.clear()
        await self._server.stop(None)
        self._server = None
        self.socket.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as nobody:
            nobody.bind(os.fspath(self.socket))

    async def disconnect(self, resource: str) -> None:
        await self._channels.pop(resource).close()

    async def Register(self, request: deviceplugin_pb2.RegisterRequest, context: grpc.aio.ServicerContext) -> deviceplugin_pb2.Empty:
        self.requests.append(request)
        if self.refusal:
            await context.abort(grpc.StatusCode.UNKNOWN, self.refusal)
        assert request.resource_name not in self.devices, "a plugin registers that is connected"
        channel = grpc.aio.insecure_channel(f"unix:{self.folder / request.endpoint}", [("grpc.use_local_subchannel_pool", 1)])
        self._channels[request.resource_name] = channel
        options = await deviceplugin_pb2_grpc.DevicePluginStub(channel).GetDevicePluginOptions(deviceplugin_pb2.Empty())
        assert options == request.options
        self._readers.append(asyncio.create_task(self._read(request.resource_name, channel)))
        return deviceplugin_pb2.Empty()

    async def _read(self, resource: str, channel: grpc.aio.Channel) -> None:
        await asyncio.sleep(self.delay)
        try:
            async for answer in deviceplugin_pb2_grpc.DevicePluginStub(channel).ListAndWatch(deviceplugin_pb2.Empty()):
                self.devices[resource] = {device.ID: device.health for device in answer.devices}
                self.healths.append({device.health for device in answer.devices})
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            pass
        self.devices.pop(resource, None)

    async def allocate(self, resource: str, *containers: list[str]) -> list[deviceplugin_pb2.ContainerAllocateResponse]:
        """Ask the plugin what containers get that have these devices."""
        requests = [deviceplugin_pb2.ContainerAllocateRequest(devices_ids=device_ids) for device_ids in containers]
        plugin = deviceplugin_pb2_grpc.DevicePluginStub(self._channels[resource])
        answer = await plugin.Allocate(deviceplugin_pb2.AllocateRequest(container_requests=requests))
        return list(answer.container_responses)


class FakePodResources(podresources_pb2_grpc.PodResourcesListerServicer):
    """Tells which containers have which devices: NAMESPACE/POD/CONTAINER, resource and device ids."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.containers: list[tuple[str, str, list[str]]] = []
        self.is_hanging = False
        self.asked = 0
        self._server = grpc.aio.server()

    async def start(self) -> None:
        podresources_pb2_grpc.add_PodResourcesListerServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{self.path}")
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    async def List(
        self, request: podresources_pb2.ListPodResourcesRequest, context: grpc.aio.ServicerContext
    ) -> podresources_pb2.ListPodResourcesResponse:
        self.asked += 1
        if self.is_hanging:
            await asyncio.Event().wait()
        answer = podresources_pb2.ListPodResourcesResponse()
        for owner, resource, device_ids in self.containers:
            namespace, pod, container = owner.split("/")
            devices = podresources_pb2.ContainerDevices(resource_name=resource, device_ids=device_ids)
            resources = podresources_pb2.ContainerResources(name=container, devices=[devices])
            answer.pod_resources.append(podresources_pb2.PodResources(name=pod, namespace=namespace, containers=[resources]))
        return answer
