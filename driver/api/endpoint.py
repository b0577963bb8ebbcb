"""Checks and places the Unix sockets at which the driver serves, and finds out whether another process serves there."""

import asyncio
import os
import secrets
import socket
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from driver.linux import syscalls
from driver.model.errors import StartError
from driver.observe.logs import log

# A connection begins with these bytes, the preface and an empty SETTINGS frame (RFC 9113, 3.4). A gRPC server answers at once.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_ANSWER_WAIT = 3.0  # seconds
_CONNECT_RETRY = 0.05
_PATH_MAX = 107  # bytes of a socket's path, unix(7)


class AlreadyServed(StartError):
    """Reports that another process serves a socket that this driver needs."""


@dataclass(frozen=True)
class Listener:
    """Describes the process that listens at a socket. `answers` is False for one that is stopped or hangs in the kernel."""

    pid: int  # 0 if the process is in a pid namespace that is not visible here
    answers: bool

    def __str__(self) -> str:
        return f"pid {self.pid}" if self.pid else "in a pid namespace that is not visible here"


def socket_path(endpoint: str) -> str:
    """Return the path of a CSI endpoint, unix:PATH or unix://PATH. Raises StartError."""
    scheme, colon, rest = endpoint.partition(":")
    path = rest[2:] if rest.startswith("//") else rest
    if scheme != "unix" or not colon or not path.strip("/"):
        raise StartError(f"--endpoint {endpoint!r} is not unix:PATH")
    check_length(path, f"--endpoint {endpoint!r}")
    return path


def check_length(path: str, option: str) -> None:
    """Raise StartError where a socket cannot be at this path, which `option` gives (unix(7))."""
    if len(os.fsencode(path)) > _PATH_MAX:
        raise StartError(f"{option}: the path is longer than {_PATH_MAX} bytes, which is the limit for a Unix socket")


async def refuse_if_served(path: str, option: str) -> None:
    """Raise AlreadyServed if another process serves the socket at `path`, and StartError if something else is there.

    It is no error if the process that listens there does not answer: the driver takes the place of one that cannot end. The
    error names the command line's `option`.
    """
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise StartError(f"{option}: {path} exists and is not a socket: remove it or choose another path")
    listener = await find_listener(path)
    if listener is not None and listener.answers:
        raise AlreadyServed(f"{option}: another process serves {path} ({listener}): stop it first")


async def find_listener(path: str) -> Listener | None:
    """Return the process that listens at a Unix socket and whether it answers as a gRPC server does, or None if no process does."""
    loop = asyncio.get_running_loop()
    listener: Listener | None = None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            async with asyncio.timeout(_ANSWER_WAIT):
                await _connect(probe, path)
                pid, _, _ = syscalls.peer_credentials(probe)
                listener = Listener(pid, answers=False)
                await loop.sock_sendall(probe, _PREFACE)
                return Listener(pid, answers=True) if await loop.sock_recv(probe, 1) else None
        except TimeoutError:
            listener = listener or Listener(0, answers=False)
            log.warning(f"a process ({listener}) has {path} and does not answer within {_ANSWER_WAIT:g} s: this driver takes its place")
            return listener
        except OSError:
            return None  # no process listens, or the one that does is ending


async def _connect(probe: socket.socket, path: str) -> None:
    while True:
        try:
            probe.connect(path)
            return
        except BlockingIOError:  # its queue of connections is full
            await asyncio.sleep(_CONNECT_RETRY)


def removal_problem(paths: Iterable[str]) -> str:
    """Return which of the sockets at `paths`, by which kubelet reaches the driver, are gone, and what to do; "" if none is gone."""
    gone = [path for path in paths if not os.path.lexists(path)]
    return f"somebody has removed {' and '.join(gone)}, by which kubelet reaches the driver: restart the driver" if gone else ""


class PlacedSocket:
    """Places a socket in one of kubelet's folders.

    gRPC removes its socket by name when it stops. If something else had put its own socket there meanwhile, such as
    node-driver-registrar or a driver in a pod that replaces this one, kubelet would not find that one. So gRPC binds a hidden
    name, which kubelet ignores, and the socket is renamed.
    """

    def __init__(self, folder: str, name: str) -> None:
        self.path = f"{folder}/{name}"
        self.hidden_path = f"{folder}/.{secrets.token_hex(8)}"
        self._inode = 0

    def show(self) -> None:
        """Rename the socket to the path at which kubelet finds it. Raises OSError."""
        self._inode = os.lstat(self.hidden_path).st_ino
        os.rename(self.hidden_path, self.path)

    def is_there(self) -> bool:
        """Return whether the socket is at its path: not removed, and not replaced by another one."""
        try:
            return os.lstat(self.path).st_ino == self._inode
        except OSError:
            return False

    def remove(self) -> None:
        """Remove the socket, unless another one has replaced it. kubelet then finds no driver there, and pods' events say so."""
        try:
            if os.lstat(self.path).st_ino == self._inode:
                os.unlink(self.path)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                log.warning(f"cannot remove {self.path}: {error.strerror}")
