"""Says what the driver's own service asks of the fuse devices, and describes them in its messages."""

from collections.abc import Sequence
from typing import Protocol

from driver.api.rpc import admin_pb2
from driver.model.kit import ContainerKit


class Mount(Protocol):
    """Describes a FUSE file system in a container."""

    @property
    def container(self) -> str:
        """Return which container it is, in words."""

    @property
    def mountpoint(self) -> bytes:
        """Return its path as the container sees it."""

    @property
    def fstype(self) -> str:
        """Return its type, `fuse` or `fuse.` and a subtype."""

    @property
    def source(self) -> str:
        """Return its source, as mount tables show it."""

    @property
    def since(self) -> float:
        """Return since when it is mounted, in seconds since 1970."""

    @property
    def mounter(self) -> int | None:
        """Return the uid of who mounted it, as the node sees it; None where that is not known."""


class Allocation(Protocol):
    """Describes a fuse device: a socket, and what is mounted through it."""

    @property
    def name(self) -> str:
        """Return its name, which no other has."""

    @property
    def owner(self) -> str:
        """Return the pod as namespace/name, or the user; "" where any container may have it."""

    @property
    def socket_folder(self) -> str:
        """Return the folder of its socket on the node."""

    @property
    def mounts(self) -> Sequence[Mount]:
        """Return what is mounted through it."""


class Devices(Protocol):
    """Adds, removes and lists fuse devices."""

    async def add(self, name: str, user: str | None) -> Allocation:
        """Add a device, in a folder that `user`, a name or a uid, can reach. Raises VolumeError."""

    async def remove(self, name: str) -> None:
        """Remove a device. Raises VolumeError."""

    async def abort(self, name: str) -> bool:
        """End what is mounted through a device, and return whether there was anything. Raises VolumeError."""

    def all(self) -> Sequence[Allocation]:
        """Return all devices."""

    def kit(self, name: str) -> ContainerKit:
        """Return what a container with this device gets. Raises VolumeError."""


def device_message(allocation: Allocation, kit: ContainerKit) -> admin_pb2.Device:
    """Return the message that describes a device."""
    return admin_pb2.Device(
        name=allocation.name,
        owner=utf8(allocation.owner),
        socket_folder=utf8(allocation.socket_folder),
        binds=[admin_pb2.KitBind(source=utf8(bind.source), target=utf8(bind.target), read_only=bind.read_only) for bind in kit.binds],
        devices=[
            admin_pb2.KitDevice(source=utf8(device.source), target=utf8(device.target), permissions=device.permissions)
            for device in kit.devices
        ],
        mounts=[
            admin_pb2.DeviceMount(
                container=utf8(mount.container),
                mountpoint=utf8(mount.mountpoint.decode("utf-8", "surrogateescape")),
                fs_type=utf8(mount.fstype),
                source=utf8(mount.source),
                since=int(mount.since),
                uid=mount.mounter,
            )
            for mount in allocation.mounts
        ],
    )


def utf8(text: str) -> str:
    """Escape bytes of a path that are not UTF-8, because protobuf would refuse the whole message."""
    return text.encode("utf-8", "backslashreplace").decode()
