"""Describes what a container gets that mounts at mountpoints of its own: the kit, which an engine or kubelet puts into it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bind:
    """Represents a path of the node, `source`, that is bound into a container at `target`."""

    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class Device:
    """Represents a device node of the node, `source`, that an engine makes at `target`. `permissions` are those of cgroups: r, w, m."""

    source: str
    target: str
    permissions: str = "rw"


@dataclass(frozen=True, slots=True)
class ContainerKit:
    """Holds all that one container gets."""

    binds: tuple[Bind, ...]
    devices: tuple[Device, ...]
