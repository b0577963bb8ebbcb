"""Reads from the kernel's version and names what no system call tells."""

import os
import re

_HOST_PIDS = "pid:[4026531836]"  # PROC_PID_INIT_INO, <linux/proc_ns.h>


def is_at_least(release: str, version: tuple[int, int]) -> bool:
    """Return whether a release (uname -r) is that version or a later one. A release without numbers counts as one."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return found is None or (int(found[1]), int(found[2])) >= version


def sees_host_pids() -> bool:
    """Return whether this process is in the node's own pid namespace; True where that is not known.

    The process id tells nothing: it is not 1 where the container has an init process, or shares the pod's namespace.
    """
    try:
        return os.readlink("/proc/self/ns/pid") == _HOST_PIDS
    except OSError:
        return True
