"""One FUSE connection at one target: mounting it, asking whether it lives. takeoff.py takes it off.

Everything here blocks at most as long as the kernel works, but for what touches what a pod serves: call `is_gone` and `usage`
through calls.BoundedCall.
"""

import os
from errno import EBUSY, ECONNABORTED, EINVAL, EIO, ENOTCONN

from driver.linux import mounttable, syscalls
from driver.model.fusemount import FuseMount
from driver.model.policy import MountArguments
from driver.mounts.device import OpenDevice
from fusermount3_proxy.wire.mountinfo import Mount

# Neither may hold the word fuse: users wait for their mount with `mount | grep fuse`.
PLACEHOLDER_SOURCE = "mfcp-waiting"
_PLACEHOLDER_TYPE = "tmpfs"
_TARGET_MODE = 0o755  # of the directory beneath it


def mount_placeholder(target: str) -> str:
    """Mount what a volume is without its FUSE file system: an empty directory in which nothing can be created.

    Returns its identity (identity_at). Raises OSError, NotADirectoryError for a symlink too.

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
            _mounted(target, syscalls.device_of(directory))
            return mounttable.identity_at(target)
        except ConnectionAbortedError:
            raise
        except BaseException:
            syscalls.umount(target, syscalls.MNT_DETACH)
            raise
    finally:
        os.close(directory)


def _mounted(target: str, *beneath: str) -> str:
    """The device number of what has been mounted at `target` just now, over those of `beneath`.

    Raises OSError, ConnectionAbortedError where somebody has unmounted it on the node already: what was beneath must not be
    taken for it.
    """
    device = mounttable.device_number_at(target)
    if device in beneath:
        raise OSError(ECONNABORTED, "it was unmounted on the node", target)
    return device


def is_placeholder(mount: Mount) -> bool:
    """Whether a line of mountinfo is a placeholder."""
    return mount.fstype == _PLACEHOLDER_TYPE and mount.source == PLACEHOLDER_SOURCE.encode()


def holds_ours(stack: list[Mount], known: FuseMount | None) -> bool:
    """Return whether one of the mounts at a target (`stack`) is the driver's, whatever lies over it or beneath.

    The driver's are placeholders, the FUSE file system `known`, and one that publish would adopt: on the bare directory, as the
    Go plugin mounts it, or on top of everything.
    """
    is_known = known is not None and mounttable.contains(stack, known.device_number)
    return is_known or any(map(is_placeholder, stack)) or any(mount.is_fuse for mount in (*stack[:1], *stack[-1:]))


def mount_fd(target: str, source: bytes, fstype: bytes, flags: int, data: bytes, fd: int) -> None:
    """Mount a /dev/fuse on what is at `target`; the arguments are those of a MountArguments. Raises OSError as mount(2) does.

    Blocks as long as the program likes, where it has asked to answer INIT first.
    """
    syscalls.mount(source, target, fstype, flags, MountArguments(source, fstype, flags, data).with_fd(fd))


def mounted(opened: OpenDevice, target: str, before: str, mountpoint: bytes, arguments: MountArguments) -> FuseMount:
    """The record of what mount_fd() has mounted at `target`, on the file system `before`. Raises OSError as _mounted() does."""
    return FuseMount(
        mountpoint=mountpoint,
        # Without the placeholder there is the bare directory.
        device_number=_mounted(target, before, mounttable.device_number_at(os.path.dirname(target))),
        source=arguments.source.decode("utf-8", "replace"),
        fstype=arguments.fstype.decode("utf-8", "replace"),
        device=opened.name,
    )


def adopted(stack: list[Mount]) -> FuseMount:
    """The record of a FUSE file system that was at the target already; `stack` holds the mounts there, topmost last."""
    top = stack[-1]
    source = top.source.decode("utf-8", "replace")
    return FuseMount(top.path, top.device, source, top.fstype, None, any(is_placeholder(mount) for mount in stack))


def adopted_beneath(stack: list[Mount]) -> FuseMount | None:
    """Return the record of the topmost FUSE file system of a target that nobody knows; None where there is none, or all is foreign."""
    fuse = [i for i, mount in enumerate(stack) if mount.is_fuse]
    return adopted(stack[: fuse[-1] + 1]) if fuse and holds_ours(stack, None) else None


def is_gone(target: str, device: str) -> bool:
    """Whether the mount `device` has lost its program, or is not at `target` any more (somebody unmounted it on the node).

    Blocks as long as a program that lives does not answer. One that has something else mounted over it is not gone for all
    that is known. The copy of the mount stays open until the process ends: closing it can take longer than all the rest.
    """
    try:
        fd = mounttable.detached_copy(target)
    except FileNotFoundError:
        return True
    try:
        if mounttable.device_number_of_copy(fd, target) != device:
            return not mounttable.is_at(target, device)
        try:
            syscalls.ask_for_attributes(fd)
        except OSError as error:
            if error.errno != EIO:
                raise
            os.fstatvfs(fd)  # is not about the root, of which nothing can be asked (device_at)
    except OSError as error:
        # ECONNABORTED: the question was on its way when the connection ended.
        return error.errno in (ENOTCONN, ECONNABORTED)
    return False


def usage(target: str) -> tuple[int, ...]:
    """statvfs(3) of what is at `target`: fragment size, blocks, free and available ones, inodes, free and available ones.

    Blocks as long as the program does not answer. The copy stays open as in is_gone(). Raises OSError.
    """
    return _usage(mounttable.detached_copy(target))


def placeholder_usage(target: str, identity: str) -> tuple[int, ...] | None:
    """The same of the placeholder `identity`, which does not block; None where something else is at `target`. Raises OSError."""
    fd = os.open(target, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return _usage(fd) if syscalls.device_and_change_of(fd) == identity else None
    finally:
        os.close(fd)


def _usage(fd: int) -> tuple[int, ...]:
    said = os.fstatvfs(fd)
    return said.f_frsize, said.f_blocks, said.f_bfree, said.f_bavail, said.f_files, said.f_ffree, said.f_favail


def detach_all(target: str) -> None:
    """Take every mount off `target`, whatever it is."""
    while True:
        try:
            syscalls.umount(target, syscalls.MNT_DETACH)
        except OSError as error:
            if error.errno == EINVAL:  # not a mount point
                return
            raise


def abort_connection(place: str) -> None:
    """Abort the connection at a place, so that its program gets ENODEV although containers still hold its superblock."""
    try:
        syscalls.umount(place, syscalls.MNT_FORCE)
    except OSError as error:
        if error.errno != EBUSY:  # the caller's fd keeps it busy, on purpose
            raise
