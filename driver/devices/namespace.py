"""Runs in one-shot processes that enter the mount namespace of a container: mounts there, unmounts there, and asks FUSE programs there.

The process is forked from a starter of its own, which alone keeps the capabilities that entering needs. What it has to know of the
container it reads before it enters, through the node's /proc. From the last setns(2) on it uses only file descriptors that it holds: it
opens no path of the container's and imports nothing, so that the container has nothing to put in its way. Then it ends. reopen() and
is_gone() are the exceptions: they walk to the recorded mountpoint, without following links, and compare what they find there.

The mount namespace's owner is a user namespace. If that is another one than the driver's (a pod with hostUsers: false, rootless Podman),
the process enters it as well. Then the mount belongs to it, the ids are those in there, and the kernel guards it by its own rules.
"""

import fcntl
import os
import select
import socket
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from errno import EBUSY, ECONNABORTED, EINVAL, ENOENT, ENOTCONN, EPERM, EPROTO, ESRCH

import prctl

from driver.blocking.starter import WithFds
from driver.devices import rules
from driver.devices.rules import Caller, Mountpoint, Refusal
from driver.linux import syscalls
from driver.linux.syscalls import FileInfo
from fusermount3_proxy.wire import fdpass, mountinfo, protocol
from fusermount3_proxy.wire.mountinfo import Mount

_DEAD = (ENOTCONN, ECONNABORTED)

# The first items of what mount(), prepare() and attach() return.
REFUSED, DONE = 0, 1


@dataclass(frozen=True)
class _Peer:
    """The process at the other end of a connection. The fds are of its mount namespace, and of the user namespace that owns it."""

    mounts: int  # fd
    owner: int  # fd
    is_foreign: bool  # the owner is not the driver's own user namespace
    owns: bool  # its own user namespace is the owner
    uid: int
    groups: tuple[int, ...]
    effective: int
    table: list[Mount]  # as it sees it
    container: str
    init: int  # pidfd of the first process of its container, or -1


class _Refused(Exception):
    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.text)
        self.refusal = refusal


_ENDED = Refusal(ESRCH, "mount failed: the process that asked has ended")


class _Node:
    """Holds what a process takes along when it enters a namespace: the node's /proc, and its own fds as a directory of links."""

    def __init__(self) -> None:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        self.proc = os.open("/proc", flags)
        self._own_fds = os.open("/proc/self/fd", flags)

    def enter(self, mounts: int, owner: int, is_foreign: bool) -> None:
        """Enter a mount namespace, and the user namespace that owns it where that is not the driver's. Raises OSError."""
        if is_foreign:
            syscalls.setns(owner, syscalls.CLONE_NEWUSER)
        syscalls.setns(mounts, syscalls.CLONE_NEWNS)
        prctl.set_dumpable(0)  # new credentials set it to fs.suid_dumpable

    def table(self) -> list[Mount]:
        """Return the mount table of the namespace that this process is in."""
        return mountinfo.parse(self.read("self/mountinfo"))

    def read(self, name: str) -> bytes:
        """Return the content of a file in the node's /proc. Raises OSError."""
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc)
        try:
            parts = []
            while part := os.read(fd, 1 << 16):
                parts.append(part)
            return b"".join(parts)
        finally:
            os.close(fd)

    def path(self, fd: int) -> bytes:
        """Return the path of an fd, as the namespace's root shows it. Raises OSError."""
        return os.readlink(b"%d" % fd, dir_fd=self._own_fds)

    def open_again(self, fd: int, flags: int) -> int:
        """Open the file of an fd once more, now with the user namespace that this process is in. Raises OSError."""
        return os.open(f"{fd}", flags | os.O_CLOEXEC, dir_fd=self._own_fds)

    def unmount(self, fd: int, flags: int) -> None:
        """Unmount what is topmost on the file of `fd`, and resolve no path for it. Raises OSError."""
        os.fchdir(self._own_fds)
        syscalls.unmount_here(f"{fd}", flags)


# ---- mount


def mount(
    peer_pid: int,
    shown: str,
    options: Sequence[bytes],
    attributes: int,
    own_devices: Sequence[tuple[str, str]],
    connection: int,
    device: int,
) -> WithFds | tuple[object, ...]:
    """Mount at the mountpoint that the peer has sent with its request, which is the next packet of the connection.

    `shown` is its path for messages, `options` are those of fsconfig(2) for the FUSE file system, `attributes` MOUNT_ATTR_*, and
    `own_devices` the device numbers of this allocation's mounts, each with its container. `device` is a /dev/fuse, locked.
    Return (REFUSED, errno, text), or (DONE, device number, uid and gid of the mounter in the mount's user namespace, is_root, namespace,
    container) with the fds to serve the mount, to unmount it by (see _attach()), and perhaps a pidfd of the container's first process.
    Raises OSError.
    """
    return _mount(peer_pid, shown, own_devices, socket.socket(fileno=connection), device, (options, attributes))


def prepare(
    peer_pid: int, shown: str, own_devices: Sequence[tuple[str, str]], connection: int, device: int
) -> WithFds | tuple[object, ...]:
    """Do what mount() does before it mounts, for a program that answers INIT during mount(2).

    Return (REFUSED, errno, text), or (DONE, container) with the fds of the mountpoint and to serve the mount. Raises OSError.
    """
    return _mount(peer_pid, shown, own_devices, socket.socket(fileno=connection), device, None)


def _mount(
    peer_pid: int,
    shown: str,
    own_devices: Sequence[tuple[str, str]],
    connection: socket.socket,
    device: int,
    how: tuple[Sequence[bytes], int] | None,
) -> WithFds | tuple[object, ...]:
    node = _Node()
    try:
        target = _receive_mountpoint(connection)
        # Before the user namespace is entered: in there, ids that it does not map would all look the same.
        info = syscalls.file_info(target)
        peer = _peer(node, connection, peer_pid)
        node.enter(peer.mounts, peer.owner, peer.is_foreign)
        _check(node, peer, connection, target, info, shown, {number for number, container in own_devices if container == peer.container})
        if peer.is_foreign:
            # The kernel lets only that user namespace mount it in which it was opened. The driver's own fd keeps the lock until then.
            opened = node.open_again(device, os.O_RDWR)
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
            os.close(device)
            device = opened
        if how is None:
            return WithFds((DONE, peer.container), [target, device])
        found, kept = _attach(connection, target, info, device, *how)
        fds = [device, kept] if peer.init < 0 else [device, kept, peer.init]
        return WithFds((DONE, *found, info.is_mount_root, os.fstat(peer.mounts).st_ino, peer.container), fds)
    except _Refused as refused:
        return REFUSED, refused.refusal.errno, refused.refusal.text


def attach(
    peer_pid: int, shown: str, options: Sequence[bytes], attributes: int, connection: int, device: int, target: int
) -> WithFds | tuple[object, ...]:
    """Mount what prepare() has returned. Blocks until the program has answered INIT. The results are those of mount()."""
    node = _Node()
    client = socket.socket(fileno=connection)
    try:
        info = syscalls.file_info(target)
        peer = _peer(node, client, peer_pid)
        node.enter(peer.mounts, peer.owner, peer.is_foreign)
        # The container could have moved the mountpoint since prepare().
        _check(node, peer, client, target, info, shown, {info.device})
        found, kept = _attach(client, target, info, device, options, attributes)
        fds = [device, kept] if peer.init < 0 else [device, kept, peer.init]
        return WithFds((DONE, *found, info.is_mount_root, os.fstat(peer.mounts).st_ino, peer.container), fds)
    except _Refused as refused:
        return REFUSED, refused.refusal.errno, refused.refusal.text


def _receive_mountpoint(connection: socket.socket) -> int:
    """Receive the request, and return the only fd that comes with it: an O_PATH one. Raises _Refused."""
    try:
        # Room for one fd: the kernel never installs more, and what it drops can block this process, which the driver gives up then.
        _, fds = fdpass.receive_with_fds(connection, protocol.PACKET_MAX, 1)
    except (fdpass.Truncated, fdpass.FdsNotReceived):
        raise _Refused(
            Refusal(EPROTO, "bad request: it comes with more than one file descriptor, or with one that is not allowed")
        ) from None
    if len(fds) != 1:
        raise _Refused(Refusal(EPROTO, "bad request: it comes without the file descriptor of the mountpoint"))
    # An fd that was opened with O_PATH runs no code of its file system when it is closed.
    if not fcntl.fcntl(fds[0], fcntl.F_GETFL) & os.O_PATH:
        raise _Refused(Refusal(EPROTO, "bad request: the mountpoint must be opened with O_PATH"))
    return fds[0]


def _peer(node: _Node, connection: socket.socket, pid: int) -> _Peer:
    """Return what is to be known of the process that has connected, while it lives. Raises _Refused and OSError."""
    process = _pidfd(connection, pid)
    try:
        mounts = os.open(f"{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=node.proc)
        user = os.stat(f"{pid}/ns/user", dir_fd=node.proc).st_ino
        pids = os.open(f"{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC, dir_fd=node.proc)
        table = mountinfo.parse(node.read(f"{pid}/mountinfo"))
        status = node.read(f"{pid}/status")
        owner = syscalls.owner_of_namespace(mounts)
    except (FileNotFoundError, ProcessLookupError):
        raise _Refused(_ENDED) from None
    # If it still lives, all of the above was its, and not that of a later process with the same pid.
    if select.select([process], [], [], 0)[0]:
        raise _Refused(_ENDED)
    if os.fstat(mounts).st_ino in _namespaces_of_node(node):
        raise _Refused(Refusal(EPERM, "mount failed: the fuse device is for containers, and this process is in the node's mount namespace"))
    is_foreign = os.fstat(owner).st_ino != os.stat("self/ns/user", dir_fd=node.proc).st_ino
    _, uid, gid = syscalls.peer_credentials(connection)
    container, init = _container(node, pids, owner, uid, is_foreign)
    return _Peer(
        mounts,
        owner,
        is_foreign,
        user == os.fstat(owner).st_ino,
        uid,
        (gid, *syscalls.peer_groups(connection)),
        _effective(status),
        table,
        container,
        init,
    )


def _namespaces_of_node(node: _Node) -> list[int]:
    """Return the numbers of the mount namespaces that no container has: the driver's, and the one of the node's first process."""
    found = [os.stat("self/ns/mnt", dir_fd=node.proc).st_ino]
    try:
        found.append(os.stat("1/ns/mnt", dir_fd=node.proc).st_ino)
    except PermissionError:
        pass  # some virtual machines let nobody look at it
    return found


def _pidfd(connection: socket.socket, pid: int) -> int:
    try:
        return syscalls.peer_pidfd(connection)
    except OSError:
        # Before Linux 6.5 a peer can end and another process get its pid. Then the mountpoint is not in that process's mount namespace,
        # and is refused.
        try:
            return os.pidfd_open(pid)
        except OSError:
            raise _Refused(_ENDED) from None


def _effective(status: bytes) -> int:
    """Return the effective capabilities in the text of /proc/PID/status (proc_pid_status(5))."""
    return next((int(line.split()[1], 16) for line in status.split(b"\n") if line.startswith(b"CapEff:")), 0)


def _container(node: _Node, pids: int, owner: int, uid: int, is_foreign: bool) -> tuple[str, int]:
    """Return a name for the container of a process, and a pidfd of the container's first process, or -1.

    A container is the outermost pid namespace below the driver's: the container cannot leave it, and every one that it makes is in it.
    Without one it is known by the user that made its user namespace, or by its own user.
    """
    here = os.stat("self/ns/pid", dir_fd=node.proc).st_ino
    if os.fstat(pids).st_ino == here:
        return f"uid {syscalls.owner_uid(owner) if is_foreign else uid}", -1
    while True:
        above = syscalls.parent_of_namespace(pids)
        if os.fstat(above).st_ino == here:
            return f"pid namespace {os.fstat(pids).st_ino}", _first_process(node, pids)
        os.close(pids)
        pids = above


def _first_process(node: _Node, pids: int) -> int:
    """Return a pidfd of the first process of a pid namespace; -1 where it has ended."""
    try:
        try:
            first = syscalls.pid_in_namespace(pids, 1)
        except OSError:  # before Linux 6.11
            first = _search_first_process(node, os.fstat(pids).st_ino)
        process = os.pidfd_open(first)
        if os.stat(f"{first}/ns/pid", dir_fd=node.proc).st_ino == os.fstat(pids).st_ino:
            return process
        os.close(process)
    except OSError:
        pass
    return -1


def _search_first_process(node: _Node, namespace: int) -> int:
    for pid in _all_pids(node):
        try:
            if os.stat(f"{pid}/ns/pid", dir_fd=node.proc).st_ino != namespace:
                continue
            numbers = next(line for line in node.read(f"{pid}/status").split(b"\n") if line.startswith(b"NSpid:")).split()
        except (OSError, StopIteration):
            continue
        if numbers[-1] == b"1":
            return pid
    raise ProcessLookupError(ESRCH, os.strerror(ESRCH))


def _all_pids(node: _Node) -> Iterator[int]:
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=node.proc)
    try:
        return iter([int(name) for name in os.listdir(fd) if name.isdecimal()])
    finally:
        os.close(fd)


def _check(node: _Node, peer: _Peer, connection: socket.socket, target: int, info: FileInfo, shown: str, own_devices: set[str]) -> None:
    """Refuse a mountpoint that rules.py refuses. This process is in the container's mount namespace already. Raises _Refused."""
    # The mount that the mountpoint is on must be in this namespace's own table. This stops an fd that comes from another container, and,
    # since Linux 6.15 lets move_mount(2) attach there, one of a mount that is attached nowhere.
    here = next((each for each in node.table() if each.mount_id == info.mount_id), None)
    seen = next((each for each in peer.table if each.mount_id == info.mount_id), None)
    if here is None:
        raise _Refused(Refusal(EINVAL, f"mounting on {shown} is forbidden: it is not in the mount namespace of the process that asks"))
    if seen is None:
        raise _Refused(Refusal(EINVAL, f"mounting on {shown} is forbidden: it is outside of the root directory of the process that asks"))
    path = node.path(target)
    if not path.startswith(b"/"):
        raise _Refused(Refusal(ENOENT, f"mounting on {shown} is forbidden: it cannot be reached from the root directory"))
    inside = path[len(here.path) :] if here.path != b"/" else path
    _, uid, _ = syscalls.peer_credentials(connection)  # as the user namespace sees it that this process is in now
    caller = Caller(peer.uid, peer.groups, rules.is_privileged(uid, peer.effective, peer.owns))
    mountpoint = Mountpoint(info, here, (seen.path.rstrip(b"/") + b"/" + inside.lstrip(b"/")).rstrip(b"/") or b"/", path)
    refusal = rules.check(mountpoint, caller, shown, own_devices)
    if refusal is not None and refusal.is_file_system:
        refusal = Refusal(refusal.errno, f"mounting over filesystem type {syscalls.file_system_type(target):#010x} is forbidden")
    if refusal is not None:
        raise _Refused(refusal)


def _attach(
    connection: socket.socket, target: int, info: FileInfo, device: int, options: Sequence[bytes], attributes: int
) -> tuple[tuple[str, int, int], int]:
    """Mount on `target`. Return its device number with uid and gid of its mounter, and the fd by which it is unmounted. Raises OSError.

    That fd is the mountpoint beneath the mount. Where the mountpoint is a mount's root it is the new mount itself: beneath, after our mount
    has gone, there would be that other mount to unmount.
    """
    # As this user namespace sees them, since the file system belongs to it.
    _, uid, gid = syscalls.peer_credentials(connection)
    mode = stat.S_IFMT(info.mode)
    own = [b"fd=%d" % device, b"rootmode=%o" % mode, b"user_id=%d" % uid, b"group_id=%d" % gid]
    made = syscalls.mount_detached("fuse", [*own, *options], attributes)
    found = syscalls.device_of(made), uid, gid
    # move_mount(2) takes the topmost place where something is mounted on the target already.
    syscalls.move_mount_to_fd(made, target)
    if info.is_mount_root:
        return found, made
    os.close(made)
    return found, target


# ---- unmount, and questions


def unmount(peer_pid: int, device_number: str, flags: int, is_root: bool, connection: int, kept: int) -> tuple[object, ...]:
    """Unmount for the peer: what is mounted on the file of `kept`, or where `is_root`, the mount of `kept` itself.

    Return (REFUSED, errno, text) or (DONE,). Raises OSError as umount2(2) does.
    """
    node = _Node()
    try:
        peer = _peer(node, socket.socket(fileno=connection), peer_pid)
    except _Refused as refused:
        return REFUSED, refused.refusal.errno, refused.refusal.text
    node.enter(peer.mounts, peer.owner, peer.is_foreign)
    _unmount(node, device_number, flags, is_root, kept)
    return (DONE,)


def detach(namespace: int, pids: Sequence[int], device_number: str, is_root: bool, kept: int) -> bool:
    """Detach a mount lazily in its mount namespace. Return False where it is not there any more. Raises OSError, EBUSY if it is covered.

    `namespace` is the number of the mount namespace, and `pids` are processes that may be in it.
    """
    node = _Node()
    if _enter_namespace(node, namespace, pids) is None:
        return False
    try:
        _unmount(node, device_number, syscalls.MNT_DETACH, is_root, kept)
    except OSError as error:
        if error.errno != EINVAL:
            raise
        return False
    return True


def _unmount(node: _Node, device_number: str, flags: int, is_root: bool, kept: int) -> None:
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
    node = _Node()
    if _enter_namespace(node, namespace, pids) is None:
        return True
    ours = _ours(node.table(), device_number)
    if ours is None:
        return True
    fd = _open_mount(ours)
    _become(uid, gid)
    try:
        syscalls.ask_for_attributes(fd)
    except OSError as error:
        return error.errno in _DEAD
    return False


def reopen(namespace: int, pids: Sequence[int], device_number: str) -> WithFds | None:
    """Return an fd of the mount itself, to unmount it by, after a restart of the driver; None where it is not there any more.

    A pidfd of the first process of the container comes with it, where the container has a pid namespace of its own.
    """
    node = _Node()
    pid = _enter_namespace(node, namespace, pids)
    if pid is None:
        return None
    ours = _ours(node.table(), device_number)
    return None if ours is None else WithFds(None, [_open_mount(ours), *_first_process_of(node, pid)])


def clean(pids: Sequence[int], source: str, fstype: str, mountpoint: bytes, known: Sequence[str]) -> bool:
    """Detach what a killed driver had mounted and not recorded: a dead FUSE mount at this mountpoint. Return whether there was one.

    `pids` are processes that may be in its mount namespace, and `known` the device numbers of mounts that are recorded.
    """
    node = _Node()
    for pid in pids:
        try:
            mounts = os.open(f"{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=node.proc)
        except OSError:
            continue
        if os.fstat(mounts).st_ino == os.stat("self/ns/mnt", dir_fd=node.proc).st_ino:
            continue
        _enter(node, mounts)
        for each in reversed(node.table()):
            is_meant = each.fstype == fstype and each.source.decode("utf-8", "replace") == source and each.path == mountpoint
            if is_meant and each.device not in known:
                fd = _open_mount(each)
                try:
                    syscalls.ask_for_attributes(fd)
                except OSError as error:
                    if error.errno in _DEAD:
                        node.unmount(fd, syscalls.MNT_DETACH)
                        return True
        return False
    return False


def drop(*fds: int) -> None:
    """Close fds that may be the last ones of their files: a file system can make who closes them wait."""
    fdpass.close_all(list(fds))


def _become(uid: int, gid: int) -> None:
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    prctl.set_dumpable(0)


def _open_mount(mount: Mount) -> int:
    """Return an O_PATH fd of a mount's root, by its path and without following links. Raises OSError where something else is there."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    flags = syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_IN_ROOT
    fd = syscalls.openat2(root, mount.path, os.O_PATH | os.O_NOFOLLOW, resolve=flags)
    if syscalls.device_of(fd) != mount.device:
        raise OSError(EBUSY, "it is covered by another mount")
    return fd


def _ours(table: list[Mount], device_number: str) -> Mount | None:
    """Return the topmost mount of a FUSE file system."""
    return next((each for each in reversed(table) if each.is_fuse and each.device == device_number), None)


def _first_process_of(node: _Node, pid: int) -> list[int]:
    try:
        pids = os.open(f"{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC, dir_fd=node.proc)
        _, first = _container(node, pids, 0, 0, False)
    except OSError:
        return []
    return [first] if first >= 0 else []


def _enter(node: _Node, mounts: int) -> None:
    owner = syscalls.owner_of_namespace(mounts)
    node.enter(mounts, owner, os.fstat(owner).st_ino != os.stat("self/ns/user", dir_fd=node.proc).st_ino)


def _enter_namespace(node: _Node, namespace: int, pids: Sequence[int]) -> int | None:
    """Enter a mount namespace by its number. Return a process in it; None where there is none any more. Raises OSError."""
    for pid in (*pids, *_all_pids(node)):
        try:
            if os.stat(f"{pid}/ns/mnt", dir_fd=node.proc).st_ino != namespace:
                continue
            mounts = os.open(f"{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=node.proc)
        except OSError:
            continue
        if os.fstat(mounts).st_ino == namespace:
            _enter(node, mounts)
            return pid
        os.close(mounts)
    return None
