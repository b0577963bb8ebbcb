"""Implements the client's side of the protocol: connects to the driver, sends a request, and receives the answer with its fd."""

import posix
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_SEQPACKET, SOCK_STREAM, socket
from errno import EAGAIN, ECONNREFUSED, EINVAL, ENOENT
from time import monotonic, sleep

from fusermount3_proxy import limits
from fusermount3_proxy.wire import fdpass, protocol
from fusermount3_proxy.wire.protocol import FindRequest, MountRequest, ProtocolError, Reply, UnmountRequest

TYPE_CHECKING = False  # stands for typing.TYPE_CHECKING, since importing typing takes too long
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

_SUN_PATH_MAX = 107  # bytes of sun_path without the NUL: unix(7)


class DriverError(Exception):
    """Reports that there is no answer from the driver. The text is one line for the user."""


class NoAnswer(DriverError):
    """Reports that the driver has closed the connection without an answer."""


class OriginalProtocolOnly(DriverError):
    """Reports that the driver has no socket of protocol v1, which the request needs. Nothing was sent."""


def mount(path: str, request: MountRequest, wait: float, report: "Callable[[str], None]", mountpoint: int = -1) -> tuple[Reply, int]:
    """Ask for the volume's mount at the socket `path`, or at a fuse device's for one at `mountpoint`, an O_PATH fd.

    `wait` is how many seconds to wait for a socket that is missing or refuses connections. `report` prints a line if that
    takes long. Returns the answer and the /dev/fuse fd, which the caller owns; the fd is -1 if the answer is a refusal. Raises
    DriverError.
    """
    packet = _encode(request)

    def ask() -> tuple[Reply, int]:
        sock, is_v1 = _connect(path, wait, report, may_be_original=mountpoint < 0)
        try:
            if is_v1:
                _send(sock, packet, mountpoint)
            return _receive_mount(sock, is_v1)
        finally:
            sock.close()

    return _ask(path, wait, ask)


def prepare(
    path: str, request: MountRequest, wait: float, report: "Callable[[str], None]", mountpoint: int = -1
) -> "tuple[Reply, int, PendingMount]":
    """Ask for a /dev/fuse fd that the driver mounts later (`request.sync_init`).

    Arguments, answer and fd are as in mount(). The caller closes the PendingMount. Raises DriverError, and OriginalProtocolOnly
    if the driver cannot mount in this way.
    """
    packet = _encode(request)

    def ask() -> tuple[Reply, int, PendingMount]:
        sock, _ = _connect(path, wait, report, may_be_original=False)
        try:
            _send(sock, packet, mountpoint)
            return *_receive_mount(sock, is_v1=True), PendingMount(sock)
        except BaseException:
            sock.close()
            raise

    return _ask(path, wait, ask)


class PendingMount:
    """Holds the connection of a mount that the driver makes after proceed(). If it is closed before that, nothing is mounted."""

    __slots__ = ("socket",)

    def __init__(self, sock: socket) -> None:
        self.socket = sock

    def proceed(self) -> None:
        """Ask the driver to mount now. Raises DriverError."""
        _send(self.socket, protocol.PROCEED)

    def receive_reply(self) -> Reply:
        """Wait for the end of the mount(2) call, and return the driver's answer. Raises DriverError."""
        return _receive_reply(self.socket)

    def close(self) -> None:
        """Close the connection. The driver then gives up the mount if it is under way."""
        self.socket.close()


def unmount(path: str, request: UnmountRequest, wait: float, report: "Callable[[str], None]") -> Reply:
    """Ask to unmount the volume at the socket `path`. Arguments and errors are as in prepare()."""
    packet = _encode(request)

    def ask() -> Reply:
        sock, _ = _connect(path, wait, report, may_be_original=False)
        try:
            _send(sock, packet)
            return _receive_reply(sock)
        finally:
            sock.close()

    return _ask(path, wait, ask)


def is_for(path: str, request: FindRequest, wait: float) -> bool:
    """Ask the driver at the socket `path` whether the volume's mount is the one of the request. Waits for a driver for `wait` seconds.

    Raises DriverError, also if the driver is of a version that does not know the request.
    """
    packet = _encode(request)
    sock, _ = _connect(path, wait, lambda line: None, may_be_original=False)
    try:
        _send(sock, packet)
        reply = _receive_reply(sock)
    finally:
        sock.close()
    if reply.error is not None and reply.errno != EINVAL:
        raise DriverError(f"the driver at {path} cannot say which volume is mounted: {reply.error}")
    return reply.error is None


def _ask(path: str, wait: float, ask: "Callable[[], T]") -> "T":
    """Call `ask`. At a fuse device do so again within `wait` seconds while there is no answer.

    Any number of programs share the device, and the driver closes the connections of those that are too many at once.
    """
    deadline = monotonic() + wait
    while True:
        try:
            return ask()
        except NoAnswer:
            if path != protocol.DEVICE_SOCKET or monotonic() >= deadline:
                raise
        sleep(limits.SOCKET_RETRY)


def _connect(path: str, wait: float, report: "Callable[[str], None]", may_be_original: bool) -> tuple[socket, bool]:
    """Connect, and return the socket and whether it speaks v1. At the original protocol's socket, connecting is the request."""
    if "\0" in path:
        raise DriverError(f"the socket's path holds a NUL byte: {path!r}")
    start = monotonic()
    is_reported = False
    while True:
        sock, error = _try_connect(path + protocol.V1_SUFFIX, SOCK_SEQPACKET)
        if sock is not None:
            return sock, True
        if error == ENOENT:
            if may_be_original:
                sock, error = _try_connect(path, SOCK_STREAM)
                if sock is not None:
                    return sock, False
            elif _exists(path):
                raise OriginalProtocolOnly(f"the driver at {path} speaks only the original protocol, which has no such request")
        waited = monotonic() - start
        if waited >= wait:
            if path == protocol.DEVICE_SOCKET:
                raise DriverError(f"no driver answers at {path} ({posix.strerror(error)}; waited {wait:g} s): does it run on this node?")
            raise DriverError(
                f"no driver answers at {path} ({posix.strerror(error)}; waited {wait:g} s): "
                "is the volume published, does the driver run on this node, and is the volume's emptyDir mounted here?"
            )
        if not is_reported and waited >= limits.SOCKET_WAIT_SILENT:
            is_reported = True
            report(f"waiting up to {wait:g} s for the driver at {path} ({posix.strerror(error)})")
        sleep(min(limits.SOCKET_RETRY, wait - waited))


def _try_connect(path: str, kind: int) -> tuple[socket | None, int]:
    """Return a connected socket, or None and the errno if waiting may help. Raises DriverError if waiting cannot help."""
    try:
        sock = socket(AF_UNIX, kind | SOCK_CLOEXEC)
    except OSError as error:
        raise DriverError(f"failed to make a socket: {error.strerror}") from None
    fd = -1
    try:
        sock.settimeout(limits.ANSWER_WAIT)
        raw = path.encode("utf-8", "surrogateescape")
        if len(raw) > _SUN_PATH_MAX:
            # The path does not fit into sun_path, but a link in /proc to the same inode does.
            fd = posix.open(raw, posix.O_PATH | posix.O_CLOEXEC)
            raw = b"/proc/self/fd/%d" % fd
        sock.connect(raw)
        return sock, 0
    except OSError as error:
        sock.close()
        if error.errno in (ENOENT, ECONNREFUSED, EAGAIN):
            return None, error.errno
        raise DriverError(f"failed to connect to the driver at {path}: {error.strerror or 'timed out'}") from None
    finally:
        if fd >= 0:
            posix.close(fd)


def _exists(path: str) -> bool:
    try:
        posix.lstat(path)
    except OSError:
        return False
    return True


def _encode(request: "MountRequest | UnmountRequest | FindRequest") -> bytes:
    try:
        return protocol.encode_request(request)
    except ProtocolError as error:
        raise DriverError(str(error)) from None


def _send(sock: socket, packet: bytes, fd: int = -1) -> None:
    try:
        fdpass.send_with_fds(sock, packet, [] if fd < 0 else [fd])
    except TimeoutError:
        raise DriverError(f"the driver took no request within {limits.ANSWER_WAIT:g} s") from None
    except (BrokenPipeError, ConnectionResetError):
        pass  # the driver may have answered before it closed the connection, so receiving reports the outcome
    except OSError as error:
        raise DriverError(f"failed to send the request to the driver: {error.strerror}") from None


def _receive_mount(sock: socket, is_v1: bool) -> tuple[Reply, int]:
    message, fds = _receive(sock, is_v1)
    try:
        reply = _decode(message, is_v1)
        if reply.error is not None:
            return reply, -1
        if reply.volume_name is None:
            raise DriverError("the driver's answer cannot be read: it has no volumeName")
        if len(fds) != 1:
            raise DriverError(f"the driver's answer came with {len(fds)} file descriptors instead of one")
        return reply, fds.pop()
    finally:
        fdpass.close_all(fds)


def _receive_reply(sock: socket) -> Reply:
    """Receive an answer that has no fd. Any fd that comes with it is closed."""
    message, fds = _receive(sock, is_v1=True)
    fdpass.close_all(fds)
    return _decode(message, is_v1=True)


def _receive(sock: socket, is_v1: bool) -> tuple[bytes, list[int]]:
    """Receive one message and its fds. In the original protocol it may come in pieces, of which the first has the fd."""
    limit = protocol.PACKET_MAX if is_v1 else protocol.ORIGINAL_MESSAGE_MAX
    deadline = monotonic() + limits.ANSWER_WAIT
    message, fds = b"", []
    try:
        while True:
            sock.settimeout(max(deadline - monotonic(), 0.001))
            part, more = fdpass.receive_with_fds(sock, limit + 1 - len(message), 1)
            fds += more
            message += part
            if is_v1 or not part or len(message) > limit or message.rstrip().endswith(b"}"):
                return message, fds
    except ConnectionResetError:
        return message, fds
    except TimeoutError:
        problem = f"the driver did not answer within {limits.ANSWER_WAIT:g} s"
    except fdpass.Truncated:
        problem = "the driver's answer is too long or carries too many file descriptors"
    except fdpass.FdsNotReceived:
        cause = "this process may open no more (ulimit -n), or a security module forbids it"
        problem = f"the driver's file descriptor did not get here: {cause}"
    except OSError as error:
        problem = f"failed to receive the driver's answer: {error.strerror}"
    fdpass.close_all(fds)
    raise DriverError(problem)


def _decode(message: bytes, is_v1: bool) -> Reply:
    if not message and is_v1:
        raise NoAnswer("the driver closed the connection without an answer: it is stopping, or has too many requests for this volume")
    if not message:
        raise DriverError("the driver refused; its log says why")
    try:
        return protocol.decode_reply(message) if is_v1 else protocol.decode_original(message)
    except ProtocolError as error:
        raise DriverError(f"the driver's answer cannot be read: {error}") from None
