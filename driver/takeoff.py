"""Taking the FUSE file system off a target, everywhere it is seen, and the driver's own places that this needs.

What touches what a pod serves may block: call `take_off` and `remove_target` through bounded.Threads.
"""

import fcntl
import os
import secrets
import time
from collections.abc import Callable
from errno import EBUSY, EINVAL, ENOSPC

from driver import fusemount, syscalls
from driver.device import DeviceNodes
from driver.fusemount import FuseMount
from driver.logs import log
from fusermount3_proxy.mountinfo import Mount

# Whoever finds a mount by its path keeps it busy until the call ends, and a copy of it is made (fusemount.copy_of) behind
# all that is mounted and unmounted just then. Seconds.
_BUSY_RETRIES = (0.001, 0.004, 0.015, 0.04)

_PRIVATE_PREFIX = "private-"
_TARGET_SUFFIX = ".target"


class Workspace:
    """The driver's own places for mounting: device nodes, and a private tmpfs whose mounts reach nobody else."""

    def __init__(self, folder: str, is_alone: bool) -> None:
        """Make them below `folder`. Raises OSError.

        `is_alone` says that no other driver has the folder; then what one that was killed left there is cleared away.
        """
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self.nodes = DeviceNodes(f"{folder}/dev")
        for name in os.listdir(folder) if is_alone else ():
            if name.startswith(_PRIVATE_PREFIX):
                _clear_away(f"{folder}/{name}")
        self._private = f"{folder}/{_PRIVATE_PREFIX}{secrets.token_hex(8)}"
        os.mkdir(self._private, 0o700)
        # Both are held as long as the process lives, and tell other drivers whose this is: the lock of the directory is seen
        # from every mount namespace, and that of the tmpfs by drivers of former versions, which know no other.
        self._owned = [_locked(self._private)]
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
        syscalls.mount("mfcp-private", self._private, "tmpfs", flags, "mode=0700")
        syscalls.mount(None, self._private, None, syscalls.MS_PRIVATE)
        self._owned.append(_locked(self._private))

    def close(self) -> None:
        """Leave nothing of it in the mount table."""
        for fd in self._owned:
            os.close(fd)
        _clear_away(self._private)

    def new_place(self, target: str) -> str:
        """An empty directory on the private tmpfs, for take_off() of `target`; drop_place() ends it."""
        path = f"{self._private}/{secrets.token_hex(8)}"
        # Tells the next driver, should this one be killed, what was to be taken off.
        os.symlink(target, f"{path}{_TARGET_SUFFIX}")
        os.mkdir(path, 0o700)
        return path


def drop_place(place: str) -> None:
    """Take everything off a place, and remove it."""
    detach_all(place)
    os.rmdir(place)
    os.unlink(f"{place}{_TARGET_SUFFIX}")


def _locked(path: str) -> int:
    """Return an fd of a directory, locked. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return fd


def _clear_away(path: str) -> None:
    """_remove_private(), where that can be done: what stays costs no driver its start, nor its end."""
    try:
        _remove_private(path)
    except OSError as error:
        log.warning(f"{path} is left as it is, and may be removed by hand: {error.strerror}")


def _remove_private(path: str) -> None:
    """Remove a private tmpfs, unless a driver that runs owns it. Raises OSError, also where something else has its name."""
    beneath = _open_beneath(path)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(beneath, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if fusemount.mounts_at(path):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for name in os.listdir(fd):
                if name.endswith(_TARGET_SUFFIX):
                    _finish_take_off(f"{path}/{name.removesuffix(_TARGET_SUFFIX)}", os.readlink(name, dir_fd=fd))
            # What is mounted in it are peers of mounts in containers: unmounted as they are, they would take those along.
            syscalls.mount_setattr(fd, propagation=syscalls.MS_PRIVATE, recursive=True)
        else:
            # Somebody has unmounted it, and the driver went on in the directory.
            for name in os.listdir(fd):
                if name.endswith(_TARGET_SUFFIX):
                    _remove_place(fd, name)
        detach_all(path)
        os.rmdir(path)
    except BlockingIOError:
        return
    finally:
        os.close(fd)
        os.close(beneath)


def _open_beneath(path: str) -> int:
    """Return an fd of the directory `path` itself, whatever is mounted on it here. Raises OSError."""
    folder, name = os.path.split(path)
    copy = syscalls.open_tree(folder, syscalls.OPEN_TREE_CLONE)  # of one mount, without those on it
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=copy)
    finally:
        os.close(copy)


def _remove_place(directory: int, link: str) -> None:
    """Remove a place of new_place(), and its link. Raises OSError, with EBUSY where something is mounted there.

    That stays: it is a peer of mounts in containers, and what may be on it cannot be unmounted without theirs.
    """
    try:
        os.rmdir(link.removesuffix(_TARGET_SUFFIX), dir_fd=directory)
    except FileNotFoundError:
        pass
    os.unlink(link, dir_fd=directory)


def _finish_take_off(place: str, target: str) -> None:
    """Do the rest of a take_off() whose driver was killed. Otherwise containers that started after the mount keep it for ever."""
    try:
        here = fusemount.mounts_at(place)
        if not here or not here[-1].is_fuse:
            return  # not begun; or the placeholder is over it, and all see that
        if fusemount.device_at(target) == here[-1].device:
            return  # still at the target, which the next driver looks after
        fuse = os.open(place, os.O_PATH | os.O_CLOEXEC)
        try:
            _abort(place)
            if not fusemount.mounts_at(target):
                fusemount.mount_placeholder(target)
            syscalls.mount(target, place, None, syscalls.MS_BIND)
        finally:
            os.close(fuse)
    except OSError as error:
        log.error(f"the mount at {target}, which a former driver was taking off, may stay in containers until they restart: {error}")


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
            if fusemount.device_of_copy(fuse, target) != mount.device:
                if fusemount.is_at(target, mount.device):
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
        return fusemount.copy_of(target), False
    return os.open(place, os.O_PATH | os.O_CLOEXEC), True


def _cover(target: str, place: str, fuse: int, on_placeholder: bool) -> None:
    """Abort the connection whose mount is at `place`, which `fuse` is open on, and mount the placeholder over its peers."""
    _abort(place)
    if not on_placeholder:
        fusemount.mount_placeholder(target)
    # Over every container's own bind, and their next mount reaches them: they are in its peer group now.
    syscalls.mount(target, place, None, syscalls.MS_BIND)
    # Private, or unmounting what is on it here would unmount it from the containers too.
    syscalls.mount_setattr(fuse, propagation=syscalls.MS_PRIVATE)


def _abort(place: str) -> None:
    """Abort the connection at a place, so that its program gets ENODEV although containers still hold its superblock."""
    try:
        syscalls.umount(place, syscalls.MNT_FORCE)
    except OSError as error:
        if error.errno != EBUSY:  # the caller's fd keeps it busy, on purpose
            raise


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
        stack = fusemount.mounts_at(target)
        if stack and not fusemount.holds_ours(stack, mount):
            raise NotOurs(target, stack[-1])
        if mount is not None and fusemount.is_in(stack, mount.device):
            _uncover(target, mount.device)
            take_off(workspace, target, mount, False, tell)
        detach_all(target)
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
            detach_all(target)  # what was there before the placeholder goes with it
            os.rmdir(target)
    except FileNotFoundError:
        pass


def _uncover(target: str, device: str) -> None:
    """Take off what somebody has mounted over the file system `device`."""
    while fusemount.device_at(target) != device and fusemount.is_at(target, device):
        syscalls.umount(target, syscalls.MNT_DETACH)


def detach_all(target: str) -> None:
    """Take every mount off `target`, whatever it is."""
    while True:
        try:
            syscalls.umount(target, syscalls.MNT_DETACH)
        except OSError as error:
            if error.errno == EINVAL:  # not a mount point
                return
            raise
