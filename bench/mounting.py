"""Mounts at published volumes without a container: it asks the driver what a pod's programs would ask."""

import os
import resource
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from errno import ECONNABORTED, ENOTCONN
from pathlib import Path

from bench.place import BenchError
from bench.servers import Server, socket_of
from fusermount3_proxy import driver_socket
from fusermount3_proxy.wire import protocol
from fusermount3_proxy.wire.protocol import MountRequest, UnmountRequest

_MOUNTPOINT = "/bench"
_WAIT = 10.0  # seconds


def mount(target: Path) -> int:
    """Mount at a volume, and return the fd to serve it by. Raises BenchError."""
    reply, fd = driver_socket.mount(socket_of(target), MountRequest(_MOUNTPOINT, ""), _WAIT, lambda line: None)
    if reply.error is not None:
        raise BenchError(f"the driver refused to mount at {target}: {reply.error}")
    return fd


def unmount(target: Path, fd: int) -> None:
    """Unmount, as a program does that ends regularly. Raises BenchError."""
    reply = driver_socket.unmount(socket_of(target), UnmountRequest(_MOUNTPOINT, lazy=True), _WAIT, lambda line: None)
    os.close(fd)
    if reply.error is not None:
        raise BenchError(f"the driver refused to unmount {target}: {reply.error}")


def wait_until_all_answer(targets: list[Path]) -> None:
    """Send each volume's socket, once it is there, a request that is refused, and wait for the refusals. Raises BenchError."""
    request = protocol.encode_request(UnmountRequest("/elsewhere"))
    deadline = time.monotonic() + 6 * _WAIT
    with ExitStack() as stack:
        asked = []
        for target in targets:
            while (sock := _connected(f"{socket_of(target)}{protocol.V1_SUFFIX}")) is None:
                if time.monotonic() > deadline:
                    raise BenchError(f"no driver answers at {target}")
                time.sleep(0.001)
            asked.append(stack.enter_context(sock))
            sock.settimeout(_WAIT)
            sock.send(request)
        for sock in asked:
            if not sock.recv(protocol.PACKET_MAX):
                raise BenchError("the driver closed a connection without an answer")


def _connected(path: str) -> socket.socket | None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fd = -1
    try:
        fd = os.open(path, os.O_PATH)  # the path of a socket holds 107 bytes
        sock.connect(f"/proc/self/fd/{fd}")
        return sock
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    finally:
        if fd >= 0:
            os.close(fd)


def program(fd: int) -> subprocess.Popen[bytes]:
    """Start a process that alone holds the fd of a mount, as a FUSE program does."""
    holder = subprocess.Popen(["sleep", "inf"], pass_fds=[fd])
    os.close(fd)
    return holder


@contextmanager
def mounted(targets: list[Path]) -> Iterator[None]:
    """Mount at all targets for the block, and hold the fds without serving them."""
    raise_fd_limit()
    fds: list[int] = []
    try:
        for target in targets:
            fds.append(mount(target))
        yield
    finally:
        for fd in fds:
            os.close(fd)


class MountTable:
    """Waits for changes in a server's mount table. It does not read it: the kernel would let the server's mounts wait meanwhile."""

    def __init__(self, server: Server) -> None:
        self._root = f"/proc/{server.pid}/root"  # a server that is measured alone has a mount namespace of its own
        self._fd = os.open(f"/proc/{server.pid}/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLPRI)

    def wait_until_waiting(self, target: Path) -> None:
        """Wait until the mount of a program that has ended is no more at a target."""
        while not _answers(f"{self._root}{target}"):
            if not self._poll.poll(_WAIT * 1000):
                raise BenchError(f"the mount at {target} is still there after {_WAIT:.0f} s")

    def close(self) -> None:
        os.close(self._fd)


def _answers(target: str) -> bool:
    """Return whether a file system is at `target` that can be asked: the placeholder can, and a dead FUSE mount cannot."""
    try:
        os.stat(target)
    except OSError as error:
        if error.errno not in (ENOTCONN, ECONNABORTED):
            raise
        return False
    return True


def raise_fd_limit() -> None:
    """Raise the limit of open fds as far as the machine allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
