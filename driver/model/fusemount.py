"""The values that describe one FUSE mount."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FuseMount:
    """A FUSE file system that is mounted: where the program asked for it, its device number, what mount tables show.

    `node` is its device node's name; None for one that this driver did not make (it was there before). `on_placeholder`
    is False where such a one lies on the bare directory.
    """

    mountpoint: bytes
    device: str
    source: str
    fstype: str
    node: str | None
    on_placeholder: bool = True
