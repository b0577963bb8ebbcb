"""The client's end of the driver's socket: connect, ask, and take the answer with its fd."""

import posix
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_SEQPACKET, SOCK_STREAM, socket
from errno import EAGAIN, ECONNREFUSED, ENOENT
from time import monotonic, sleep

from fusermount3_proxy import limits
from fusermount3_proxy.wire import fdpass, protocol
from fusermount3_proxy.wire.protocol import MountRequest, ProtocolError, Reply, UnmountRequest

TYPE_CHECKING = False  # typing's, without importing typing
if TYPE_CHECKING:
    from collections.abc import Callable

_SUN_PATH_MAX = 107  # unix(7)


class DriverError(Exception):
    """There is no answer from the driver. The text is one line for the user."""


class OriginalProtocolOnly(DriverError):
    """The driver has no socket of protocol v1, and what was asked needs it."""


def mount(path: str, request: MountRequest, wait: float, say: "Callable[[str], None]") -> tuple[Reply, int]:
    """Ask for the volume's mount at the socket `path`.

    `wait` is how many seconds to wait for a socket that is missing or refuses, `say` prints a line meanwhile. Returns
    the answer and the /dev/fuse fd, which the caller owns; the fd is -1 where the answer is a refusal. Raises
    DriverError.
    """
    packet = _encode(request)
    sock, is_v1 = _connect(path, wait, say, may_be_original=True)
    try:
        if is_v1:
            _send(sock, packet)
        return _receive_mount(sock, is_v1)
    finally:
        sock.close()


def prepare(path: str, request: MountRequest, wait: float, say: "Callable[[str], None]") -> "tuple[Reply, int, PreparedMount]":
    """Ask for a /dev/fuse fd that is mounted later (`request.sync_init`); arguments, answer and errors as for mount().

    Raises OriginalProtocolOnly where the driver cannot do that; then it was not asked for anything.
    """
    packet = _encode(request)
    sock, _ = _connect(path, wait, say, may_be_original=False)
    try:
        _send(sock, packet)
        return *_receive_mount(sock, is_v1=True), PreparedMount(sock)
    except BaseException:
        sock.close()
        raise


class PreparedMount:
    """The driver's end of a mount that waits for a word. Closed before that, nothing is mounted."""

    __slots__ = ("socket",)

    def __init__(self, sock: socket) -> None:
        self.socket = sock

    def proceed(self) -> None:
        """Give the word. Raises DriverError."""
        _send(self.socket, protocol.PROCEED)

    def answer(self) -> Reply:
        """How the mount went; waits for it. Raises DriverError."""
        message, fds = _receive(self.socket, protocol.PACKET_MAX, is_v1=True)
        fdpass.close_all(fds)
        return _decode(message, True)

    def close(self) -> None:
        """Wait no longer. The driver gives up a mount that is under way."""
        self.socket.close()


def _receive_mount(sock: socket, is_v1: bool) -> tuple[Reply, int]:
    message, fds = _receive(sock, protocol.PACKET_MAX if is_v1 else protocol.ORIGINAL_MESSAGE_MAX, is_v1)
    try:
        reply = _decode(message, is_v1)
        if reply.error is None and (reply.volume_name is None or len(fds) != 1):
            raise DriverError(f"the driver's answer came with {len(fds)} file descriptors instead of one")
    except BaseException:
        fdpass.close_all(fds)
        raise
    if reply.error is not None:
        fdpass.close_all(fds)
        return reply, -1
    return reply, fds[0]


def unmount(path: str, request: UnmountRequest, wait: float, say: "Callable[[str], None]") -> Reply:
    """Ask to unmount the volume at the socket `path`; arguments as for mount(). Raises DriverError."""
    packet = _encode(request)
    sock, _ = _connect(path, wait, say, may_be_original=False)
    try:
        _send(sock, packet)
        message, fds = _receive(sock, protocol.PACKET_MAX, is_v1=True)
    finally:
        sock.close()
    fdpass.close_all(fds)
    return _decode(message, True)


def _connect(path: str, wait: float, say: "Callable[[str], None]", may_be_original: bool) -> tuple[socket, bool]:
    """A connection, and whether it speaks v1. On the original socket connecting is the request."""
    if "\0" in path:
        raise DriverError(f"the socket's path holds a NUL byte: {path!r}")
    start = monotonic()
    said = False
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
                raise OriginalProtocolOnly(f"the driver behind {path} speaks the original protocol alone, which has no request for it")
        waited = monotonic() - start
        if waited >= wait:
            raise DriverError(
                f"no driver answers at {path} ({posix.strerror(error)}; waited {wait:g} s): "
                "is the volume published, does the driver run on this node, and is the volume's emptyDir mounted here?"
            )
        if not said and waited >= limits.SOCKET_WAIT_SILENT:
            said = True
            say(f"waiting up to {wait:g} s for the driver at {path} ({posix.strerror(error)})")
        sleep(min(limits.SOCKET_RETRY, wait - waited))


def _try_connect(path: str, kind: int) -> tuple[socket | None, int]:
    """A connected socket; or None and the errno, where waiting may help. Raises DriverError where it cannot."""
    try:
        sock = socket(AF_UNIX, kind | SOCK_CLOEXEC)
    except OSError as error:
        raise DriverError(f"no socket can be made: {error.strerror}") from None
    fd = -1
    try:
        sock.settimeout(limits.ANSWER_WAIT)
        raw = path.encode("utf-8", "surrogateescape")
        if len(raw) > _SUN_PATH_MAX:
            # sun_path is too short for it; the link in /proc leads to the same inode.
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


def _encode(request: MountRequest | UnmountRequest) -> bytes:
    try:
        return protocol.encode_request(request)
    except ProtocolError as error:
        raise DriverError(str(error)) from None


def _decode(message: bytes, is_v1: bool) -> Reply:
    if not message and is_v1:
        raise DriverError("the driver closed the connection without an answer: it is stopping, or has too many requests for this volume")
    if not message:
        raise DriverError("the driver refused; its log says why")
    try:
        return protocol.decode_reply(message) if is_v1 else protocol.decode_original(message)
    except ProtocolError as error:
        raise DriverError(f"the driver's answer cannot be read: {error}") from None


def _send(sock: socket, packet: bytes) -> None:
    try:
        fdpass.send_with_fds(sock, packet, [])
    except TimeoutError:
        raise DriverError(f"the driver took no request within {limits.ANSWER_WAIT:g} s") from None
    except (BrokenPipeError, ConnectionResetError):
        pass  # closed already; what it has said before, or that it said nothing, is told by receiving
    except OSError as error:
        raise DriverError(f"failed to send the request to the driver: {error.strerror}") from None


def _receive(sock: socket, size: int, is_v1: bool) -> tuple[bytes, list[int]]:
    """One message: a packet of v1; on the stream socket it may come in pieces, of which the first carries the fd."""
    deadline = monotonic() + limits.ANSWER_WAIT
    message, fds = b"", []
    try:
        while True:
            sock.settimeout(max(deadline - monotonic(), 0.001))
            part, more = fdpass.receive_with_fds(sock, size + 1 - len(message), 1)
            fds += more
            message += part
            if is_v1 or not part or len(message) > size or message.rstrip().endswith(b"}"):
                return message, fds
    except ConnectionResetError:
        return message, fds
    except (OSError, fdpass.Truncated, fdpass.NotLetIn) as error:
        fdpass.close_all(fds)
        raise DriverError(_why_not_received(error)) from None


def _why_not_received(error: OSError | fdpass.Truncated | fdpass.NotLetIn) -> str:
    if isinstance(error, TimeoutError):
        return f"the driver did not answer within {limits.ANSWER_WAIT:g} s"
    if isinstance(error, fdpass.Truncated):
        return "the driver's answer is too long or carries too many file descriptors"
    if isinstance(error, fdpass.NotLetIn):
        return "the driver's file descriptor did not get here: this process may open no more (ulimit -n), or a security module forbids it"
    return f"failed to receive the driver's answer: {error.strerror}"
