"""Defines what a container with a fuse device gets from its engine: the kit."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bind:
    """A file or folder of the node that the engine binds into the container. Both paths are absolute.

    `source` is the path on the node, and `target` the one in the container.
    """

    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class Device:
    """A device node that the engine makes in the container. Both paths are absolute.

    `source` is the path on the node, and `target` the one in the container. `permissions` are letters of `rwm`, for the
    container's control group: read, write, make further nodes of this device.
    """

    source: str
    target: str
    permissions: str


@dataclass(frozen=True, slots=True)
class ContainerKit:
    """All that a container with a fuse device gets."""

    binds: tuple[Bind, ...]
    devices: tuple[Device, ...]
