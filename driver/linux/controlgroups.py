"""Moves processes out of the control groups of the driver's container (cgroups(7)).

A process that waits for an answer of a FUSE program cannot be killed. While it is in a control group of the container, the container
engine cannot remove that group, and newer ones (seen: containerd 2.4 with runc 1.5) start neither the container again nor the pod that
replaces it. So a pod whose program never answers would keep the node without a driver.
"""

import os
from collections.abc import Sequence
from errno import ENODATA, EXDEV

from driver.linux import syscalls
from fusermount3_proxy.wire import mountinfo

_NOT_OPTIONS = ("rw", "ro", "seclabel")  # super block options that are not cgroup2's


def options_of_version_2() -> list[str] | None:
    """Return the mount options of the node's cgroup2 hierarchy; None where there is none or no process shows them. Raises OSError.

    Call it before privileges are dropped. A container may see no cgroup2 mount, and then pid 1 or a later process of the node is asked.
    """
    if b"" not in _groups("self"):
        return None  # the kernel lists version 2 as soon as somebody has mounted it
    for pid in ("self", *sorted((name for name in os.listdir("/proc") if name.isdecimal()), key=int)):
        try:
            with open(f"/proc/{pid}/mountinfo", "rb") as file:
                table = mountinfo.parse(file.read())
        except OSError:  # it has ended, or has more capabilities than this process
            continue
        for mount in table:
            if mount.fstype == "cgroup2":
                return [option for option in mount.super_options.split(",") if option not in _NOT_OPTIONS]
    return None


def move_to_groups_of_init(pid: int, options: Sequence[str] | None) -> None:
    """Move a process, and what it will fork, into the control groups of pid 1; `options` are those of options_of_version_2().

    Those groups exist as long as the node runs. Where pid 1 is in this container or this pod, nothing is moved. A container sees only
    its own part of each hierarchy (of all groups), so each hierarchy is mounted once more, where nobody sees it. Raises OSError, after
    the other hierarchies, if one of them does not take the process.
    """
    ours = _groups("self")
    failure: OSError | None = None
    for controllers, path in _groups("1").items():
        own = ours.get(controllers, path)
        if path == own or (path != b"/" and os.path.dirname(path) == os.path.dirname(own)):
            continue  # the groups of a pod's containers have the same parent
        try:
            _move(pid, controllers, path, options)
        except OSError as error:
            failure = error
    if failure is not None:
        raise failure


def _groups(pid: str) -> dict[bytes, bytes]:
    """Return the group of a process in each hierarchy, by the hierarchy's controllers, which version 2 does not list."""
    with open(f"/proc/{pid}/cgroup", "rb") as file:
        fields = [line.split(b":", 2) for line in file.read().split(b"\n")]
    return {found[1]: found[2] for found in fields if len(found) == 3}


def _move(pid: int, controllers: bytes, path: bytes, options: Sequence[str] | None) -> None:
    if b".." in path.split(b"/"):
        # The group would be looked for in the part that the namespace shows, and would be another one.
        raise OSError(EXDEV, "the driver's container has a cgroup namespace of its own")
    if controllers:
        tree = syscalls.mount_detached("cgroup", os.fsdecode(controllers).split(","))
    elif options is None:
        raise OSError(ENODATA, "the mount options of cgroup2 are not known")
    else:
        # A mount of cgroup2 sets the options of the only hierarchy there is. So it must have those that are set already.
        tree = syscalls.mount_detached("cgroup2", options)
    try:
        group = os.open(b"." + path + b"/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=tree)
        try:
            os.write(group, str(pid).encode())
        finally:
            os.close(group)
    finally:
        os.close(tree)
