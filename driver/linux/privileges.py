"""Reduces the driver's privileges to those that it uses."""

import os
from collections.abc import Callable
from typing import TypeVar

import prctl

T = TypeVar("T")

_USED = {
    "CAP_SYS_ADMIN": prctl.CAP_SYS_ADMIN,  # mount(2), umount2(2) and their relatives
    "CAP_MKNOD": prctl.CAP_MKNOD,  # a device node for each mount
    "CAP_DAC_OVERRIDE": prctl.CAP_DAC_OVERRIDE,  # sockets in an emptyDir of any owner and mode
    "CAP_CHOWN": prctl.CAP_CHOWN,  # a placeholder that an application has given away
    "CAP_FOWNER": prctl.CAP_FOWNER,  # removing those sockets if the pod has made the emptyDir sticky
}

# What the processes use that enter the mount namespace of a container (driver/devices/namespace.py).
_FOR_NAMESPACES = {
    "CAP_SYS_ADMIN": prctl.CAP_SYS_ADMIN,  # setns(2), and mounting
    "CAP_SYS_PTRACE": prctl.CAP_SYS_PTRACE,  # /proc/PID/ns of a process of another user
    "CAP_SYS_CHROOT": prctl.CAP_SYS_CHROOT,  # setns(2) of a mount namespace
    "CAP_DAC_READ_SEARCH": prctl.CAP_DAC_READ_SEARCH,  # opening a mountpoint again after a restart of the driver
    "CAP_SETUID": prctl.CAP_SETUID,  # asking a FUSE program as the user who has mounted it
    "CAP_SETGID": prctl.CAP_SETGID,
}


def drop_unused() -> None:
    """Drop the capabilities that the driver does not use, and every way to get others. Raises OSError.

    Call it before there are threads: capabilities belong to a thread, and this drops those of the calling one.
    """
    _keep(_USED)


def keep_for_namespaces() -> None:
    """Drop what a process does not use that enters the namespaces of containers, as drop_unused() does. Raises OSError.

    From now on nobody without capabilities on the node can look into this process or into those that it forks: in the user namespace
    of a container they would be that container's root's to trace (ptrace(2)).
    """
    _keep(_FOR_NAMESPACES)
    prctl.set_dumpable(0)


def _keep(used: dict[str, int]) -> None:
    for capability in prctl.ALL_CAPS:
        if capability not in used.values():
            try:
                prctl.capbset_drop(capability)
            except OSError:
                # The kernel does not know it, or CAP_SETPCAP is missing. no_new_privs, below, works without that.
                pass
    prctl.cap_inheritable.limit()
    prctl.cap_effective.limit(*used.values())
    prctl.cap_permitted.limit(*used.values())
    prctl.set_no_new_privs(True)


def run_as_unused_uid(work: Callable[[], T]) -> T:
    """Return the result of `work()`, run with an effective uid that no other process has.

    The kernel has limits for each user, so what `work()` makes counts against a limit that nobody else uses up. The uid is
    random and is not reported anywhere, because a pod that runs as root could become any user that it can name. If this
    process may not change its uid, or if its user namespace has no such uid, `work()` runs with the uid that it has.

    Call it before drop_unused() and before there are threads.
    """
    if os.geteuid() != 0:
        return work()
    uid = 1 << 31 | int.from_bytes(os.urandom(4), "little") >> 2  # above the uids of people and the usual ranges of user namespaces
    died_with, dumpable = prctl.get_pdeathsig(), prctl.get_dumpable()
    try:
        os.seteuid(uid)
    except OSError:
        return work()
    try:
        return work()
    finally:
        os.seteuid(0)
        # The kernel clears both when the effective uid changes (prctl(2)).
        prctl.set_dumpable(dumpable)
        prctl.set_pdeathsig(died_with)


def missing_capabilities() -> list[str]:
    """Return the names of the capabilities that the driver uses and that this process does not have."""
    return _missing(_USED)


def missing_for_namespaces() -> list[str]:
    """Return the names of the capabilities that this process lacks of those that keep_for_namespaces() would keep.

    Call it before drop_unused().
    """
    return _missing(_FOR_NAMESPACES)


def _missing(used: dict[str, int]) -> list[str]:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    return [name for name, capability in used.items() if not effective >> capability & 1]
