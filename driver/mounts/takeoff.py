"""Detaches a FUSE mount from a target path in every container that sees it, and removes targets.

A mount at the target propagates to the containers that bound the target before the mount. A container that started after the mount
has bound the FUSE mount itself: unmounting at the target does not reach it. take_off() does.

take_off(), remove_target() and remove_placeholder() can block as long as a FUSE program likes: call them through blocking.threads.
"""

import os
import time
from collections.abc import Callable
from errno import EBUSY, EINVAL, ENOSPC

from driver.linux import mounttable, syscalls
from driver.model.fusemount import FuseMount
from driver.model.state import Detach
from driver.mounts import fusemount
from driver.mounts.workspace import Workspace, remove_private_mountpoint
from driver.observe.logs import log
from fusermount3_proxy.wire.mountinfo import Mount

# Seconds between the attempts of a plain unmount. A path walk of another process keeps the mount busy for a moment, and so does
# the driver's own detached_copy() while it waits for the kernel's lock on all mount tables.
_BUSY_RETRIES = (0.001, 0.004, 0.015, 0.04)


def take_off(workspace: Workspace, target: str, mount: FuseMount, how: Detach, warn: Callable[[str], object] = log.error) -> None:
    """Detach the FUSE mount `mount` from `target` in every container; the placeholder stays.

    A plain unmount raises OSError with EBUSY where a copy of the mount in the propagation tree is in use, and changes nothing then.
    The connection is aborted at the end, unless the mount is detached lazily. Raises OSError with EBUSY where something else is
    mounted over the mount.

    A container that started after the mount would keep it for ever. To cover it there, the FUSE mount is bound at a private
    mountpoint, and the placeholder is mounted on that bind: propagation carries it into the containers. Once the mount is off
    the target, nothing is raised any more: `warn` is called with what failed.
    """
    is_lazy = how is Detach.LAZY
    private = workspace.new_private_mountpoint(target, is_lazy)
    try:
        fuse, is_attached = _peer(target, private)
        try:
            if mounttable.device_number_of_copy(fuse, target) != mount.device_number:
                if mounttable.is_at(target, mount.device_number):
                    raise OSError(EBUSY, "something else is mounted over it", target)
                return  # somebody has unmounted it on the node
            try:
                if how is Detach.PLAIN:
                    _unmount_unless_busy(target)
                else:
                    syscalls.umount(target, syscalls.MNT_DETACH)
            except OSError as error:
                if error.errno != EINVAL:
                    raise
                return  # somebody has unmounted it just now
            try:
                if not is_attached:
                    syscalls.move_mount(fuse, private)  # the unmount has made room for one more mount
                fusemount.cover(private, target, lacks_placeholder=not mount.on_placeholder, is_lazy=is_lazy)
                # Private from now on: otherwise unmounting the placeholder at the place would unmount it in the containers, too.
                syscalls.mount_setattr(fuse, propagation=syscalls.MS_PRIVATE)
                fusemount.restore_changed_access(target)
            except OSError as error:
                # A mount namespace is full: the driver's, or a container's.
                warn(f"the mount is off {target}, and may stay in containers until they restart: {error.strerror}")
        finally:
            os.close(fuse)
    finally:
        remove_private_mountpoint(private)


def _unmount_unless_busy(target: str) -> None:
    """Unmount, also if kubelet or another part of the driver walks the path just now. Raises OSError."""
    for wait in _BUSY_RETRIES:
        try:
            syscalls.umount(target, 0)
            return
        except OSError as error:
            if error.errno != EBUSY:
                raise
        time.sleep(wait)
    syscalls.umount(target, 0)


def _peer(target: str, private: str) -> tuple[int, bool]:
    """Make a peer of the mount at `target`: what is mounted on the peer reaches all containers that have bound that mount.

    Return an fd of the peer, and whether it is mounted at `private`. Where the mount namespace is full, the peer is a detached copy,
    which ends with its fd: if the driver is killed then, the next one cannot finish the work. Raises OSError.
    """
    try:
        syscalls.mount(target, private, None, syscalls.MS_BIND)
    except OSError as error:
        if error.errno != ENOSPC:
            raise
        return mounttable.detached_copy(target), False
    return os.open(private, os.O_PATH | os.O_CLOEXEC), True


class NotOurs(OSError):
    """Says that a target is not removed: what is mounted there was mounted by somebody else, and stays."""

    def __init__(self, target: str, mount: Mount) -> None:
        super().__init__(EBUSY, f"a {mount.fstype} file system that the driver did not mount is there", target)
        self.mount = mount


def remove_target(workspace: Workspace, target: str, mount: FuseMount | None, warn: Callable[[str], object] = log.error) -> None:
    """Unmount everything at `target`, `mount` as take_off() does, and remove the directory. A target that is gone is no error.

    Raises NotOurs, and changes nothing, where something is mounted there and none of it is the driver's. Raises OSError with
    ENOTEMPTY where the directory holds something: rmdir(2) deletes no file.
    """
    try:
        stack = mounttable.mounts_at(target)
        if stack and not fusemount.holds_ours(stack, mount):
            raise NotOurs(target, stack[-1])
        if mount is not None and mounttable.contains(stack, mount.device_number):
            _uncover(target, mount.device_number)
            take_off(workspace, target, mount, Detach.FORCED, warn)
        fusemount.detach_all(target)
        os.rmdir(target)
    except FileNotFoundError:
        pass


def remove_placeholder(target: str) -> None:
    """Remove a target whose topmost mount is the placeholder. Raises OSError as remove_target() does.

    The mount table is not read: it is long where there are many volumes, and usually nothing lies beneath the placeholder.
    """
    try:
        try:
            syscalls.umount(target, syscalls.MNT_DETACH)
            os.rmdir(target)
        except OSError as error:
            # EBUSY: something was mounted there before the placeholder. EINVAL: somebody has just unmounted it on the node.
            if error.errno not in (EBUSY, EINVAL):
                raise
            fusemount.detach_all(target)
            os.rmdir(target)
    except FileNotFoundError:
        pass


def _uncover(target: str, device: str) -> None:
    """Unmount what somebody has mounted over the file system `device`."""
    while mounttable.device_number_at(target) != device and mounttable.is_at(target, device):
        syscalls.umount(target, syscalls.MNT_DETACH)
