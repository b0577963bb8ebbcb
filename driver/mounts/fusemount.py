"""The system calls at one target path: its placeholder, its FUSE mount, and the questions about both. takeoff.py detaches the mount.

is_gone() and usage() ask the FUSE program: call them through blocking.calls. mount_fd() can block, too (attempt.py).
"""

import os
import stat
from errno import EACCES, EBUSY, ECONNABORTED, EINVAL, EIO, ENODATA, ENOTCONN, EOPNOTSUPP, EPERM

from driver.linux import mounttable, syscalls
from driver.model.fusemount import FuseMount
from driver.model.policy import MountArguments
from driver.mounts.device import OpenDevice
from fusermount3_proxy.wire.mountinfo import PLACEHOLDER_SOURCE, PLACEHOLDER_TYPE, Mount, is_placeholder

# Neither may hold the word fuse: users wait for their mount with `mount | grep fuse`.
ROOT = "root directory"  # stands for a path in errors of usage()
_PLACEHOLDER_MODE = 0o777
_PLACEHOLDER_OWNER = 0, 0  # uid and gid
_ACL = "system.posix_acl_access"  # acl(5)
_TARGET_MODE = 0o755  # of the directory beneath it


def mount_placeholder(target: str) -> str:
    """Mount the placeholder: an empty tmpfs in which nothing can be created. Return its identity (mounttable.identity_at).

    Raises OSError, and NotADirectoryError where the target is a file or a symlink.

    The tmpfs has one inode, so a write that comes before the FUSE mount fails with ENOSPC and does not land on the node's disk. Its
    mode lets programs mount there that first check whether they may write.
    """
    # A symlink would lead both calls elsewhere.
    directory = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        path = f"/proc/self/fd/{directory}"
        os.chmod(path, _TARGET_MODE)
        # Not noexec: Podman keeps the flags that it finds when it makes a container, and would give noexec to later FUSE mounts.
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
        uid, gid = _PLACEHOLDER_OWNER
        data = f"nr_inodes=1,size=4k,mode={_PLACEHOLDER_MODE:o},uid={uid},gid={gid}"
        syscalls.mount(PLACEHOLDER_SOURCE, path, PLACEHOLDER_TYPE, flags, data)
        try:
            identity = mounttable.identity_at(target)
            _check_mounted(target, mounttable.device_of_identity(identity), syscalls.device_of(directory))
            return identity
        except ConnectionAbortedError:
            raise
        except BaseException:
            syscalls.umount(target, syscalls.MNT_DETACH)
            raise
    finally:
        os.close(directory)


def is_untouched(target: str, device: str) -> bool:
    """Return whether the placeholder `device` is at `target`, with its owner and mode and without an ACL. Raises OSError."""
    fd = os.open(target, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return syscalls.device_of(fd) == device and _has_usual_access(fd) and _ACL not in os.listxattr(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _has_usual_access_at(target: str) -> bool:
    """Return whether what is at `target` has the owner and the mode of a placeholder. Asks no file system. Raises OSError."""
    fd = os.open(target, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return _has_usual_access(fd)
    finally:
        os.close(fd)


def _has_usual_access(fd: int) -> bool:
    *owner, mode = syscalls.access_of(fd)
    return (*owner, stat.S_IMODE(mode)) == (*_PLACEHOLDER_OWNER, _PLACEHOLDER_MODE)


def restore_access(target: str) -> None:
    """Give the placeholder at `target` its owner and mode again, and remove its ACL. Does nothing where something else is there.

    Raises OSError. Root of an application's container owns what it sees at the path, and may change all of this. FUSE programs of
    other users would refuse the path then. Blocks as long as an application likes (blocking/directories.py says how).
    """
    fd = os.open(target, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        stack = mounttable.mounts_at(target)
        # What is changed must be the placeholder: a FUSE program would be asked, and a directory of the node is not the driver's.
        if stack and is_placeholder(stack[-1]) and stack[-1].device == syscalls.device_of(fd):
            path = f"/proc/self/fd/{fd}"
            try:
                os.removexattr(path, _ACL)
            except OSError as error:
                if error.errno not in (ENODATA, EOPNOTSUPP):  # there is none, or the kernel has none for tmpfs
                    raise
            os.chmod(path, _PLACEHOLDER_MODE)
            os.chown(path, *_PLACEHOLDER_OWNER)  # last: it may lack CAP_CHOWN under an old unit file, and the mode counts more
    finally:
        os.close(fd)


def restore_changed_access(target: str) -> None:
    """Do what restore_access() does where owner or mode have changed. A failure is left to the next republish, which reports it."""
    try:
        if not _has_usual_access_at(target):
            restore_access(target)
    except OSError:
        pass


def _check_mounted(target: str, device: str, *beneath: str) -> None:
    """Raise ConnectionAbortedError if `device`, which was read at `target` after a mount, is one of the file systems `beneath` it.

    Then somebody has unmounted the new mount on the node already.
    """
    if device in beneath:
        raise OSError(ECONNABORTED, "somebody has unmounted it on the node", target)


def holds_ours(stack: list[Mount], known: FuseMount | None) -> bool:
    """Return whether one of the mounts at a target (`stack`, topmost last) is the driver's, whatever lies over it or beneath.

    The driver's are placeholders, the FUSE file system `known`, and a FUSE file system that publish would adopt: one on the bare
    directory, as the Go plugin mounts it, or one on top of everything.
    """
    is_known = known is not None and mounttable.contains(stack, known.device_number)
    return is_known or any(map(is_placeholder, stack)) or any(mount.is_fuse for mount in (*stack[:1], *stack[-1:]))


def mount_fd(target: str, source: bytes, fstype: bytes, flags: int, data: bytes, fd: int) -> None:
    """Mount the /dev/fuse `fd` on what is at `target`; the other arguments are the fields of MountArguments.

    Raises OSError as mount(2) does. Blocks as long as an application or the FUSE program likes (attempt.py).
    """
    restore_changed_access(target)
    syscalls.mount(source, target, fstype, flags, MountArguments(source, fstype, flags, data).with_fd(fd))


def mounted(opened: OpenDevice, target: str, before: str, mountpoint: bytes, arguments: MountArguments) -> FuseMount:
    """Return what mount_fd() has mounted at `target`, on the file system `before`. Raises OSError as _check_mounted() does."""
    device_number = mounttable.device_number_at(target)
    # Without the placeholder there is the bare directory.
    _check_mounted(target, device_number, before, mounttable.device_number_at(os.path.dirname(target)))
    return FuseMount(
        mountpoint=mountpoint,
        device_number=device_number,
        source=arguments.source.decode("utf-8", "replace"),
        fstype=arguments.fstype.decode("utf-8", "replace"),
        device=opened.name,
    )


def adopted(stack: list[Mount]) -> FuseMount:
    """Return the FUSE mount that another driver has made at a target. It is the topmost of `stack`, which has the last one topmost."""
    top = stack[-1]
    source = top.source.decode("utf-8", "replace")
    return FuseMount(top.path, top.device, source, top.fstype, None, any(is_placeholder(mount) for mount in stack))


def adopted_beneath(stack: list[Mount]) -> FuseMount | None:
    """Return the topmost FUSE mount of a target without a volume; None where there is none, or where nothing is the driver's."""
    fuse = [i for i, mount in enumerate(stack) if mount.is_fuse]
    return adopted(stack[: fuse[-1] + 1]) if fuse and holds_ours(stack, None) else None


def is_gone(target: str, device: str) -> bool:
    """Return whether the mount `device` has lost its program, or is not at `target` any more.

    Blocks as long as a living program does not answer. A mount that is covered by another one counts as not gone. The copy of the
    mount stays open until this process ends: closing it can take longer than all the rest (a grace period of RCU).
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
            os.fstatvfs(fd)  # asks nothing of the root, which is a bad inode here (mounttable._device_number)
    except OSError as error:
        # ECONNABORTED: the connection ended while the question was on its way.
        return error.errno in (ENOTCONN, ECONNABORTED)
    return False


def usage(target: str) -> tuple[int, ...]:
    """Return statvfs(3) of what is at `target`: fragment size; blocks, free and available ones; inodes, free and available ones.

    Blocks as long as the FUSE program does not answer. The copy stays open as in is_gone(). Raises OSError, with the filename ROOT
    where the root directory cannot be used.
    """
    fd = mounttable.detached_copy(target)
    try:
        syscalls.ask_for_attributes(fd)
    except OSError as error:
        if error.errno not in (ENOTCONN, EACCES, EPERM):  # a program may refuse root, which the driver is
            raise OSError(error.errno, error.strerror, ROOT) from None
    return _usage(fd)


def placeholder_usage(target: str, identity: str) -> tuple[int, ...] | None:
    """Return what usage() returns, of the placeholder, and without blocking; None where something else is at `target`. Raises OSError."""
    fd = os.open(target, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return _usage(fd) if syscalls.identity_of(fd) == identity else None
    finally:
        os.close(fd)


def _usage(fd: int) -> tuple[int, ...]:
    said = os.fstatvfs(fd)
    return said.f_frsize, said.f_blocks, said.f_bfree, said.f_bavail, said.f_files, said.f_ffree, said.f_favail


def detach_all(target: str) -> None:
    """Detach every mount at `target`, whatever it is. Raises OSError."""
    while True:
        try:
            syscalls.umount(target, syscalls.MNT_DETACH)
        except OSError as error:
            if error.errno == EINVAL:  # not a mount point
                return
            raise


def cover(private: str, target: str, lacks_placeholder: bool, is_lazy: bool) -> None:
    """Mount the placeholder on `private`, a bind of the FUSE mount that was at `target`. Raises OSError.

    Propagation covers that mount in every container, then. The connection is aborted first, unless `is_lazy`. `lacks_placeholder` says
    that no placeholder is at `target`: then one is mounted. The caller has an fd of the FUSE mount.
    """
    if not is_lazy:
        _abort_connection(private)
    if lacks_placeholder:
        mount_placeholder(target)
    # It covers every container's own bind. The cover is a peer of the target's placeholder, so the next mount at the target appears
    # there, too.
    syscalls.mount(target, private, None, syscalls.MS_BIND)


def _abort_connection(private: str) -> None:
    """Abort the connection of a mount, so that its program gets ENODEV although containers still hold its superblock. Raises OSError."""
    try:
        syscalls.umount(private, syscalls.MNT_FORCE)
    except OSError as error:
        if error.errno != EBUSY:  # the caller's fd keeps the mount busy, on purpose
            raise
