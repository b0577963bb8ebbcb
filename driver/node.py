"""Whether this node can do what the driver is for, and what to do where it cannot."""

import os
import re

from driver import fusemount
from fusermount3_proxy import mountinfo

_KERNEL = (5, 12)  # mount_setattr(2)


def problem(pods_dir: str) -> str:
    """Why mounts would not work, with the remedy, in one line; "" where they do."""
    return _kernel(os.uname().release) or _fuse() or _propagation(pods_dir)


def _kernel(release: str) -> str:
    found = re.match(r"(\d+)\.(\d+)", release)
    if found is None or (int(found[1]), int(found[2])) >= _KERNEL:
        return ""
    return f"the kernel, {release}, is older than {_KERNEL[0]}.{_KERNEL[1]}, which has mount_setattr(2): use a newer one"


def _fuse() -> str:
    with open("/proc/filesystems", encoding="ascii") as file:
        if any(line.split()[-1:] == ["fuse"] for line in file):
            return ""
    return "the kernel does not have the fuse file system: run 'modprobe fuse' on the node"


def _propagation(pods_dir: str) -> str:
    # Without kubelet there are no pods, and volumes of `volume add` have a shared root of their own.
    if not os.path.isdir(pods_dir):
        return ""
    mount = mountinfo.holding(fusemount.mount_table(), os.fsencode(os.path.realpath(pods_dir)))
    if mount is None or mount.shared:
        return ""
    where = os.fsdecode(mount.path)
    return (
        f"{pods_dir} lies on the mount {where}, which is not shared, so that no container would see a mount: run "
        f"'mount --make-rshared {where}' on the node, and give the driver's container mountPropagation: Bidirectional"
    )
