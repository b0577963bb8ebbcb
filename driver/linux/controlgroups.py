"""Moves processes out of the control groups of the driver's container (cgroups(7)).

A process that waits for an answer of a FUSE program cannot be killed. While it is in a control group of the container, the container
engine cannot remove that group, and newer ones (seen: containerd 2.4 with runc 1.5) start neither the container again nor the pod that
replaces it. So a pod whose program never answers would keep the node without a driver.
"""

import os

from driver.linux import features, syscalls


def move_to_groups_of_init(pid: int) -> None:
    """Move a process, and what it will fork, into the control groups of the node's pid 1. Raises OSError if one does not take it.

    Those groups exist as long as the node runs. Does nothing where pid 1 is a process of this container. A container sees only its
    own part of each hierarchy (of all groups), so each hierarchy is mounted once more, where nobody sees it.
    """
    if not features.sees_host_pids():
        return
    failure: OSError | None = None
    with open("/proc/1/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            try:
                _move(pid, controllers, path)
            except OSError as error:
                failure = error  # the other hierarchies count all the same
    if failure is not None:
        raise failure


def _move(pid: int, controllers: str, path: str) -> None:
    """Move a process into the group `path` of the hierarchy that has these controllers; version 2 has no list of them."""
    tree = syscalls.mount_detached("cgroup", controllers.split(",")) if controllers else syscalls.mount_detached("cgroup2", [])
    try:
        group = os.open(f".{path}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=tree)
        try:
            os.write(group, str(pid).encode())
        finally:
            os.close(group)
    finally:
        os.close(tree)
