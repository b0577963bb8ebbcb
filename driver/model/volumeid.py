"""Shortens the ids that kubelet makes for inline volumes, and recognizes them."""

import re

_INLINE = re.compile(r"csi-[0-9a-f]{64}")  # kubelet names an inline volume after the hash of its pod and its name in the pod
_SHORT = 16


def short(volume_id: str) -> str:
    """Return the id as tables show it: of an inline volume the beginning."""
    return volume_id[:_SHORT] if _INLINE.fullmatch(volume_id) else volume_id


def is_named(name: str, volume_id: str) -> bool:
    """Return whether a user's `name` means the volume with this id: all of it, or what tables show of it, or more."""
    return name == volume_id or (len(name) >= _SHORT and _INLINE.fullmatch(volume_id) is not None and volume_id.startswith(name))
