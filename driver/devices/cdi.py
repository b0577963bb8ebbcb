"""Writes the file by which Podman, Docker, containerd and CRI-O know the fuse device: the Container Device Interface (CDI).

https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md, version 0.3.0, the first one that these engines read. An
engine reads the file when it starts a container with `--device mfcp.storage.pfn.io/fuse=NAME`, and takes from it what to mount.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

from driver.devices.kit import DEVICE, DEVICE_MODE, DEVICE_NUMBER
from driver.model.kit import Bind, ContainerKit
from driver.model.paths import BadPath, check_device_name

KIND = "mfcp.storage.pfn.io/fuse"
ANY = "any"  # the device that is there without `device add`
FILE = "mfcp.storage.pfn.io-fuse.json"  # VENDOR-CLASS, as the specification recommends

_VERSION = "0.3.0"
# The programs of the tree are executed, so noexec must not be here.
_OPTIONS = ("bind", "nosuid", "nodev")


def write(folder: str, kits: Mapping[str, ContainerKit]) -> bool:
    """Write the file with one device for each kit, by name, whole or not at all. Return whether it differed from what was there.

    `folder` is one that engines read, such as /etc/cdi; it is made where it is missing. A name that some engine would refuse is
    left out, because that engine would refuse the whole file. Raises OSError.
    """
    path, new = f"{folder}/{FILE}", f"{folder}/.{FILE}.new"  # engines read only what ends in .json or .yaml
    content = json.dumps(_spec(kits), indent=2).encode("ascii") + b"\n"
    if _content(path) == content:
        return False
    if not os.path.isdir(folder):
        os.makedirs(folder, exist_ok=True)
        os.chmod(folder, 0o755)  # the umask of the driver is 0077
    try:
        with open(new, "wb") as file:
            os.fchmod(file.fileno(), 0o644)  # Podman without root reads it too
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(new, path)
    except OSError:
        _unlink(new)
        raise
    return True


def remove(folder: str) -> None:
    """Remove the file, if it is there: engines then refuse the device by name. Raises OSError."""
    _unlink(f"{folder}/{FILE}")


def _spec(kits: Mapping[str, ContainerKit]) -> dict[str, Any]:
    devices = [{"name": name, "containerEdits": _edits(kits[name])} for name in sorted(kits) if _is_allowed(name)]
    return {"cdiVersion": _VERSION, "kind": KIND, "devices": devices}


def _is_allowed(name: str) -> bool:
    try:
        check_device_name(name)
    except BadPath:
        return False
    return True


def _edits(kit: ContainerKit) -> dict[str, Any]:
    # The engine makes the device with the mode that is given here. So the node's own mode does not matter, and what a kit has at
    # /dev/fuse in place of the device is left out.
    major, minor = DEVICE_NUMBER
    node = {"path": DEVICE, "type": "c", "major": major, "minor": minor, "fileMode": DEVICE_MODE, "permissions": "rw"}
    return {"deviceNodes": [node], "mounts": [_mount(bind) for bind in kit.binds if bind.target != DEVICE]}


def _mount(bind: Bind) -> dict[str, Any]:
    options = ["ro" if bind.read_only else "rw", *_OPTIONS]
    return {"hostPath": bind.source, "containerPath": bind.target, "options": options}


def _content(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
