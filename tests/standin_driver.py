"""Stands in for a driver: at real sockets a thread does what a test says, whatever a real driver would do."""

import array
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

DEADLINE = 20.0  # seconds; what is not there by then never comes

Behaviour = Callable[[socket.socket], None]


class StandIn:
    """Listens at `path` and at `path`.v1, wherever there is a behaviour, as long as a `with` block runs.

    A behaviour gets each connection, one after another, in a thread; it is closed afterwards. An exception in it fails
    the test at the end of the block.
    """

    def __init__(self, path: Path, v1: Behaviour | None = None, original: Behaviour | None = None) -> None:
        self.path = path
        self.connections = 0
        self._behaviours = [(f"{path}.v1", socket.SOCK_SEQPACKET, v1), (str(path), socket.SOCK_STREAM, original)]
        self._listeners: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._failures: list[BaseException] = []
        self._is_closing = False

    def __enter__(self) -> "StandIn":
        self.renew()
        return self

    def renew(self) -> None:
        """Listen again where a client has removed a socket, as the Go plugin's does."""
        for name, kind, behaviour in self._behaviours:
            if behaviour is not None and not Path(name).exists():
                listener = listen(name, kind)
                self._listeners.append(listener)
                thread = threading.Thread(target=self._serve, args=(listener, behaviour))
                self._threads.append(thread)
                thread.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._is_closing = True
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)  # wakes accept(2)
        for thread in self._threads:
            thread.join(DEADLINE)
            assert not thread.is_alive(), "the stand-in driver hangs"
        for listener in self._listeners:
            listener.close()
        for name, _, _ in self._behaviours:
            Path(name).unlink(missing_ok=True)
        if error is None and self._failures:
            raise self._failures[0]

    def _serve(self, listener: socket.socket, behaviour: Behaviour) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                assert self._is_closing
                return
            self.connections += 1
            connection.settimeout(DEADLINE)
            try:
                behaviour(connection)
            except BaseException as error:
                self._failures.append(error)
            finally:
                connection.close()


class Recorder:
    """Behaves so: keeps each request, and answers with `packet` and the fds."""

    def __init__(self, packet: bytes, *fds: int) -> None:
        self.packet = packet
        self.fds = fds
        self.requests: list[bytes] = []

    def __call__(self, connection: socket.socket) -> None:
        self.requests.append(connection.recv(1 << 20))
        answer(connection, self.packet, *self.fds)


def sends(packet: bytes, *fds: int) -> Behaviour:
    """Return a behaviour of the original protocol, in which connecting is the request."""
    return lambda connection: answer(connection, packet, *fds)


def waits_for_end(connection: socket.socket) -> None:
    """Behave so: take what comes, and never answer."""
    while connection.recv(1 << 20):
        pass


class Silent:
    """Behaves so: never answers. `asked` is set when the first request has arrived."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def __call__(self, connection: socket.socket) -> None:
        connection.recv(1 << 20)
        self.asked.set()
        waits_for_end(connection)


def answer(connection: socket.socket, packet: bytes, *fds: int) -> None:
    """Send one message with fds attached."""
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    connection.sendmsg([packet], control)


def receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """Return one message and all fds that came with it."""
    data, control, _, _ = connection.recvmsg(1 << 20, socket.CMSG_SPACE(64 * 4))
    fds: list[int] = []
    for _, _, payload in control:
        fds += array.array("i", payload)
    return data, fds


def listen(path: str, kind: int, backlog: int = 64) -> socket.socket:
    """Return a listening socket, at a path of any length."""
    folder, name = os.path.split(path)
    sock = socket.socket(socket.AF_UNIX, kind)
    directory = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        sock.bind(f"/proc/self/fd/{directory}/{name}")
    finally:
        os.close(directory)
    sock.listen(backlog)
    return sock


def answer_once(server: socket.socket) -> None:
    """Answer the next connection, in a thread, as a process that serves: anything will do, after what the other side says."""

    def answer() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(4096)
            connection.send(b"\0")

    threading.Thread(target=answer, daemon=True).start()


@contextmanager
def fuse_fd(folder: Path) -> Iterator[int]:
    """Yield a file that stands for /dev/fuse: its inode tells that it is the one that was sent."""
    fd = os.open(folder / "stands-for-dev-fuse", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)
