"""Serves the driver's own gRPC service (rpc/admin.proto) to the commands of cli.py."""

from collections.abc import Callable

from driver import __version__
from driver.api.answers import Context, answers
from driver.api.devices import Devices, device_message, utf8
from driver.api.rpc import admin_pb2, admin_pb2_grpc
from driver.model.errors import Code, VolumeError
from driver.volumes import condition
from driver.volumes.condition import Condition
from driver.volumes.standalone import Standalone
from driver.volumes.volume import Volume
from driver.volumes.volumes import Volumes


class Admin(admin_pb2_grpc.AdminServicer):
    """Implements the service of admin.proto."""

    def __init__(self, volumes: Volumes, standalone: Standalone, problem: Callable[[], str], devices: Devices | None = None) -> None:
        """`problem` returns why the driver cannot mount, and "" if it can. `devices` is None where the fuse device is off."""
        self._volumes = volumes
        self._standalone = standalone
        self._problem = problem
        self._devices = devices

    @answers
    async def AddVolume(self, request: admin_pb2.AddVolumeRequest, context: Context) -> admin_pb2.Volume:
        """Publish a volume without Kubernetes."""
        return message_of(await self._standalone.add(request.name, request.read_only, request.options))

    @answers
    async def RemoveVolume(self, request: admin_pb2.RemoveVolumeRequest, context: Context) -> admin_pb2.RemoveVolumeResponse:
        """Unpublish and remove a volume without Kubernetes."""
        await self._standalone.remove(request.name)
        return admin_pb2.RemoveVolumeResponse()

    @answers
    async def AbortVolume(self, request: admin_pb2.AbortVolumeRequest, context: Context) -> admin_pb2.AbortVolumeResponse:
        """End the FUSE file system of any volume, although it is in use."""
        await self._volumes.named(request.volume).abort()
        return admin_pb2.AbortVolumeResponse()

    @answers
    async def ListVolumes(self, request: admin_pb2.ListVolumesRequest, context: Context) -> admin_pb2.ListVolumesResponse:
        """List the volumes without Kubernetes, after repairing them."""
        await self._standalone.repair()
        return admin_pb2.ListVolumesResponse(volumes=[message_of(volume) for volume in self._standalone.all()])

    @answers
    async def GetStatus(self, request: admin_pb2.GetStatusRequest, context: Context) -> admin_pb2.GetStatusResponse:
        """Describe the driver and every volume. Examining the volumes takes limits.STATUS_WAIT at most."""
        await self._standalone.repair()
        volumes = list(self._volumes)
        conditions = await condition.examine_all(volumes)
        return admin_pb2.GetStatusResponse(
            version=__version__,
            problem=utf8(self._problem()),
            volumes=[message_of(volume, examined) for volume, examined in zip(volumes, conditions, strict=True)],
            devices=self._devices_in_use(),
        )

    @answers
    async def GetReadiness(self, request: admin_pb2.GetReadinessRequest, context: Context) -> admin_pb2.GetReadinessResponse:
        """Return why the driver cannot mount. No FUSE program is asked, so a pod whose programs hang does not make the node NotReady."""
        return admin_pb2.GetReadinessResponse(problem=utf8(self._problem()))

    @answers
    async def AddDevice(self, request: admin_pb2.AddDeviceRequest, context: Context) -> admin_pb2.Device:
        """Add a fuse device with a socket of its own."""
        devices = self._the_devices()
        return device_message(await devices.add(request.name, request.user or None), devices.kit(request.name))

    @answers
    async def RemoveDevice(self, request: admin_pb2.RemoveDeviceRequest, context: Context) -> admin_pb2.RemoveDeviceResponse:
        """Remove a fuse device."""
        await self._the_devices().remove(request.name)
        return admin_pb2.RemoveDeviceResponse()

    @answers
    async def AbortDevice(self, request: admin_pb2.AbortDeviceRequest, context: Context) -> admin_pb2.AbortDeviceResponse:
        """End the FUSE file systems that were mounted through a device."""
        if not await self._the_devices().abort(request.name):
            raise VolumeError(Code.FAILED_PRECONDITION, f"nothing is mounted through the device {request.name}")
        return admin_pb2.AbortDeviceResponse()

    @answers
    async def ListDevices(self, request: admin_pb2.ListDevicesRequest, context: Context) -> admin_pb2.ListDevicesResponse:
        """List the fuse devices, and what is mounted through each."""
        devices = self._the_devices()
        return admin_pb2.ListDevicesResponse(devices=[device_message(each, devices.kit(each.name)) for each in devices.all()])

    def _devices_in_use(self) -> list[admin_pb2.Device]:
        devices = self._devices
        return [] if devices is None else [device_message(each, devices.kit(each.name)) for each in devices.all() if each.mounts]

    def _the_devices(self) -> Devices:
        if self._devices is None:
            text = (
                "the fuse device is off: start the driver with --fuse-devices above 0, and with a --fuse-dir that it can use (see its log)"
            )
            raise VolumeError(Code.FAILED_PRECONDITION, text)
        return self._devices


def message_of(volume: Volume, examined: Condition | None = None) -> admin_pb2.Volume:
    """Return the message that describes a volume. `examined` is its condition, or None if it was not examined."""
    publication, current = volume.publication, volume.mounts.current
    return admin_pb2.Volume(
        name=publication.volume_id,
        pod=publication.pod,
        target_path=utf8(publication.paths.target_path),
        socket_path=utf8(f"{publication.paths.root}/{publication.paths.sockets}/{publication.socket_name}"),
        state=volume.mounts.state.value,
        source=current.mount.source if current else "",
        fs_type=current.mount.fstype if current else "",
        read_only=volume.policy.options.flags.get("ro", False),
        warnings=volume.policy.warnings if examined is None else (),
        since=int(volume.mounts.past.since),
        mounts=volume.mounts.past.mounts,
        abnormal=examined is not None and examined.is_abnormal,
        condition=examined.text if examined else "",
        detached=volume.mounts.count_detached(),
    )
