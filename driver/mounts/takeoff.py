"""Taking the FUSE file system off a target, everywhere it is seen, and the driver's own places that this needs.

What touches what a pod serves may block: call `take_off` and `remove_target` through bounded.Threads.
"""

import os
import time
from collections.abc import Callable
from errno import EBUSY, EINVAL, ENOSPC

from driver.linux import mounttable, syscalls
from driver.model.fusemount import FuseMount
from driver.mounts import fusemount
from driver.mounts.workspace import Workspace, drop_place
from driver.observe.logs import log
from fusermount3_proxy.wire.mountinfo import Mount

# Whoever finds a mount by its path keeps it busy until the call ends, and a copy of it is made (mounttable.detached_copy) behind
# all that is mounted and unmounted just then. Seconds.
_BUSY_RETRIES = (0.001, 0.004, 0.015, 0.04)


def take_off(workspace: Workspace, target: str, mount: FuseMount, plain: bool, tell: Callable[[str], object] = log.error) -> None:
    """Unmount the FUSE file system `mount` from `target`, in every container that sees it; the placeholder stays.

    `plain` is umount(8) without -l: OSError with EBUSY where a copy of it in the propagation tree is in use, and nothing
    has changed. Otherwise it is detached, whoever uses it. Either way the connection is aborted at the end.

    A container that started after the mount has bound the FUSE mount itself and would keep it for ever. So it gets the
    placeholder mounted over it, through a peer of that FUSE mount. Once the mount is off the target nothing is raised any
    more: that this failed then is what `tell` is called with. Where something else is mounted over it, that is EBUSY.
    """
    place = workspace.new_place(target)
    try:
        fuse, is_attached = _peer(target, place)
        try:
            if mounttable.device_number_of_copy(fuse, target) != mount.device_number:
                if mounttable.is_at(target, mount.device_number):
                    raise OSError(EBUSY, "something else is mounted over it", target)
                return  # somebody unmounted it on the node
            try:
                if plain:
                    _unmount_unless_busy(target)
                else:
                    syscalls.umount(target, syscalls.MNT_DETACH)
            except OSError as error:
                if error.errno != EINVAL:
                    raise
                return  # somebody did just now
            try:
                if not is_attached:
                    syscalls.move_mount(fuse, place)  # there is room for one more now
                _cover(target, place, fuse, mount.on_placeholder)
            except OSError as error:
                # A mount namespace is full: this one, or the pod's own, whose copies get the placeholder all or none.
                tell(f"the mount is off {target}, and may stay in containers until they restart: {error.strerror}")
        finally:
            os.close(fuse)
    finally:
        drop_place(place)


def _unmount_unless_busy(target: str) -> None:
    """Unmount, though kubelet or another part of the driver should look at it just now. Raises OSError."""
    for wait in _BUSY_RETRIES:
        try:
            syscalls.umount(target, 0)
            return
        except OSError as error:
            if error.errno != EBUSY:
                raise
        time.sleep(wait)
    syscalls.umount(target, 0)


def _peer(target: str, place: str) -> tuple[int, bool]:
    """A peer of the mount at `target`: what is mounted on it reaches all that have bound that one. Raises OSError.

    Returns an fd of it, and whether it is mounted at `place`; where there is no room for one more mount it is nowhere yet,
    and ends with the fd (and so with a driver that is killed: no next one can finish).
    """
    try:
        syscalls.mount(target, place, None, syscalls.MS_BIND)
    except OSError as error:
        if error.errno != ENOSPC:
            raise
        return mounttable.detached_copy(target), False
    return os.open(place, os.O_PATH | os.O_CLOEXEC), True


def _cover(target: str, place: str, fuse: int, on_placeholder: bool) -> None:
    """Abort the connection whose mount is at `place`, which `fuse` is open on, and mount the placeholder over its peers."""
    fusemount.abort_connection(place)
    if not on_placeholder:
        fusemount.mount_placeholder(target)
    # Over every container's own bind, and their next mount reaches them: they are in its peer group now.
    syscalls.mount(target, place, None, syscalls.MS_BIND)
    # Private, or unmounting what is on it here would unmount it from the containers too.
    syscalls.mount_setattr(fuse, propagation=syscalls.MS_PRIVATE)


class NotOurs(OSError):
    """A target cannot be removed: what is mounted there was mounted by somebody else, and stays."""

    def __init__(self, target: str, mount: Mount) -> None:
        super().__init__(EBUSY, f"a {mount.fstype} file system of something else is mounted there", target)
        self.mount = mount


def remove_target(workspace: Workspace, target: str, mount: FuseMount | None, tell: Callable[[str], object] = log.error) -> None:
    """Take everything off `target`, `mount` as take_off() does, and remove the directory; one that is gone is no error.

    Raises NotOurs, and changes nothing, where something is mounted there and none of it is the driver's. Raises OSError with
    ENOTEMPTY where something lies in the directory: rmdir deletes no file.
    """
    try:
        stack = mounttable.mounts_at(target)
        if stack and not fusemount.holds_ours(stack, mount):
            raise NotOurs(target, stack[-1])
        if mount is not None and mounttable.contains(stack, mount.device_number):
            _uncover(target, mount.device_number)
            take_off(workspace, target, mount, False, tell)
        fusemount.detach_all(target)
        os.rmdir(target)
    except FileNotFoundError:
        pass


def remove_placeholder(target: str) -> None:
    """Do what remove_target() does, where the placeholder is on top. Raises OSError.

    The mount table, which is long where there are many volumes, is not read: mostly nothing lies beneath.
    """
    try:
        syscalls.umount(target, syscalls.MNT_DETACH)
        try:
            os.rmdir(target)
        except OSError as error:
            if error.errno != EBUSY:
                raise
            fusemount.detach_all(target)  # what was there before the placeholder goes with it
            os.rmdir(target)
    except FileNotFoundError:
        pass


def _uncover(target: str, device: str) -> None:
    """Take off what somebody has mounted over the file system `device`."""
    while mounttable.device_number_at(target) != device and mounttable.is_at(target, device):
        syscalls.umount(target, syscalls.MNT_DETACH)
