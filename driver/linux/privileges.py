"""The driver's privileges: what it uses, and nothing else."""

import os
from collections.abc import Callable
from typing import TypeVar

import prctl

T = TypeVar("T")

_USED = {
    "CAP_SYS_ADMIN": prctl.CAP_SYS_ADMIN,  # mount(2), umount2(2) and their relatives
    "CAP_MKNOD": prctl.CAP_MKNOD,  # a device node for each mount
    "CAP_DAC_OVERRIDE": prctl.CAP_DAC_OVERRIDE,  # sockets in an emptyDir of any owner and mode, and the way there
    "CAP_FOWNER": prctl.CAP_FOWNER,  # removing them again where the pod has made it sticky
}


def drop() -> None:
    """Keep the capabilities that are used, and no way to get others.

    Called before any thread exists, since each thread has its own. Raises OSError.
    """
    for capability in prctl.ALL_CAPS:
        if capability not in _USED.values():
            try:
                prctl.capbset_drop(capability)
            except OSError:
                pass  # unknown to this kernel, or no CAP_SETPCAP; no_new_privs below holds without it
    prctl.cap_inheritable.limit()
    prctl.cap_effective.limit(*_USED.values())
    prctl.cap_permitted.limit(*_USED.values())
    prctl.set_no_new_privs(True)


def as_unknown_user(work: Callable[[], T]) -> T:
    """The result of `work()`, which is done as a user that nobody else is: what the kernel counts by user is its own.

    Nobody learns the number: a pod may become any user that it can name. Called before drop() and any thread. Where the
    process may not do that, or its user namespace has no such users, `work()` is done as who it is.
    """
    if os.geteuid() != 0:
        return work()
    user = 1 << 31 | int.from_bytes(os.urandom(4), "little") >> 2  # neither a person's nor a usual range for user namespaces
    died_with, dumpable = prctl.get_pdeathsig(), prctl.get_dumpable()
    try:
        os.seteuid(user)
    except OSError:
        return work()
    try:
        return work()
    finally:
        os.seteuid(0)
        # The change of users has cleared both.
        prctl.set_dumpable(dumpable)
        prctl.set_pdeathsig(died_with)


def missing() -> list[str]:
    """The names of those that are used and that this process does not have."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    return [name for name, capability in _USED.items() if not effective >> capability & 1]
