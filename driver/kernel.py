"""What is asked of the kernel by its version or its names, where there is no call to ask by."""

import os
import re

_HOST_PIDS = "pid:[4026531836]"  # PROC_PID_INIT_INO, <linux/proc_ns.h>


def is_at_least(release: str, version: tuple[int, int]) -> bool:
    """Whether a release (uname -r) is that version or a later one. One without numbers is taken for it."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return found is None or (int(found[1]), int(found[2])) >= version


def sees_host_pids() -> bool:
    """Whether this process is in the node's own pid namespace; True where that cannot be told."""
    try:
        return os.readlink("/proc/self/ns/pid") == _HOST_PIDS
    except OSError:
        return True
