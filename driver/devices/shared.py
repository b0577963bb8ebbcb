"""What all allocations of fuse devices use."""

from dataclasses import dataclass

from driver.devices.containers import Containers
from driver.devices.records import DeviceRecords
from driver.devices.visits import Visits
from driver.linux.filewatch import FileWatch
from driver.mounts.workspace import Workspace


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
