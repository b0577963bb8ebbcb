"""The JSON form of a volume's record: values in, an object out, and back. No input or output happens here.

Version 1 holds one attached mount at the most, in `mount`. A volume with at most one mount is written as version 1, so that an older
driver finds it after a downgrade. Version 2 holds any number of mounts, in `mounts`. Both are read.

A new field of a mount goes into `more` of version 1, which an older driver ignores, and into each mount of version 2. What was
unmounted lazily is in `more` of both versions. Add no field to `publication` or `paths`: an older driver refuses a record that has
one it does not know.
"""

from dataclasses import dataclass, field
from typing import Any

from driver.model.fusemount import DetachedMount, FuseMount
from driver.model.paths import VolumePaths
from driver.model.publication import Publication
from driver.model.state import End, Past
from driver.mounts import device
from fusermount3_proxy.wire.protocol import from_wire, to_wire

VERSIONS = (1, 2)

_SINCE_END = 253_402_300_800.0  # the year 10000
_MOUNTS_END = 1 << 63
_UID_END = 1 << 32


@dataclass(frozen=True)
class Record:
    """One volume at the time when it last changed. `past` is None in records of drivers that kept none."""

    publication: Publication
    mounts: tuple[FuseMount, ...] = field(default=())
    past: Past | None = None
    detached: tuple[DetachedMount, ...] = ()


def to_json(record: Record) -> dict[str, Any]:
    """Return the object for a record; json.dumps() takes it."""
    publication = _fields(record.publication) | {"paths": _fields(record.publication.paths)}
    content: dict[str, Any] = {"publication": publication, "past": _past_to_json(record.past)}
    more: dict[str, Any] = {}
    if record.detached:
        more["detached"] = [_whole(each.mount) | {"connection": each.connection} for each in record.detached]
    if len(record.mounts) > 1:
        return {"version": 2, **content, "mounts": [_whole(mount) for mount in record.mounts], **({"more": more} if more else {})}
    content["mount"] = _mount_to_json(record.mounts[0]) if record.mounts else None
    if record.mounts and record.mounts[0].mounter is not None:
        more["mounter"] = record.mounts[0].mounter
    return {"version": 1, **content, **({"more": more} if more else {})}


def from_json(content: Any) -> Record:
    """Return the record of an object. Raises ValueError and others where no driver has written it."""
    if content["version"] not in VERSIONS:
        raise ValueError(f"version {content['version']} is not one of {VERSIONS}")
    publication = dict(content["publication"])
    publication["paths"] = _valid_paths(VolumePaths(**publication["paths"]))
    publication["mount_flags"] = tuple(publication["mount_flags"])
    more = content.get("more") or {}
    if content["version"] == 2:
        mounts = tuple(_mount_from_json(mount, mount.get("mounter")) for mount in content["mounts"])
    elif content["mount"] is None:
        mounts = ()
    else:
        mounts = (_mount_from_json(content["mount"], more.get("mounter")),)
    past = content.get("past")
    return Record(
        _valid_publication(Publication(**publication)),
        mounts,
        None if past is None else _past_from_json(past),
        _detached_from_json(more.get("detached", ())),
    )


def _detached_from_json(entries: Any) -> tuple[DetachedMount, ...]:
    """Return what can be read of it. An entry that another version has written differently must not cost the whole volume."""
    found: list[DetachedMount] = []
    for entry in entries if isinstance(entries, list) else ():
        try:
            found.append(DetachedMount(_mount_from_json(entry, entry.get("mounter")), _text("connection", entry["connection"])))
        except Exception:
            pass  # the file system is not followed, and ends with its last user
    return tuple(found)


def _whole(mount: FuseMount) -> dict[str, Any]:
    return _mount_to_json(mount) | {"mounter": mount.mounter}


def _fields(value: Publication | VolumePaths) -> dict[str, Any]:
    # dataclasses.asdict() would copy every value deeply.
    return {name: getattr(value, name) for name in value.__slots__}


def _mount_to_json(mount: FuseMount) -> dict[str, Any]:
    return {
        "mountpoint": to_wire(mount.mountpoint),
        "device": mount.device_number,
        "source": mount.source,
        "fstype": mount.fstype,
        "node": mount.device,
        "on_placeholder": mount.on_placeholder,
    }


def _mount_from_json(content: dict[str, Any], mounter: Any) -> FuseMount:
    node = content["node"]
    # The device node is unlinked when the mount ends: its name must not lead anywhere else.
    if node is not None and not device.is_name(_text("node", node)):
        raise ValueError(f"node is {node!r}")
    if not isinstance(content["on_placeholder"], bool):
        raise ValueError(f"on_placeholder is {content['on_placeholder']!r}")
    if mounter is not None:
        mounter = _number("mounter", mounter, _UID_END)
    return FuseMount(
        mountpoint=from_wire(_text("mountpoint", content["mountpoint"])),
        device_number=_text("device", content["device"]),
        source=_text("source", content["source"]),
        fstype=_text("fstype", content["fstype"]),
        device=node,
        on_placeholder=content["on_placeholder"],
        mounter=mounter,
    )


def _past_to_json(past: Past | None) -> dict[str, Any] | None:
    if past is None:
        return None
    return {
        "since": past.since,
        "mounts": past.mounts,
        "last_end": past.last_end.value if past.last_end else None,
        "left": None if past.left is None else to_wire(past.left),
    }


def _past_from_json(content: dict[str, Any]) -> Past:
    since = float(content["since"])
    if not 0 <= since < _SINCE_END:
        raise ValueError(f"since is {since!r}")
    end, left = content["last_end"], content.get("left")  # the first drivers wrote no `left`
    return Past(
        since,
        _number("mounts", content["mounts"], _MOUNTS_END),
        None if end is None else End(end),
        None if left is None else from_wire(_text("left", left)),
    )


def _valid_publication(publication: Publication) -> Publication:
    for name in ("volume_id", "socket_name", "mount_options", "pod"):
        _text(name, getattr(publication, name))
    for flag in publication.mount_flags:
        _text("mount_flags", flag)
    if not isinstance(publication.read_only, bool):
        raise ValueError(f"read_only is {publication.read_only!r}")
    return publication


def _valid_paths(paths: VolumePaths) -> VolumePaths:
    for name in paths.__slots__:
        # A path may be any bytes.
        _text(name, getattr(paths, name), errors="surrogateescape")
    return paths


def _text(name: str, value: Any, errors: str = "strict") -> str:
    """Return a text that can be sent and shown: one that cannot would fail later, and cost more than one volume."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r}")
    value.encode("utf-8", errors)
    return value


def _number(name: str, value: Any, end: int) -> int:
    if not isinstance(value, int) or not 0 <= value < end:
        raise ValueError(f"{name} is {value!r}")
    return value
