"""The wire between pod and driver (docs/protocol.md): packets to bytes and back. No input or output happens here.

Paths and options are bytes on both sides and Latin-1 on the wire (byte n is code point n), so any bytes survive JSON.
Inside the programs they are `str` in that same Latin-1 form; `to_wire` and `from_wire` change forms.
"""

from _json import encode_basestring, encode_basestring_ascii, make_scanner

# Sizes are in bytes, the time in seconds.
PACKET_MAX = 64 * 1024
MOUNTPOINT_MAX = 4095  # PATH_MAX of <linux/limits.h>, without the NUL
OPTIONS_MAX = 16 * 1024  # mount(2) takes a page of options; reading many more would take the driver's time
ORIGINAL_MESSAGE_MAX = 500
PROCEED_WAIT = 300.0  # both sides wait that long for the program's word in a mount with sync_init, as libfuse's helper does

_ERROR_MAX = 4096  # characters; part of it may be the pod's own text, of any length

PROCEED = b'{"op":"proceed"}'  # the second packet of a mount with sync_init

V1_SUFFIX = ".v1"  # NAME is the original protocol's socket, NAME.v1 is ours


class ProtocolError(Exception):
    """What arrived is not a packet of this protocol. The text says what is wrong with it."""


class MountRequest:
    """Mount the volume of this socket.

    `mountpoint` is what the program asked for, absolute, "" from fuse-starter; `options` is the text of its -o. With
    `sync_init` the answer's fd is not mounted yet: the driver mounts it after PROCEED.
    `fds` has the names of the attached fds, in their order.
    """

    __slots__ = ("fds", "mountpoint", "options", "sync_init")

    def __init__(self, mountpoint: str, options: str, sync_init: bool = False, fds: tuple[str, ...] = ()) -> None:
        self.mountpoint = mountpoint
        self.options = options
        self.sync_init = sync_init
        self.fds = fds


class UnmountRequest:
    """Unmount the volume of this socket, if its mount is the one at `mountpoint`.

    `device` is MAJOR:MINOR of the FUSE file system that the client sees at `mountpoint`, None where it sees none.
    `fds` has the names of the attached fds, in their order.
    """

    __slots__ = ("device", "fds", "lazy", "mountpoint")

    def __init__(self, mountpoint: str, lazy: bool = False, device: str | None = None, fds: tuple[str, ...] = ()) -> None:
        self.mountpoint = mountpoint
        self.lazy = lazy
        self.device = device
        self.fds = fds


class Reply:
    """The driver's answer: `volume_name` (a mount), or `error` and `errno`, or none of them (an unmount)."""

    __slots__ = ("errno", "error", "volume_name")

    def __init__(self, volume_name: str | None = None, error: str | None = None, errno: int = 0) -> None:
        self.volume_name = volume_name
        self.error = error
        self.errno = errno


def to_wire(raw: bytes) -> str:
    """Bytes of a path or option as the text that travels."""
    return raw.decode("latin-1")


def from_wire(text: str) -> bytes:
    """The bytes of a path or option that travelled. Raises ProtocolError for a code point above 255."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        raise ProtocolError("a path or an option holds a character above U+00FF (bytes travel as Latin-1)") from None


def encode_request(request: MountRequest | UnmountRequest) -> bytes:
    """The packet of a request. Raises ProtocolError where mountpoint or options are longer than they may be."""
    quote = encode_basestring_ascii
    _check_bytes("the mountpoint", request.mountpoint, MOUNTPOINT_MAX)
    if isinstance(request, MountRequest):
        _check_bytes("the text of the options", request.options, OPTIONS_MAX)
        head = f'"op":"mount","mountpoint":{quote(request.mountpoint)},"options":{quote(request.options)}'
        tail = ',"syncInit":true' if request.sync_init else ""
    else:
        head = f'"op":"unmount","mountpoint":{quote(request.mountpoint)},"lazy":{"true" if request.lazy else "false"}'
        tail = f',"dev":{quote(request.device) if request.device is not None else "null"}'
    packet = f'{{{head},"fds":[{",".join(map(quote, request.fds))}]{tail}}}'.encode("ascii")
    if len(packet) > PACKET_MAX:  # where most of the characters have to be escaped
        raise ProtocolError(f"mountpoint and options are too long: the request has {len(packet)} bytes, at most {PACKET_MAX} can be sent")
    return packet


def decode_request(packet: bytes) -> MountRequest | UnmountRequest:
    """A request from its packet. Fields that are not known are ignored. Raises ProtocolError."""
    fields = _decode_object(packet, PACKET_MAX)
    op = fields.get("op")
    if op not in ("mount", "unmount"):
        raise ProtocolError(f"op is {_shown(op)}; this driver knows mount and unmount")
    mountpoint = _text(fields, "mountpoint")
    _check_bytes("the mountpoint", mountpoint, MOUNTPOINT_MAX)
    fds = _names(fields, "fds")
    if op == "mount":
        options = _text(fields, "options", "")
        _check_bytes("the text of the options", options, OPTIONS_MAX)
        return MountRequest(mountpoint, options, _flag(fields, "syncInit"), fds)
    device = fields.get("dev")
    if device is not None and not isinstance(device, str):
        raise ProtocolError(f"dev is {_shown(device)}; it must be MAJOR:MINOR or null")
    return UnmountRequest(mountpoint, _flag(fields, "lazy"), device, fds)


def check_fds(request: MountRequest | UnmountRequest, accepted: tuple[str, ...]) -> None:
    """Raise ProtocolError where the request names an attached fd that is not among the `accepted` names."""
    for name in request.fds:
        if name not in accepted:
            raise ProtocolError(f"fds names {_shown(name)}; this socket accepts {', '.join(accepted) or 'no file descriptors'}")


def check_proceed(packet: bytes) -> None:
    """Raises ProtocolError where the packet is not PROCEED (fields that are not known are ignored)."""
    op = _decode_object(packet, PACKET_MAX).get("op")
    if op != "proceed":
        raise ProtocolError(f"op is {_shown(op)}; after a mount with syncInit it must be proceed")


def encode_reply(reply: Reply) -> bytes:
    """The packet of an answer; also the one message of the original protocol, for a mount that was made."""
    quote = encode_basestring  # not escaped: a volume's name of 255 bytes must fit into the original message
    if reply.error is not None:
        return f'{{"error":{quote(reply.error[:_ERROR_MAX])},"errno":{reply.errno}}}'.encode("utf-8", "replace")
    if reply.volume_name is not None:
        return f'{{"volumeName":{quote(reply.volume_name)}}}'.encode("utf-8", "replace")
    return b"{}"


def decode_reply(packet: bytes, limit: int = PACKET_MAX) -> Reply:
    """An answer from its packet of at most `limit` bytes. Raises ProtocolError."""
    fields = _decode_object(packet, limit)
    if "error" in fields:
        return Reply(error=_printable(_text(fields, "error")), errno=_errno(fields))
    if "volumeName" in fields:
        return Reply(volume_name=_printable(_text(fields, "volumeName")))
    return Reply()


def decode_original(message: bytes) -> Reply:
    """The answer in the original protocol's one message. Raises ProtocolError."""
    reply = decode_reply(message, ORIGINAL_MESSAGE_MAX)
    if reply.volume_name is None:
        raise ProtocolError("the message has no volumeName")
    return reply


class _Scan:
    """What the json module's C scanner takes as its settings; `import json` would cost more than the whole program."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int

    @staticmethod
    def parse_constant(name: str) -> None:
        raise ProtocolError(f"{name} is not JSON")


_scan = make_scanner(_Scan)  # type: ignore[arg-type]
_SPACE = " \t\n\r"


def _decode_object(packet: bytes, limit: int) -> dict[str, object]:
    if len(packet) > limit:
        raise ProtocolError(f"the packet has {len(packet)} bytes, at most {limit} are allowed")
    try:
        text = packet.decode("utf-8").strip(_SPACE)
        value, end = _scan(text, 0)
    except ProtocolError:
        raise
    # Where the json module was never imported the scanner does not find its own error class: it then raises SystemError
    # or ImportError, as the version of Python has it. StopIteration is the end of the text.
    except (ValueError, StopIteration, SystemError, ImportError, AttributeError, RecursionError):
        raise ProtocolError("the packet is not JSON") from None
    if end != len(text) or not isinstance(value, dict):
        raise ProtocolError("the packet is not one JSON object")
    return value


def _text(fields: dict[str, object], name: str, default: str | None = None) -> str:
    value = fields.get(name, default)
    if not isinstance(value, str):
        raise ProtocolError(f"{name} is {_shown(value)}; it must be a string")
    return value


def _names(fields: dict[str, object], name: str) -> tuple[str, ...]:
    value = fields.get(name, [])
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ProtocolError(f"{name} must be a list of strings")
    return tuple(value)


def _check_bytes(what: str, text: str, most: int) -> None:
    if len(text) > most:
        raise ProtocolError(f"{what} has {len(text)} bytes, at most {most} are allowed")
    from_wire(text)


def _printable(text: str) -> str:
    """JSON can say half of a character that UTF-16 writes as two; nothing can print it."""
    return text.encode("utf-8", "replace").decode()


def _flag(fields: dict[str, object], name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise ProtocolError(f"{name} is {_shown(value)}; it must be true or false")
    return value


def _errno(fields: dict[str, object]) -> int:
    value = fields.get("errno", 0)
    if not isinstance(value, int) or not 0 <= value < 4096:
        raise ProtocolError(f"errno is {_shown(value)}; it must be a number of errno(3)")
    return value


def _shown(value: object) -> str:
    if isinstance(value, (dict, list)):
        # Nested as deeply as the scanner takes it, it would be too deep for repr().
        return "an object" if isinstance(value, dict) else "an array"
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "..."
