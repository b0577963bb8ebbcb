"""What a one-shot process holds of the node when it enters a mount namespace, and how it finds namespaces and containers there.

All files are opened through an fd of the node's /proc, which stays the node's in there.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from errno import ESRCH

import prctl

from driver.linux import syscalls
from fusermount3_proxy.wire import mountinfo
from fusermount3_proxy.wire.mountinfo import Mount

_ANSWER_MAX = 4096  # bytes


class Node:
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


def become(uid: int, gid: int) -> None:
    """Give up all rights but those of this user, for good. Raises OSError."""
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    prctl.set_dumpable(0)  # new credentials set it to fs.suid_dumpable


def as_user(uid: int, gid: int, work: Callable[[], bytes]) -> bytes:
    """Return what `work` returns in a process of its own that has become this user; b"" where it raises OSError. Raises OSError."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            become(uid, gid)
            os.write(writer, work())
        finally:
            os._exit(0)
    os.close(writer)
    try:
        return os.read(reader, _ANSWER_MAX)
    finally:
        os.close(reader)


def first_process_of(node: Node, pid: int) -> list[int]:
    """Return a pidfd of the first process of the container that a process is in; none where that is not known."""
    try:
        pids = os.open(f"{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC, dir_fd=node.proc)
        _, first = container_of(node, pids, 0, 0, False)
    except OSError:
        return []
    return [first] if first >= 0 else []


def enter(node: Node, mounts: int) -> None:
    """Enter a mount namespace, and the user namespace that owns it where that is not the driver's. Raises OSError."""
    owner = syscalls.owner_of_namespace(mounts)
    node.enter(mounts, owner, os.fstat(owner).st_ino != os.stat("self/ns/user", dir_fd=node.proc).st_ino)


def enter_namespace(node: Node, namespace: int, pids: Sequence[int]) -> int | None:
    """Enter a mount namespace by its number. Return a process in it; None where there is none any more. Raises OSError."""
    for pid in (*pids, *all_pids(node)):
        try:
            if os.stat(f"{pid}/ns/mnt", dir_fd=node.proc).st_ino != namespace:
                continue
            mounts = os.open(f"{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=node.proc)
        except OSError:
            continue
        if os.fstat(mounts).st_ino == namespace:
            enter(node, mounts)
            return pid
        os.close(mounts)
    return None


def container_of(node: Node, pids: int, owner: int, uid: int, is_foreign: bool) -> tuple[str, int]:
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


def _first_process(node: Node, pids: int) -> int:
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


def _search_first_process(node: Node, namespace: int) -> int:
    for pid in all_pids(node):
        try:
            if os.stat(f"{pid}/ns/pid", dir_fd=node.proc).st_ino != namespace:
                continue
            numbers = next(line for line in node.read(f"{pid}/status").split(b"\n") if line.startswith(b"NSpid:")).split()
        except (OSError, StopIteration):
            continue
        if numbers[-1] == b"1":
            return pid
    raise ProcessLookupError(ESRCH, os.strerror(ESRCH))


def all_pids(node: Node) -> Iterator[int]:
    """Return the pids of all processes of the node."""
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=node.proc)
    try:
        return iter([int(name) for name in os.listdir(fd) if name.isdecimal()])
    finally:
        os.close(fd)
