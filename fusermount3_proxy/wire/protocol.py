"""Encodes and decodes the packets between client and driver (docs/protocol.md).

Paths and options are bytes. In JSON they are Latin-1 (byte n is code point n), since JSON cannot hold bytes. In the classes
here they are `str` in Latin-1 too; to_wire() makes such text from bytes, and from_wire() makes bytes from such text.
"""

from _json import encode_basestring, encode_basestring_ascii, make_scanner

TYPE_CHECKING = False  # stands for typing.TYPE_CHECKING, since importing typing takes too long

# Sizes are in bytes, the time in seconds.
PACKET_MAX = 64 * 1024
MOUNTPOINT_MAX = 4095  # PATH_MAX of <linux/limits.h>, without the NUL
OPTIONS_MAX = 16 * 1024  # mount(2) takes a page of options; reading many more would take the driver's time
ORIGINAL_MESSAGE_MAX = 500
PROCEED_WAIT = 300.0  # both sides wait so long for the program in a mount with sync_init, as libfuse's helper does

_ERROR_MAX = 4096  # characters; an error may quote the pod's own text, which can be long

PROCEED = b'{"op":"proceed"}'  # the second packet of a mount with sync_init

# Where a container with a fuse device finds the driver's socket (with V1_SUFFIX), and the name of the fd that its mounts come with.
DEVICE_SOCKET = "/opt/mfcp/socket/fuse"
MOUNTPOINT_FD = "mountpoint"

V1_SUFFIX = ".v1"  # NAME is the original protocol's socket, and NAME.v1 is the one of protocol v1


class ProtocolError(Exception):
    """Reports that a packet does not follow the protocol. The text gives the reason in one line."""


class MountRequest:
    """Asks to mount the volume of the socket.

    `mountpoint` is the absolute path that the FUSE program gave, and `options` is the text of its -o. fuse-starter sends "" for
    both. With `sync_init` the fd of the answer is not mounted yet, and the driver mounts it after PROCEED. `fds` has the names
    of the attached fds in their order.
    """

    __slots__ = ("fds", "mountpoint", "options", "sync_init")

    def __init__(self, mountpoint: str, options: str, sync_init: bool = False, fds: tuple[str, ...] = ()) -> None:
        self.mountpoint = mountpoint
        self.options = options
        self.sync_init = sync_init
        self.fds = fds


class UnmountRequest:
    """Asks to unmount the volume of the socket, if `mountpoint` or `device` is the one of its mount.

    `device` is MAJOR:MINOR of the FUSE file system that the client sees at `mountpoint`, None if the client sees none there.
    `fds` has the names of the attached fds in their order.
    """

    __slots__ = ("device", "fds", "lazy", "mountpoint")

    def __init__(self, mountpoint: str, lazy: bool = False, device: str | None = None, fds: tuple[str, ...] = ()) -> None:
        self.mountpoint = mountpoint
        self.lazy = lazy
        self.device = device
        self.fds = fds


class FindRequest:
    """Asks whether the mount of the socket's volume is the one at `mountpoint`; `device` is as in UnmountRequest."""

    __slots__ = ("device", "fds", "mountpoint")

    def __init__(self, mountpoint: str, device: str | None = None, fds: tuple[str, ...] = ()) -> None:
        self.mountpoint = mountpoint
        self.device = device
        self.fds = fds


if TYPE_CHECKING:
    Request = MountRequest | UnmountRequest | FindRequest


class Reply:
    """Answers a request: with `error` and `errno` if the driver refused, otherwise with `volume_name` for a mount."""

    __slots__ = ("errno", "error", "volume_name")

    def __init__(self, volume_name: str | None = None, error: str | None = None, errno: int = 0) -> None:
        self.volume_name = volume_name
        self.error = error
        self.errno = errno


def to_wire(raw: bytes) -> str:
    """Return the bytes of a path or an option as text for a packet."""
    return raw.decode("latin-1")


def from_wire(text: str) -> bytes:
    """Return the bytes of a path or an option from a packet. Raises ProtocolError for a code point above 255."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        raise ProtocolError("a path or an option holds a character above U+00FF (bytes travel as Latin-1)") from None


def encode_request(request: "Request") -> bytes:
    """Return the packet of a request. Raises ProtocolError if mountpoint or options are too long."""
    quote = encode_basestring_ascii
    _check_size("the mountpoint", request.mountpoint, MOUNTPOINT_MAX)
    if isinstance(request, MountRequest):
        _check_size("the text of the options", request.options, OPTIONS_MAX)
        head = f'"op":"mount","mountpoint":{quote(request.mountpoint)},"options":{quote(request.options)}'
        tail = ',"syncInit":true' if request.sync_init else ""
    else:
        if isinstance(request, UnmountRequest):
            head = f'"op":"unmount","mountpoint":{quote(request.mountpoint)},"lazy":{"true" if request.lazy else "false"}'
        else:
            head = f'"op":"find","mountpoint":{quote(request.mountpoint)}'
        tail = f',"dev":{quote(request.device) if request.device is not None else "null"}'
    packet = f'{{{head},"fds":[{",".join(map(quote, request.fds))}]{tail}}}'.encode("ascii")
    if len(packet) > PACKET_MAX:  # a mountpoint and options within their own limits can be too long when they are escaped
        raise ProtocolError(f"mountpoint and options are too long: the request has {len(packet)} bytes, at most {PACKET_MAX} can be sent")
    return packet


def decode_request(packet: bytes) -> "Request":
    """Return the request of a packet. Unknown fields are ignored. Raises ProtocolError."""
    fields = _decode_object(packet, PACKET_MAX)
    op = fields.get("op")
    if op not in ("mount", "unmount", "find"):
        raise ProtocolError(f"op is {_abbreviated(op)}; this driver knows mount, unmount and find")
    mountpoint = _string(fields, "mountpoint")
    _check_size("the mountpoint", mountpoint, MOUNTPOINT_MAX)
    fds = _strings(fields, "fds")
    if op == "mount":
        options = _string(fields, "options", "")
        _check_size("the text of the options", options, OPTIONS_MAX)
        return MountRequest(mountpoint, options, _boolean(fields, "syncInit"), fds)
    device = fields.get("dev")
    if device is not None and not isinstance(device, str):
        raise ProtocolError(f"dev is {_abbreviated(device)}; it must be MAJOR:MINOR or null")
    if op == "find":
        return FindRequest(mountpoint, device, fds)
    return UnmountRequest(mountpoint, _boolean(fields, "lazy"), device, fds)


def check_fds(request: "Request", accepted: tuple[str, ...]) -> None:
    """Raise ProtocolError if the request names an attached fd that is not among the `accepted` names."""
    for name in request.fds:
        if name not in accepted:
            raise ProtocolError(f"fds names {_abbreviated(name)}; this socket accepts {', '.join(accepted) or 'no file descriptors'}")


def check_proceed(packet: bytes) -> None:
    """Raise ProtocolError if the packet is not PROCEED. Unknown fields are ignored."""
    op = _decode_object(packet, PACKET_MAX).get("op")
    if op != "proceed":
        raise ProtocolError(f"op is {_abbreviated(op)}; after a mount with syncInit it must be proceed")


def encode_reply(reply: Reply) -> bytes:
    """Return the packet of an answer. The answer to a successful mount is also the message of the original protocol."""
    quote = encode_basestring  # a volume's name of 255 bytes would not fit into the original message with escapes for non-ASCII
    if reply.error is not None:
        return f'{{"error":{quote(reply.error[:_ERROR_MAX])},"errno":{reply.errno}}}'.encode("utf-8", "replace")
    if reply.volume_name is not None:
        return f'{{"volumeName":{quote(reply.volume_name)}}}'.encode("utf-8", "replace")
    return b"{}"


def decode_reply(packet: bytes, limit: int = PACKET_MAX) -> Reply:
    """Return the answer of a packet of at most `limit` bytes. Raises ProtocolError."""
    fields = _decode_object(packet, limit)
    if "error" in fields:
        return Reply(error=_printable(_string(fields, "error")), errno=_errno(fields))
    if "volumeName" in fields:
        return Reply(volume_name=_printable(_string(fields, "volumeName")))
    return Reply()


def decode_original(message: bytes) -> Reply:
    """Return the answer of the original protocol's message. Raises ProtocolError."""
    reply = decode_reply(message, ORIGINAL_MESSAGE_MAX)
    if reply.volume_name is None:
        raise ProtocolError("the message has no volumeName")
    return reply


class _ScannerSettings:
    """Holds the settings of the json module's C scanner, since `import json` would take longer than the rest of the program."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int

    @staticmethod
    def parse_constant(name: str) -> None:
        raise ProtocolError(f"{name} is not JSON")


_scan_json = make_scanner(_ScannerSettings)  # type: ignore[arg-type]
_WHITESPACE = " \t\n\r"


def _decode_object(packet: bytes, limit: int) -> dict[str, object]:
    if len(packet) > limit:
        raise ProtocolError(f"the packet has {len(packet)} bytes, at most {limit} are allowed")
    try:
        text = packet.decode("utf-8").strip(_WHITESPACE)
        value, end = _scan_json(text, 0)
    except ProtocolError:
        raise
    # The scanner raises StopIteration at the end of the text. If the json module was never imported, the scanner does not
    # find its error class, and raises SystemError or ImportError, which depends on Python's version.
    except (ValueError, StopIteration, SystemError, ImportError, AttributeError, RecursionError):
        raise ProtocolError("the packet is not JSON") from None
    if end != len(text) or not isinstance(value, dict):
        raise ProtocolError("the packet is not one JSON object")
    return value


def _string(fields: dict[str, object], name: str, default: str | None = None) -> str:
    value = fields.get(name, default)
    if not isinstance(value, str):
        raise ProtocolError(f"{name} is {_abbreviated(value)}; it must be a string")
    return value


def _strings(fields: dict[str, object], name: str) -> tuple[str, ...]:
    value = fields.get(name, [])
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ProtocolError(f"{name} must be a list of strings")
    return tuple(value)


def _check_size(what: str, text: str, limit: int) -> None:
    if len(text) > limit:
        raise ProtocolError(f"{what} has {len(text)} bytes, at most {limit} are allowed")
    from_wire(text)


def _printable(text: str) -> str:
    """Return the text with '?' for each lone surrogate, which JSON can express and nothing can print."""
    return text.encode("utf-8", "replace").decode()


def _boolean(fields: dict[str, object], name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise ProtocolError(f"{name} is {_abbreviated(value)}; it must be true or false")
    return value


def _errno(fields: dict[str, object]) -> int:
    value = fields.get("errno", 0)
    if not isinstance(value, int) or not 0 <= value < 4096:
        raise ProtocolError(f"errno is {_abbreviated(value)}; it must be a number of errno(3)")
    return value


def _abbreviated(value: object) -> str:
    if isinstance(value, (dict, list)):
        # repr() fails if the value is nested as deeply as the scanner accepts.
        return "an object" if isinstance(value, dict) else "an array"
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "..."
