"""The driver's privileges: what it uses, and nothing else."""

import prctl

_USED = (
    prctl.CAP_SYS_ADMIN,  # mount(2), umount2(2) and their relatives
    prctl.CAP_MKNOD,  # a device node for each mount
    prctl.CAP_DAC_OVERRIDE,  # sockets in an emptyDir of any owner and mode
    prctl.CAP_DAC_READ_SEARCH,  # the way there
    prctl.CAP_FOWNER,  # removing them again where the pod has made it sticky
)


def drop() -> None:
    """Keep the capabilities that are used, and no way to get others.

    Called before any thread exists, since each thread has its own. Raises OSError.
    """
    for capability in prctl.ALL_CAPS:
        if capability not in _USED:
            try:
                prctl.capbset_drop(capability)
            except OSError:
                pass  # unknown to this kernel, or no CAP_SETPCAP; no_new_privs below holds without it
    prctl.cap_inheritable.limit()
    prctl.cap_effective.limit(*_USED)
    prctl.cap_permitted.limit(*_USED)
    prctl.set_no_new_privs(True)
