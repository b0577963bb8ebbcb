"""Runs in one-shot processes as namespace.py does: unmounts in a container's mount namespace, and asks FUSE programs there."""

import os
import socket
from collections.abc import Sequence
from errno import EBUSY, ECONNABORTED, EINVAL, ENOTCONN

from driver.blocking.starter import WithFds
from driver.devices.namespace import DONE, REFUSED
from driver.devices.node import Node, all_pids, as_user, become, enter, enter_namespace, first_process_of
from driver.devices.peer import NotAllowed, examine
from driver.linux import syscalls
from fusermount3_proxy.wire import mountinfo
from fusermount3_proxy.wire.mountinfo import Mount

_DEAD = (ENOTCONN, ECONNABORTED)


def unmount(
    peer_pid: int, device_number: str, flags: int, is_root: bool, path: bytes | None, connection: int, kept: int
) -> tuple[object, ...]:
    """Unmount for the peer: what is mounted on the file of `kept`, or where `is_root`, the mount of `kept` itself.

    `path` is where the peer must see the mount; None where it has named the mount by its device number.
    Return (REFUSED, errno, text) or (DONE,). Raises OSError as umount2(2) does.
    """
    node = Node()
    try:
        peer = examine(node, socket.socket(fileno=connection), peer_pid)
    except NotAllowed as refused:
        return REFUSED, refused.refusal.errno, refused.refusal.text
    if path is not None and not any(each.device == device_number and each.path == path for each in peer.table):
        raise OSError(EINVAL, os.strerror(EINVAL))  # a folder above it has been renamed since it was mounted
    node.enter(peer.mounts, peer.owner, peer.is_foreign)
    _unmount(node, device_number, flags, is_root, kept)
    return (DONE,)


def detach(namespace: int, pids: Sequence[int], device_number: str, is_root: bool, kept: int) -> bool:
    """Detach a mount lazily in its mount namespace. Return False where it is not there any more. Raises OSError, EBUSY if it is covered.

    `namespace` is the number of the mount namespace, and `pids` are processes that may be in it.
    """
    node = Node()
    if enter_namespace(node, namespace, pids) is None:
        return False
    try:
        _unmount(node, device_number, syscalls.MNT_DETACH, is_root, kept)
    except OSError as error:
        if error.errno != EINVAL:
            raise
        return False
    return True


def _unmount(node: Node, device_number: str, flags: int, is_root: bool, kept: int) -> None:
    table = node.table()
    ours = _ours(table, device_number)
    if ours is None:
        raise OSError(EINVAL, os.strerror(EINVAL))
    # What somebody has mounted on top of it is not ours to take off.
    if any(each.parent_id == ours.mount_id and each.path == ours.path for each in table):
        raise OSError(EBUSY, os.strerror(EBUSY))
    # An fd of the mount keeps it busy, so only a lazy unmount works.
    node.unmount(kept, flags | syscalls.MNT_DETACH if is_root else flags)


def is_gone(namespace: int, pids: Sequence[int], device_number: str, uid: int, gid: int) -> bool:
    """Return whether the mount has lost its program, or is not in its mount namespace any more.

    Ask as the user who has mounted it (ids as the mount's user namespace has them): others get no answer without allow_other. Blocks as
    long as a program that lives does not answer. Raises OSError where nobody could be asked.
    """
    node = Node()
    if enter_namespace(node, namespace, pids) is None:
        return True
    ours = _ours(node.table(), device_number)
    if ours is None:
        return True
    fd = _open_mount(ours, uid, gid)
    become(uid, gid)
    try:
        syscalls.ask_for_attributes(fd)
    except OSError as error:
        return error.errno in _DEAD
    return False


def reopen(namespace: int, pids: Sequence[int], device_number: str, uid: int, gid: int) -> WithFds | None:
    """Return an fd of the mount itself, to unmount it by, after a restart of the driver; None where it is not there any more.

    A pidfd of the first process of the container comes with it, where the container has a pid namespace of its own. `uid` and `gid` are
    as in is_gone().
    """
    node = Node()
    pid = enter_namespace(node, namespace, pids)
    if pid is None:
        return None
    ours = _ours(node.table(), device_number)
    if ours is None:
        return None
    first = first_process_of(node, pid)
    return WithFds(None, [_open_mount(ours, uid, gid), *first])


def clean(pids: Sequence[int], source: str, fstype: str, mountpoint: bytes, known: Sequence[str]) -> bool:
    """Detach what a killed driver had mounted and not recorded: a dead FUSE mount at this mountpoint. Return whether there was one.

    `pids` are processes that may be in its mount namespace, and `known` the device numbers of mounts that are recorded.
    """
    node = Node()
    seen = {os.stat("self/ns/mnt", dir_fd=node.proc).st_ino}

    def is_meant(each: Mount) -> bool:
        return (each.fstype, each.source.decode("utf-8", "replace"), each.path) == (fstype, source, mountpoint)

    # The program ends when it gets no answer, so its namespace is looked for among those of all processes.
    for pid in (*pids, *all_pids(node)):
        try:
            mounts = os.open(f"{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=node.proc)
            if (number := os.fstat(mounts).st_ino) in seen or not any(map(is_meant, mountinfo.parse(node.read(f"{pid}/mountinfo")))):
                os.close(mounts)
                seen.add(number)
                continue
        except OSError:
            continue
        enter(node, mounts)
        for each in reversed(node.table()):
            if is_meant(each) and each.device not in known:
                fd = _open_mount(each)
                if _is_dead(fd, each):
                    node.unmount(fd, syscalls.MNT_DETACH)
                    return True
        return False
    return False


def _is_dead(fd: int, mount: Mount) -> bool:
    """Ask as the user who has mounted it, in a process of its own, since this one goes on as root."""
    ids = dict(option.partition("=")[::2] for option in mount.super_options.split(","))

    def ask() -> bytes:
        try:
            syscalls.ask_for_attributes(fd)
        except OSError as error:
            return b"dead" if error.errno in _DEAD else b""
        return b""

    return as_user(int(ids["user_id"]), int(ids["group_id"]), ask) == b"dead"


def _open_mount(mount: Mount, uid: int | None = None, gid: int | None = None) -> int:
    """Return an O_PATH fd of a mount's root, by its path and without following links. Raises OSError where something else is there.

    With `uid` and `gid` this process may become this user: only who has mounted a FUSE file system without allow_other can walk through it
    to a mount that is on it.
    """
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = _walk(root, mount.path)
    except PermissionError:
        if uid is None or gid is None:
            raise
        become(uid, gid)
        fd = _walk(root, mount.path)
    if syscalls.device_of(fd) != mount.device:
        raise OSError(EBUSY, "it is covered by another mount")
    return fd


def _walk(root: int, path: bytes) -> int:
    flags = syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_IN_ROOT
    return syscalls.openat2(root, path, os.O_PATH | os.O_NOFOLLOW, resolve=flags)


def _ours(table: list[Mount], device_number: str) -> Mount | None:
    """Return the topmost mount of a FUSE file system."""
    return next((each for each in reversed(table) if each.is_fuse and each.device == device_number), None)
