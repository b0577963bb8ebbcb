"""One FUSE connection at one target: mounting it, asking whether it lives, taking it off.

Everything here blocks at most as long as the kernel works, but for what touches what a pod serves: call `is_gone` and `usage`
through apart.Caller, `take_off` and `remove_target` through bounded.Threads.
"""

import fcntl
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from errno import EBUSY, ECONNABORTED, EINVAL, ENOSPC, ENOTCONN

from driver import syscalls
from driver.device import DeviceNodes, Opened
from driver.logs import log
from driver.policy import KernelMount
from fusermount3_proxy import mountinfo
from fusermount3_proxy.mountinfo import Mount

# Neither may hold the word fuse: users wait for their mount with `mount | grep fuse`.
PLACEHOLDER_SOURCE = "mfcp-waiting"
_PLACEHOLDER_TYPE = "tmpfs"
_TARGET_MODE = 0o755  # of the directory beneath it

_PRIVATE_PREFIX = "private-"
_TARGET_SUFFIX = ".target"


@dataclass(frozen=True, slots=True)
class FuseMount:
    """A FUSE file system that is mounted: where the program asked for it, its device number, what mount tables show.

    `node` is its device node's name; None for one that this driver did not make (it was there before). `on_placeholder`
    is False where such a one lies on the bare directory.
    """

    mountpoint: bytes
    device: str
    source: str
    fstype: str
    node: str | None
    on_placeholder: bool = True


class Workspace:
    """The driver's own places for mounting: device nodes, and a private tmpfs whose mounts reach nobody else."""

    def __init__(self, folder: str) -> None:
        """Make them below `folder`, and clear away what a driver that was killed left there. Raises OSError."""
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self.nodes = DeviceNodes(f"{folder}/dev")
        for name in os.listdir(folder):
            if name.startswith(_PRIVATE_PREFIX):
                _remove_private(f"{folder}/{name}")
        self._private = f"{folder}/{_PRIVATE_PREFIX}{secrets.token_hex(8)}"
        os.mkdir(self._private, 0o700)
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
        syscalls.mount("mfcp-private", self._private, "tmpfs", flags, "mode=0700")
        syscalls.mount(None, self._private, None, syscalls.MS_PRIVATE)
        # Held as long as the process lives: it tells another driver, or the next one, whose this is.
        self._owned = os.open(self._private, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._owned, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        """Leave nothing of it in the mount table."""
        os.close(self._owned)
        _remove_private(self._private)

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


def _remove_private(path: str) -> None:
    """Remove a private tmpfs, unless a driver that runs owns it."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if mounts_at(path):
            for name in os.listdir(fd):
                if name.endswith(_TARGET_SUFFIX):
                    _finish_take_off(f"{path}/{name.removesuffix(_TARGET_SUFFIX)}", os.readlink(name, dir_fd=fd))
            # What is mounted in it are peers of mounts in containers: unmounted as they are, they would take those along.
            syscalls.mount_setattr(fd, propagation=syscalls.MS_PRIVATE, recursive=True)
    except BlockingIOError:
        return
    finally:
        os.close(fd)
    detach_all(path)
    os.rmdir(path)


def _finish_take_off(place: str, target: str) -> None:
    """Do the rest of a take_off() whose driver was killed. Otherwise containers that started after the mount keep it for ever."""
    try:
        here = mounts_at(place)
        if not here or not here[-1].is_fuse:
            return  # not begun; or the placeholder is over it, and all see that
        if device_at(target) == here[-1].device:
            return  # still at the target, which the next driver looks after
        fuse = os.open(place, os.O_PATH | os.O_CLOEXEC)
        try:
            _abort(place)
            if not mounts_at(target):
                mount_placeholder(target)
            syscalls.mount(target, place, None, syscalls.MS_BIND)
        finally:
            os.close(fuse)
    except OSError as error:
        log.error(f"the mount at {target}, which a former driver was taking off, may stay in containers until they restart: {error}")


def mount_placeholder(target: str) -> str:
    """Mount what a volume is without its FUSE file system: an empty directory in which nothing can be created.

    Returns its device number. Raises OSError, NotADirectoryError for a symlink too.

    With one inode, what an application writes too early fails with ENOSPC instead of landing on the node's disk. The
    mode lets programs mount on it that first ask whether they could write.
    """
    # A symlink would lead both calls elsewhere.
    directory = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        path = f"/proc/self/fd/{directory}"
        os.chmod(path, _TARGET_MODE)
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
        syscalls.mount(PLACEHOLDER_SOURCE, path, _PLACEHOLDER_TYPE, flags, "nr_inodes=1,size=4k,mode=0777")
        try:
            return _mounted(target, syscalls.device_of(directory))
        except ConnectionAbortedError:
            raise
        except OSError:
            syscalls.umount(target, syscalls.MNT_DETACH)
            raise
    finally:
        os.close(directory)


def _mounted(target: str, *beneath: str) -> str:
    """The device number of what has been mounted at `target` just now, over those of `beneath`.

    Raises OSError, ConnectionAbortedError where somebody has unmounted it on the node already: what was beneath must not be
    taken for it.
    """
    device = device_at(target)
    if device in beneath:
        raise OSError(ECONNABORTED, "it was unmounted on the node", target)
    return device


def is_placeholder(mount: Mount) -> bool:
    """Whether a line of mountinfo is a placeholder."""
    return mount.fstype == _PLACEHOLDER_TYPE and mount.source == PLACEHOLDER_SOURCE.encode()


def mount_fd(target: str, source: bytes, fstype: bytes, flags: int, data: bytes, fd: int) -> None:
    """Mount a /dev/fuse on what is at `target`; the arguments are those of a KernelMount. Raises OSError as mount(2) does.

    Blocks as long as the program likes, where it has asked to answer INIT first.
    """
    syscalls.mount(source, target, fstype, flags, KernelMount(source, fstype, flags, data).with_fd(fd))


def record_of(opened: Opened, target: str, before: str, mountpoint: bytes, kernel: KernelMount) -> FuseMount:
    """The record of what mount_fd() has mounted at `target`, on the file system `before`. Raises OSError as _mounted() does."""
    return FuseMount(
        mountpoint=mountpoint,
        # Without the placeholder there is the bare directory.
        device=_mounted(target, before, device_at(os.path.dirname(target))),
        source=kernel.source.decode("utf-8", "replace"),
        fstype=kernel.fstype.decode("utf-8", "replace"),
        node=opened.node,
    )


def mount_fuse(nodes: DeviceNodes, target: str, mountpoint: bytes, kernel: KernelMount) -> tuple[FuseMount, int]:
    """Mount a new FUSE connection on what is at `target`. Returns its record and the fd to serve it by.

    Raises OSError as mount(2) and _mounted() do; then nothing is left behind.
    """
    before = device_at(target)
    opened = nodes.open()
    is_mounted = False
    try:
        mount_fd(target, kernel.source, kernel.fstype, kernel.flags, kernel.data, opened.fd)
        is_mounted = True
        return record_of(opened, target, before, mountpoint, kernel), opened.fd
    except BaseException as error:
        try:
            if is_mounted and not isinstance(error, ConnectionAbortedError):
                syscalls.umount(target, syscalls.MNT_DETACH)
        finally:
            nodes.discard(opened)
        raise


def adopt(stack: list[Mount]) -> FuseMount:
    """The record of a FUSE file system that was at the target already; `stack` holds the mounts there, topmost last."""
    top = stack[-1]
    source = top.source.decode("utf-8", "replace")
    return FuseMount(top.path, top.device, source, top.fstype, None, any(is_placeholder(mount) for mount in stack))


def device_at(target: str) -> str:
    """MAJOR:MINOR of the topmost file system at `target`, without asking it."""
    fd = os.open(target, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return syscalls.device_of(fd)
    finally:
        os.close(fd)


def is_gone(target: str, device: str) -> bool:
    """Whether the mount `device` has lost its program, or is not at `target` any more (somebody unmounted it on the node).

    Blocks as long as a program that lives does not answer.
    """
    try:
        fd = _copy_of(target)
    except FileNotFoundError:
        return True
    try:
        if syscalls.device_of(fd) != device:
            return True
        syscalls.ask_for_attributes(fd)
    except OSError as error:
        # ECONNABORTED: the question was on its way when the connection ended.
        return error.errno in (ENOTCONN, ECONNABORTED)
    finally:
        os.close(fd)
    return False


def usage(target: str) -> tuple[int, ...]:
    """statvfs(3) of what is at `target`: fragment size, blocks, free and available ones, inodes, free and available ones.

    Blocks as long as the program does not answer. Raises OSError.
    """
    fd = _copy_of(target)
    try:
        return _usage(fd)
    finally:
        os.close(fd)


def placeholders_usage(target: str, device: str) -> tuple[int, ...] | None:
    """The same of the placeholder `device`, which does not block; None where something else is at `target`. Raises OSError."""
    fd = os.open(target, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return _usage(fd) if syscalls.device_of(fd) == device else None
    finally:
        os.close(fd)


def _usage(fd: int) -> tuple[int, ...]:
    said = os.fstatvfs(fd)
    return said.f_frsize, said.f_blocks, said.f_bfree, said.f_bavail, said.f_files, said.f_ffree, said.f_favail


def _copy_of(target: str) -> int:
    """A copy of the mount at `target` that is nowhere: a question through it does not make the mount itself busy.

    Otherwise a pod's own `fusermount3 -u` would fail while the driver asks, and for ever where the program never answers.
    """
    return syscalls.open_tree(target, syscalls.OPEN_TREE_CLONE | syscalls.AT_SYMLINK_NOFOLLOW)


def take_off(workspace: Workspace, target: str, mount: FuseMount, plain: bool, tell: Callable[[str], object] = log.error) -> None:
    """Unmount the FUSE file system `mount` from `target`, in every container that sees it; the placeholder stays.

    `plain` is umount(8) without -l: OSError with EBUSY where a copy of it in the propagation tree is in use, and nothing
    has changed. Otherwise it is detached, whoever uses it. Either way the connection is aborted at the end.

    A container that started after the mount has bound the FUSE mount itself and would keep it for ever. So it gets the
    placeholder mounted over it, through a peer of that FUSE mount. Once the mount is off the target nothing is raised any
    more: that this failed then is what `tell` is called with.
    """
    place = workspace.new_place(target)
    try:
        fuse, is_attached = _peer(target, place)
        try:
            if syscalls.device_of(fuse) != mount.device:
                return  # somebody unmounted it on the node
            try:
                syscalls.umount(target, 0 if plain else syscalls.MNT_DETACH)
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
        return _copy_of(target), False
    return os.open(place, os.O_PATH | os.O_CLOEXEC), True


def _cover(target: str, place: str, fuse: int, on_placeholder: bool) -> None:
    """Abort the connection whose mount is at `place`, which `fuse` is open on, and mount the placeholder over its peers."""
    _abort(place)
    if not on_placeholder:
        mount_placeholder(target)
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


def remove_target(workspace: Workspace, target: str, mount: FuseMount | None, tell: Callable[[str], object] = log.error) -> None:
    """Take everything off `target`, `mount` as take_off() does, and remove the directory; one that is gone is no error.

    Raises OSError with ENOTEMPTY where something lies in it: rmdir deletes no file.
    """
    try:
        if mount is not None:
            take_off(workspace, target, mount, False, tell)
        _detach_and_remove(target)
    except FileNotFoundError:
        pass


def _detach_and_remove(target: str) -> None:
    """Mostly there is one mount, and the directory can be removed when it is off."""
    try:
        syscalls.umount(target, syscalls.MNT_DETACH)
        os.rmdir(target)
        return
    except OSError as error:
        if error.errno not in (EINVAL, EBUSY):  # nothing mounted; more than one
            raise
    detach_all(target)
    os.rmdir(target)


def detach_all(target: str) -> None:
    """Take every mount off `target`, whatever it is."""
    while True:
        try:
            syscalls.umount(target, syscalls.MNT_DETACH)
        except OSError as error:
            if error.errno == EINVAL:  # not a mount point
                return
            raise


def mounts_at(target: str, by_path: dict[bytes, list[Mount]] | None = None) -> list[Mount]:
    """The mounts at `target`, topmost last, without touching any of them.

    `by_path` is what mounts_by_path() returned, for asking about many targets.
    """
    if by_path is not None and (path := os.fsencode(target)) in by_path:
        return mountinfo.stack(by_path[path], path)  # no part of the way was a link
    folder, name = os.path.split(target)
    path = os.fsencode(f"{os.path.realpath(folder)}/{name}")
    return mountinfo.stack(mount_table() if by_path is None else by_path.get(path, []), path)


def mounts_by_path() -> dict[bytes, list[Mount]]:
    """This process's mounts by mount point."""
    found: dict[bytes, list[Mount]] = {}
    for mount in mount_table():
        found.setdefault(mount.path, []).append(mount)
    return found


def mount_table() -> list[Mount]:
    """This process's mountinfo."""
    with open("/proc/self/mountinfo", "rb") as file:
        return mountinfo.parse(file.read())
