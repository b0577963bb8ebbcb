"""Reads what the kernel supports from its version, where no system call reports it."""

import os
import re

_APPARMOR = "/sys/module/apparmor/parameters/enabled"
_HOST_PIDS = "pid:[4026531836]"  # PROC_PID_INIT_INO, <linux/proc_ns.h>


def is_at_least(release: str, version: tuple[int, int]) -> bool:
    """Return whether a kernel release (`uname -r`) is `version` or later; True if the release does not begin with a version."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return found is None or (int(found[1]), int(found[2])) >= version


def has_apparmor() -> bool:
    """Return whether AppArmor is on."""
    try:
        with open(_APPARMOR, encoding="ascii") as file:
            return file.read().strip() == "Y"
    except OSError:
        return False


def sees_host_pids() -> bool:
    """Return whether this process is in the node's own pid namespace; True if /proc does not show the namespace.

    The process id does not show it: in a container's own pid namespace it is not 1 if the container has an init process, or if
    the containers of the pod share a pid namespace.
    """
    try:
        return os.readlink("/proc/self/ns/pid") == _HOST_PIDS
    except OSError:
        return True
