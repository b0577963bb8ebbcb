"""The values that describe one FUSE mount."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FuseMount:
    """A FUSE file system that is mounted.

    `mountpoint` is the path that the program asked for, as its container sees it. `device_number` is MAJOR:MINOR of the
    file system. `source` and `fstype` are what mount tables show. `device` is the name of its device node; None for a mount
    that another driver made. `on_placeholder` is False where such a mount lies on the bare directory. `mounter` is the uid
    that asked for it; None where that is not known.
    """

    mountpoint: bytes
    device_number: str
    source: str
    fstype: str
    device: str | None
    on_placeholder: bool = True
    mounter: int | None = None


@dataclass(frozen=True, slots=True)
class DetachedMount:
    """A FUSE file system that was unmounted lazily. `connection` is the identity of its connection (mounts/connections.py)."""

    mount: FuseMount
    connection: str
