"""What all allocations of fuse devices use."""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass

from driver.devices.containers import Containers
from driver.devices.records import DeviceRecord, DeviceRecords
from driver.devices.visits import Visits
from driver.linux.filewatch import FileWatch
from driver.linux.programinfo import program_behind
from driver.model.fusemount import FuseMount
from driver.model.peer import Peer
from driver.model.policy import DetachedArguments
from driver.mounts.workspace import Workspace
from fusermount3_proxy.wire.protocol import MountRequest, from_wire


@dataclass(frozen=True)
class Shared:
    """What all allocations use."""

    workspace: Workspace
    files: FileWatch
    visits: Visits
    records: DeviceRecords
    containers: Containers
    mounts_max: int
    may_allow_other: bool


def by_container(devices: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return device numbers by container, from pairs of both. With a name for each, those of a busy node fill no packet to a process."""
    found: dict[str, list[str]] = {}
    for number, container in devices:
        found.setdefault(container, []).append(number)
    return found


def intent(allocation: str, request: MountRequest, peer: Peer, arguments: DetachedArguments, device: str) -> DeviceRecord:
    """Return the record of what is about to be mounted; `device` is the name of its device node."""
    program = program_behind(peer.pid)
    mount = FuseMount(from_wire(request.mountpoint), "", arguments.source, arguments.fstype, device, mounter=peer.uid)
    pid = program.pids[0] if program is not None else peer.pid
    return DeviceRecord(allocation, mount, 0, "", 0, 0, pid, time.time(), False)


def shown(request: MountRequest) -> str:
    """Return the mountpoint of a request for messages."""
    return os.fsdecode(from_wire(request.mountpoint))
