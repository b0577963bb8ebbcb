"""Keeps one small file for each mount of a fuse device, from which the next driver follows it again.

What is recorded before a mount is made has no device number: a driver that is killed between that and the next write has handed no fd out,
so such a mount is dead, and the next driver detaches it.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from driver.model.fusemount import FuseMount
from driver.mounts import device
from driver.volumes.recordfiles import RecordFiles
from fusermount3_proxy.wire.protocol import from_wire, to_wire

_VERSION = 1


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """One mount. `namespace` is the number of its mount namespace, and `container` the name of its container (namespace.py).

    `uid` and `gid` are its mounter's as the mount's user namespace has them, `pid` is a process that was in the mount namespace, and
    `since` when it was mounted, in seconds since 1970. `is_root` is whether its mountpoint is itself the root of a mount.
    """

    allocation: str
    mount: FuseMount
    namespace: int
    container: str
    uid: int
    gid: int
    pid: int
    since: float
    is_root: bool


class DeviceRecords:
    """Writes and reads these files."""

    def __init__(self, files: RecordFiles) -> None:
        self._files = files

    def save(self, record: DeviceRecord) -> None:
        """Write a record, whole or not at all. Raises OSError."""
        self._files.save(_key(record), to_json(record))

    def delete(self, record: DeviceRecord) -> None:
        """Delete a record, if it is there. Raises OSError."""
        self._files.delete(_key(record))

    def load(self) -> list[DeviceRecord]:
        """Return all records of this boot. A broken one is logged and left out."""
        return [record for _, record in self._files.load(from_json)]


def _key(record: DeviceRecord) -> str:
    assert record.mount.device is not None
    return record.mount.device


def to_json(record: DeviceRecord) -> dict[str, Any]:
    """Return the object for a record; json.dumps() takes it."""
    content = asdict(record)
    content["mount"]["mountpoint"] = to_wire(record.mount.mountpoint)
    return {"version": _VERSION, **content}


def from_json(content: Any) -> DeviceRecord:
    """Return the record of an object. Raises ValueError and others where no driver has written it."""
    if content["version"] != _VERSION:
        raise ValueError(f"version {content['version']} is not {_VERSION}")
    fields = {name: content[name] for name in DeviceRecord.__slots__}
    mount = dict(fields.pop("mount"))
    # The device node is unlinked when the mount ends: its name must not lead anywhere else.
    if not isinstance(mount["device"], str) or not device.is_name(mount["device"]):
        raise ValueError(f"device is {mount['device']!r}")
    mount["mountpoint"] = from_wire(mount["mountpoint"])
    record = DeviceRecord(mount=FuseMount(**mount), **fields)
    json.dumps(to_json(record))
    for name in ("namespace", "uid", "gid", "pid"):
        if not isinstance(getattr(record, name), int):
            raise ValueError(f"{name} is {getattr(record, name)!r}")
    return record
