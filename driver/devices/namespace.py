"""Runs in one-shot processes that enter the mount namespace of a container, and mounts there. attached.py unmounts and asks there.

The process is forked from a starter of its own, which alone keeps the capabilities that entering needs. What it has to know of the
container it reads before it enters, through the node's /proc. From the last setns(2) on it uses only file descriptors that it holds: it
opens no path of the container's and imports nothing, so that the container has nothing to put in its way. Then it ends. Where
attached.py opens a mount again, it walks to its mountpoint without following links, and compares what it finds there.

The mount namespace's owner is a user namespace. If that is another one than the driver's (a pod with hostUsers: false, rootless Podman),
the process enters it as well. Then the mount belongs to it, the ids are those in there, and the kernel guards it by its own rules.
"""

import fcntl
import marshal
import os
import socket
import stat
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from errno import EACCES, EINVAL, ENOENT, EPROTO

from driver.blocking.starter import WithFds, no_return
from driver.devices import rules
from driver.devices.node import Node, as_user
from driver.devices.peer import NotAllowed, Peer, examine
from driver.devices.rules import Caller, Mountpoint, Refusal
from driver.linux import syscalls
from driver.linux.syscalls import FileInfo
from fusermount3_proxy.wire import fdpass, protocol

# The first items of what mount(), prepare() and attach() return.
REFUSED, DONE = 0, 1


def mount(
    peer_pid: int,
    shown: str,
    options: Sequence[bytes],
    attributes: int,
    own_devices: Mapping[str, Sequence[str]],
    mounts_max: int,
    connection: int,
    device: int,
) -> WithFds | tuple[object, ...]:
    """Mount at the mountpoint that the peer has sent with its request, which is the next packet of the connection.

    `shown` is its path for messages, `options` are those of fsconfig(2) for the FUSE file system, `attributes` MOUNT_ATTR_*, and
    `own_devices` the device numbers of this allocation's mounts by container; each may have `mounts_max` of them.
    `device` is a /dev/fuse, locked.
    Return (REFUSED, errno, text), or (DONE, device number, uid and gid of the mounter in the mount's user namespace, is_root, namespace,
    container) with the fds to serve the mount, to unmount it by (see _attach()), and perhaps a pidfd of the container's first process.
    Raises OSError.
    """
    return _mount(peer_pid, shown, own_devices, mounts_max, socket.socket(fileno=connection), device, (options, attributes))


def prepare(
    peer_pid: int, shown: str, own_devices: Mapping[str, Sequence[str]], mounts_max: int, connection: int, device: int
) -> WithFds | tuple[object, ...]:
    """Do what mount() does before it mounts, for a program that answers INIT during mount(2).

    Return (REFUSED, errno, text), or (DONE, container) with the fds of the mountpoint and to serve the mount. Raises OSError.
    """
    return _mount(peer_pid, shown, own_devices, mounts_max, socket.socket(fileno=connection), device, None)


def _mount(
    peer_pid: int,
    shown: str,
    own_devices: Mapping[str, Sequence[str]],
    mounts_max: int,
    connection: socket.socket,
    device: int,
    how: tuple[Sequence[bytes], int] | None,
) -> WithFds | tuple[object, ...]:
    node = Node()
    try:
        target = _receive_mountpoint(connection)
        # Before the user namespace is entered: in there, ids that it does not map would all look the same.
        info = _file_info(target, connection)
        peer = examine(node, connection, peer_pid)
        own = set(own_devices.get(peer.container, ()))
        if len(own) >= mounts_max:
            return _refusal(rules.too_many_mounts(mounts_max))
        node.enter(peer.mounts, peer.owner, peer.is_foreign)
        _check(node, peer, connection, target, info, shown, own)
        if peer.is_foreign:
            # The kernel lets only that user namespace mount it in which it was opened. The driver's own fd keeps the lock until then.
            opened = node.open_again(device, os.O_RDWR)
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
            os.close(device)
            device = opened
        if how is None:
            return WithFds((DONE, peer.container), [target, device])
        return _attach(peer, connection, target, info, device, *how)
    except NotAllowed as refused:
        return _refusal(refused.refusal)


def attach(
    peer_pid: int, shown: str, options: Sequence[bytes], attributes: int, connection: int, device: int, target: int
) -> WithFds | tuple[object, ...]:
    """Mount what prepare() has returned. Blocks until the program has answered INIT. The results are those of mount()."""
    node = Node()
    client = socket.socket(fileno=connection)
    try:
        info = _file_info(target, client)
        peer = examine(node, client, peer_pid)
        node.enter(peer.mounts, peer.owner, peer.is_foreign)
        # The container could have moved the mountpoint since prepare().
        _check(node, peer, client, target, info, shown, {info.device})
        return _attach(peer, client, target, info, device, options, attributes)
    except NotAllowed as refused:
        return _refusal(refused.refusal)


def _refusal(refusal: Refusal) -> tuple[object, ...]:
    return REFUSED, refusal.errno, refusal.text


def _receive_mountpoint(connection: socket.socket) -> int:
    """Receive the request, and return the only fd that comes with it: an O_PATH one. Raises NotAllowed."""
    try:
        # Room for one fd: the kernel never installs more, and what it drops can block this process, which the driver gives up then.
        _, fds = fdpass.receive_with_fds(connection, protocol.PACKET_MAX, 1)
    except (fdpass.Truncated, fdpass.FdsNotReceived):
        raise NotAllowed(
            Refusal(EPROTO, "bad request: it comes with more than one file descriptor, or with one that is not allowed")
        ) from None
    except BlockingIOError:
        fds = []  # the driver has received the request, which it leaves to this process only where an fd is with it
    if len(fds) != 1:
        raise NotAllowed(Refusal(EPROTO, "bad request: it comes without the file descriptor of the mountpoint"))
    # An fd that was opened with O_PATH runs no code of its file system when it is closed.
    if not fcntl.fcntl(fds[0], fcntl.F_GETFL) & os.O_PATH:
        raise NotAllowed(Refusal(EPROTO, "bad request: the mountpoint must be opened with O_PATH"))
    return fds[0]


def _file_info(target: int, connection: socket.socket) -> FileInfo:
    """Return what the kernel knows of the mountpoint. Raises OSError."""
    try:
        return syscalls.file_info(target)
    except PermissionError:
        pass
    # A FUSE file system without allow_other tells it to nobody but the user who has mounted it. So another process, as that user, asks.
    _, uid, gid = syscalls.peer_credentials(connection)
    answer = as_user(uid, gid, lambda: marshal.dumps(astuple(syscalls.file_info(target))))
    if not answer:
        raise PermissionError(EACCES, os.strerror(EACCES))
    return FileInfo(*marshal.loads(answer))


def _check(node: Node, peer: Peer, connection: socket.socket, target: int, info: FileInfo, shown: str, own_devices: set[str]) -> None:
    """Refuse a mountpoint that rules.py refuses. This process is in the container's mount namespace already. Raises NotAllowed."""
    # The mount that the mountpoint is on must be in this namespace's own table. This stops an fd that comes from another container, and,
    # since Linux 6.15 lets move_mount(2) attach there, one of a mount that is attached nowhere.
    here = next((each for each in node.table() if each.mount_id == info.mount_id), None)
    seen = next((each for each in peer.table if each.mount_id == info.mount_id), None)
    if here is None:
        raise NotAllowed(Refusal(EINVAL, f"mounting on {shown} is forbidden: it is not in the mount namespace of the process that asks"))
    if seen is None:
        raise NotAllowed(Refusal(EINVAL, f"mounting on {shown} is forbidden: it is outside of the root directory of the process that asks"))
    path = node.path(target)
    if not path.startswith(b"/"):
        raise NotAllowed(Refusal(ENOENT, f"mounting on {shown} is forbidden: it cannot be reached from the root directory"))
    inside = path[len(here.path) :] if here.path != b"/" else path
    _, uid, _ = syscalls.peer_credentials(connection)  # as the user namespace sees it that this process is in now
    caller = Caller(peer.uid, peer.groups, rules.is_privileged(uid, peer.effective, peer.owns), uid)
    mountpoint = Mountpoint(info, here, (seen.path.rstrip(b"/") + b"/" + inside.lstrip(b"/")).rstrip(b"/") or b"/", path)
    refusal = rules.check(mountpoint, caller, shown, own_devices)
    if refusal is not None and refusal.is_file_system:
        refusal = Refusal(refusal.errno, f"mounting over filesystem type {syscalls.file_system_type(target):#010x} is forbidden")
    if refusal is not None:
        raise NotAllowed(refusal)


def _attach(
    peer: Peer, connection: socket.socket, target: int, info: FileInfo, device: int, options: Sequence[bytes], attributes: int
) -> WithFds:
    """Mount on `target`, and return what mount() returns. Raises OSError.

    The fd by which it is unmounted is the mountpoint beneath the mount. Where the mountpoint is a mount's root it is the new mount itself:
    beneath, after our mount has gone, there would be that other mount to unmount.
    """
    # As this user namespace sees them, since the file system belongs to it.
    _, uid, gid = syscalls.peer_credentials(connection)
    mode = stat.S_IFMT(info.mode)
    own = [b"fd=%d" % device, b"rootmode=%o" % mode, b"user_id=%d" % uid, b"group_id=%d" % gid]
    made = syscalls.mount_detached("fuse", [*own, *options], attributes)
    device_number = syscalls.device_of(made)
    no_return()
    # move_mount(2) takes the topmost place where something is mounted on the target already.
    syscalls.move_mount_to_fd(made, target)
    kept = made if info.is_mount_root else target
    if kept != made:
        os.close(made)
    result = (DONE, device_number, uid, gid, info.is_mount_root, os.fstat(peer.mounts).st_ino, peer.container)
    return WithFds(result, [device, kept] if peer.init < 0 else [device, kept, peer.init])
