"""Checks the paths of the Unix sockets at which the driver serves."""

import asyncio
import os
import socket
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from driver.model.errors import StartError
from driver.observe.logs import log

# What a gRPC client sends first, to which a server that runs answers at once (RFC 9113, 3.4): the preface and an empty
# SETTINGS frame.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_ANSWER_WAIT = 3.0  # seconds
_CONNECT_RETRY = 0.05
_UCRED = struct.Struct("iII")  # struct ucred, unix(7): pid, uid, gid


class Served(StartError):
    """Another process serves a socket that this driver needs."""


@dataclass(frozen=True)
class Listener:
    """The process that listens at a socket. One that cannot end, or is stopped, does not answer, though connecting works."""

    pid: int  # 0 where its pid namespace is not seen from here
    answers: bool

    def __str__(self) -> str:
        return f"pid {self.pid}" if self.pid else "in a pid namespace that is not seen from here"


def socket_path(endpoint: str) -> str:
    """Return the path of a CSI endpoint, unix:PATH or unix://PATH. Raises StartError."""
    scheme, colon, rest = endpoint.partition(":")
    path = rest[2:] if rest.startswith("//") else rest
    if scheme != "unix" or not colon or not path.strip("/"):
        raise StartError(f"--endpoint {endpoint!r} is not unix:PATH")
    if len(os.fsencode(path)) > 107:
        raise StartError(f"--endpoint {endpoint!r}: the path is longer than 107 bytes, the most that a Unix socket may have")
    return path


async def refuse_if_served(path: str, option: str) -> None:
    """Raise StartError where another process serves a path (Served), or something else has it; a process that is stuck is no reason."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise StartError(f"{option}: {path} exists and is no socket; remove it or choose another path")
    listener = await listener_at(path)
    if listener is not None and listener.answers:
        raise Served(f"{option}: another process serves {path} ({listener}); stop it first")


async def listener_at(path: str) -> Listener | None:
    """Return who listens at a Unix socket, and whether it answers as a gRPC server does; None where nobody listens."""
    loop = asyncio.get_running_loop()
    listener: Listener | None = None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            async with asyncio.timeout(_ANSWER_WAIT):
                await _connect(probe, path)
                pid, _, _ = _UCRED.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
                listener = Listener(pid, answers=False)
                await loop.sock_sendall(probe, _PREFACE)
                return Listener(pid, answers=True) if await loop.sock_recv(probe, 1) else None
        except TimeoutError:
            listener = listener or Listener(0, answers=False)
            log.warning(f"a process ({listener}) has {path} and does not answer within {_ANSWER_WAIT:g} s: this driver takes its place")
            return listener
        except OSError:
            return None  # nobody listens, or it is about to end


async def _connect(probe: socket.socket, path: str) -> None:
    while True:
        try:
            probe.connect(path)
            return
        except BlockingIOError:  # its queue of connections is full
            await asyncio.sleep(_CONNECT_RETRY)


def removed(paths: Iterable[str]) -> str:
    """Say which of the sockets at `paths` is gone, by which kubelet reaches the driver, and what to do; "" where none is."""
    gone = [path for path in paths if not os.path.lexists(path)]
    return f"somebody has removed {' and '.join(gone)}, by which kubelet reaches the driver: restart the driver" if gone else ""
