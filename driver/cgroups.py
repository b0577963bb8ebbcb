"""Out of the container's control groups, for a process whose children may outlive the container.

A worker whose question a FUSE program has read, and does not answer, cannot be killed. As long as it is in one of the
container's groups kubelet cannot remove that: the driver's pod would stay, and no successor be started, for as long as any
pod's program keeps silent. So it goes to the node's root groups, of which the container is a part anyway.

Where the driver does not see the node's processes (a pod without hostPID) there is no way there.
"""

import os

from driver import kernel
from fusermount3_proxy import mountinfo


def roots() -> list[int]:
    """Opens cgroup.procs of the node's root groups, cgroups(7); none where this process is in no container that sees them.

    Needs all privileges that a privileged container has.
    """
    found: list[int] = []
    try:
        if kernel.sees_host_pids() and os.readlink("/proc/self/ns/mnt") != os.readlink("/proc/1/ns/mnt"):
            with open("/proc/1/mountinfo", "rb") as file:
                for mount in mountinfo.parse(file.read()):
                    if mount.fstype in ("cgroup", "cgroup2") and mount.root == b"/":
                        found.append(os.open(b"/proc/1/root" + mount.path + b"/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
    except OSError:
        pass  # it stays where it is, in those that could not be opened
    return found


def move(pid: int, groups: list[int]) -> None:
    """Move a process, and so all that it forks from now on, to the groups that roots() has opened, and close those."""
    for fd in groups:
        try:
            os.write(fd, str(pid).encode("ascii"))
        except OSError:
            pass
        os.close(fd)
