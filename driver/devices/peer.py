"""What a one-shot process has to know of the process that asks, read before it enters that process's mount namespace."""

import os
import select
import socket
from dataclasses import dataclass
from errno import EPERM, ESRCH

from driver.devices.node import Node, container_of
from driver.devices.rules import Refusal
from driver.linux import syscalls
from fusermount3_proxy.wire import mountinfo
from fusermount3_proxy.wire.mountinfo import Mount


@dataclass(frozen=True)
class Peer:
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


class NotAllowed(Exception):
    """Reports that the request is refused."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.text)
        self.refusal = refusal


_ENDED = Refusal(ESRCH, "mount failed: the process that asked has ended")


def examine(node: Node, connection: socket.socket, pid: int) -> Peer:
    """Return what is to be known of the process that has connected, while it lives. Raises NotAllowed and OSError."""
    process = _pidfd(connection, pid)
    try:
        mounts = os.open(f"{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=node.proc)
        pids = os.open(f"{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC, dir_fd=node.proc)
        table = mountinfo.parse(node.read(f"{pid}/mountinfo"))
        status = node.read(f"{pid}/status")
        # After the capabilities. Otherwise root without CAP_DAC_OVERRIDE could enter a new user namespace between the two, where it has
        # that capability, and would seem to have it in its container. Nobody comes back from there without having it already.
        user = os.stat(f"{pid}/ns/user", dir_fd=node.proc).st_ino
        owner = syscalls.owner_of_namespace(mounts)
    except (FileNotFoundError, ProcessLookupError):
        raise NotAllowed(_ENDED) from None
    # If it still lives, all of the above was its, and not that of a later process with the same pid.
    if select.select([process], [], [], 0)[0]:
        raise NotAllowed(_ENDED)
    if os.fstat(mounts).st_ino in _namespaces_of_node(node):
        raise NotAllowed(
            Refusal(EPERM, "mount failed: the fuse device is for containers, and this process is in the node's mount namespace")
        )
    is_foreign = os.fstat(owner).st_ino != os.stat("self/ns/user", dir_fd=node.proc).st_ino
    _, uid, gid = syscalls.peer_credentials(connection)
    container, init = container_of(node, pids, owner, uid, is_foreign)
    return Peer(
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


def _namespaces_of_node(node: Node) -> list[int]:
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
            raise NotAllowed(_ENDED) from None


def _effective(status: bytes) -> int:
    """Return the effective capabilities in the text of /proc/PID/status (proc_pid_status(5))."""
    return next((int(line.split()[1], 16) for line in status.split(b"\n") if line.startswith(b"CapEff:")), 0)
