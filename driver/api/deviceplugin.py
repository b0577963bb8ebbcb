"""Answers kubelet's device plugin API for one resource name: which devices there are, and what a container with one of them gets.

kubelet calls ListAndWatch once after the registration (registeredplugin.py), and reads the lists of devices from that stream as long as
both live. It calls Allocate when a pod is admitted, keeps the answer on disk, and gives it to the engine each time it makes the
container, also after a reboot, without asking again.
"""

import asyncio
from collections.abc import Callable

from driver.api.answers import Context, answers
from driver.api.rpc import deviceplugin_pb2, deviceplugin_pb2_grpc
from driver.model.errors import Code, VolumeError
from driver.model.kit import ContainerKit

# These words are those of kubelet's constants.go.
_HEALTHY = "Healthy"
_UNHEALTHY = "Unhealthy"


class DevicePlugin(deviceplugin_pb2_grpc.DevicePluginServicer):
    """Implements the service DevicePlugin of deviceplugin.proto. The devices' ids are `fuse-0`, `fuse-1` and so on."""

    def __init__(self, resource: str, count: int, allocate: Callable[[str, str], ContainerKit], on_stream_end: Callable[[], None]) -> None:
        """Take what the plugin offers.

        `resource` is the resource's name in pods, and `count` how many devices there are. `allocate` is called with the name and
        a device's id, and returns what its container gets; kubelet reports to the pod what it raises (VolumeError, OSError).
        `on_stream_end` is called when no kubelet reads the list of devices any more.
        """
        self.resource = resource
        self.streams = 0  # calls of ListAndWatch that have not ended
        self.streams_opened = 0  # all calls of ListAndWatch
        self._ids = tuple(f"fuse-{number}" for number in range(count))
        self._allocate = allocate
        self._on_stream_end = on_stream_end
        self._is_healthy = True
        self._is_ending = False
        self._changed = asyncio.Event()  # set once; each change makes a new one

    def set_health(self, is_healthy: bool) -> None:
        """Tell kubelet whether containers can use the devices. Pods that have one already are not affected."""
        if is_healthy != self._is_healthy:
            self._is_healthy = is_healthy
            self._notify()

    def end_streams(self) -> None:
        """End all calls of ListAndWatch. kubelet keeps pods that have a device, and admits no others until the next registration."""
        self._is_ending = True
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    @answers
    async def GetDevicePluginOptions(self, request: deviceplugin_pb2.Empty, context: Context) -> deviceplugin_pb2.DevicePluginOptions:
        """Return that kubelet need not ask before the start of a container, nor which device to choose."""
        return deviceplugin_pb2.DevicePluginOptions()

    async def ListAndWatch(self, request: deviceplugin_pb2.Empty, context: Context) -> None:
        """Send all devices, and again whenever their health has changed, until kubelet goes away or the driver stops."""
        self.streams += 1
        self.streams_opened += 1
        try:
            while not self._is_ending:
                changed = self._changed
                health = _HEALTHY if self._is_healthy else _UNHEALTHY
                devices = [deviceplugin_pb2.Device(ID=device_id, health=health) for device_id in self._ids]
                await context.write(deviceplugin_pb2.ListAndWatchResponse(devices=devices))
                await changed.wait()
        finally:
            self.streams -= 1
            if self.streams == 0:
                self._on_stream_end()

    @answers
    async def Allocate(self, request: deviceplugin_pb2.AllocateRequest, context: Context) -> deviceplugin_pb2.AllocateResponse:
        """Return what each container gets: the kit of its first device. One that asked for more devices has the others for nothing."""
        wanted = [tuple(container.devices_ids) for container in request.container_requests]
        for device_ids in wanted:
            if not device_ids:
                raise VolumeError(Code.INVALID_ARGUMENT, f"kubelet allocates no device of {self.resource}")
            for device_id in device_ids:
                if device_id not in self._ids:
                    text = f"{device_id} is no device of {self.resource}, which has {len(self._ids)} (--fuse-devices)"
                    raise VolumeError(Code.INVALID_ARGUMENT, text)
        kits = [self._allocate(self.resource, device_ids[0]) for device_ids in wanted]
        return deviceplugin_pb2.AllocateResponse(container_responses=[_message_of(kit) for kit in kits])


def _message_of(kit: ContainerKit) -> deviceplugin_pb2.ContainerAllocateResponse:
    return deviceplugin_pb2.ContainerAllocateResponse(
        mounts=[deviceplugin_pb2.Mount(container_path=b.target, host_path=b.source, read_only=b.read_only) for b in kit.binds],
        devices=[deviceplugin_pb2.DeviceSpec(container_path=d.target, host_path=d.source, permissions=d.permissions) for d in kit.devices],
    )
