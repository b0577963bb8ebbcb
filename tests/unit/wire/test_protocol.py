import json

import pytest

from fusermount3_proxy.wire import protocol
from fusermount3_proxy.wire.protocol import (
    MOUNTPOINT_MAX,
    OPTIONS_MAX,
    ORIGINAL_MESSAGE_MAX,
    PACKET_MAX,
    MountRequest,
    ProtocolError,
    Reply,
    UnmountRequest,
)

ALL_BYTES = bytes(range(256))


def as_tuple(thing: object) -> tuple[object, ...]:
    return (type(thing).__name__, *(getattr(thing, name) for name in type(thing).__slots__))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (MountRequest("/m", "ro"), {"op": "mount", "mountpoint": "/m", "options": "ro", "fds": []}),
        (MountRequest("", "", sync_init=True), {"op": "mount", "mountpoint": "", "options": "", "fds": [], "syncInit": True}),
        (
            MountRequest("/m", "", fds=("mountpoint", 'a"b')),
            {"op": "mount", "mountpoint": "/m", "options": "", "fds": ["mountpoint", 'a"b']},
        ),
        (UnmountRequest("/m"), {"op": "unmount", "mountpoint": "/m", "lazy": False, "dev": None, "fds": []}),
        (UnmountRequest("/m", True, "0:45"), {"op": "unmount", "mountpoint": "/m", "lazy": True, "dev": "0:45", "fds": []}),
    ],
)
def test_requests_are_the_json_of_the_protocol(request_: MountRequest | UnmountRequest, fields: dict[str, object]) -> None:
    packet = protocol.encode_request(request_)
    assert json.loads(packet) == fields
    assert as_tuple(protocol.decode_request(packet)) == as_tuple(request_)


@pytest.mark.parametrize(
    ("reply", "fields"),
    [
        (Reply(), {}),
        (Reply(volume_name="data"), {"volumeName": "data"}),
        (Reply(volume_name=""), {"volumeName": ""}),
        (Reply(error="no", errno=16), {"error": "no", "errno": 16}),
    ],
)
def test_replies_are_the_json_of_the_protocol(reply: Reply, fields: dict[str, object]) -> None:
    packet = protocol.encode_reply(reply)
    assert json.loads(packet) == fields
    assert as_tuple(protocol.decode_reply(packet)) == as_tuple(reply)


def test_any_bytes_travel_as_latin_1() -> None:
    packet = protocol.encode_request(MountRequest(protocol.to_wire(ALL_BYTES), protocol.to_wire(ALL_BYTES[::-1])))
    assert packet.isascii()
    assert json.loads(packet)["mountpoint"] == "".join(map(chr, range(256)))
    received = protocol.decode_request(packet)
    assert isinstance(received, MountRequest)
    assert protocol.from_wire(received.mountpoint) == ALL_BYTES
    assert protocol.from_wire(received.options) == ALL_BYTES[::-1]


@pytest.mark.parametrize("field", ["mountpoint", "options"])
def test_characters_that_are_no_bytes_are_refused(field: str) -> None:
    request = {"op": "mount", "mountpoint": "/m", "options": "", field: "\u0100"}
    with pytest.raises(ProtocolError, match=r"U\+00FF"):
        protocol.decode_request(json.dumps(request).encode())


def test_fields_that_are_not_known_are_ignored() -> None:
    packet = json.dumps({"op": "mount", "mountpoint": "/m", "options": "", "later": {"x": 1}}).encode()
    assert as_tuple(protocol.decode_request(packet)) == as_tuple(MountRequest("/m", ""))
    assert as_tuple(protocol.decode_reply(b'{"volumeName":"v","later":[]}')) == as_tuple(Reply(volume_name="v"))


@pytest.mark.parametrize("rest", ["", ',"fds":[]'])
@pytest.mark.parametrize("op", ["mount", "unmount"])
def test_without_a_name_no_fd_is_attached(op: str, rest: str) -> None:
    request = protocol.decode_request(f'{{"op":"{op}","mountpoint":"/m"{rest}}}'.encode())
    assert request.fds == ()
    protocol.check_fds(request, ())


@pytest.mark.parametrize("op", ["mount", "unmount"])
def test_a_named_fd_is_refused_where_the_socket_does_not_accept_it(op: str) -> None:
    request = protocol.decode_request(json.dumps({"op": op, "mountpoint": "/m", "fds": ["mountpoint", "other"]}).encode())
    assert request.fds == ("mountpoint", "other")
    protocol.check_fds(request, ("other", "mountpoint"))
    with pytest.raises(ProtocolError, match=r"^fds names 'mountpoint'; this socket accepts no file descriptors$"):
        protocol.check_fds(request, ())
    with pytest.raises(ProtocolError, match=r"^fds names 'other'; this socket accepts mountpoint$"):
        protocol.check_fds(request, ("mountpoint",))


def test_the_refusal_of_any_name_is_one_short_line() -> None:
    for name in ("x" * 60000, "a\nb", "\u0100", "\ud800"):
        with pytest.raises(ProtocolError) as caught:
            protocol.check_fds(protocol.decode_request(json.dumps({"op": "unmount", "mountpoint": "/m", "fds": [name]}).encode()), ())
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 200


def test_options_may_be_left_out_and_space_put_around() -> None:
    assert as_tuple(protocol.decode_request(b' {"op": "mount", "mountpoint": ""}\n')) == as_tuple(MountRequest("", ""))


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b" ",
        b"{",
        b"{}",
        b"[]",
        b"null",
        b"7",
        b'"mount"',
        b"mount",
        b"\xff",
        b'{"op":"mount"',
        b'{"op":"mount"}',
        b'{"op":"mount","mountpoint":null}',
        b'{"op":"mount","mountpoint":7}',
        b'{"op":"mount","mountpoint":"/m","options":[]}',
        b'{"op":"mount","mountpoint":"/m","syncInit":1}',
        b'{"op":"mount","mountpoint":"/m"} {}',
        b'{"op":"mount","mountpoint":"/m"}x',
        b'{"op":"mount","mountpoint":"a\nb"}',
        b'{"op":"mount","mountpoint":"\\ud800"}',
        b'{"op":"mount","mountpoint":NaN}',
        b'{"op":"umount","mountpoint":"/m"}',
        b'{"op":"mount","mountpoint":"/m","fds":null}',
        b'{"op":"mount","mountpoint":"/m","fds":"mountpoint"}',
        b'{"op":"mount","mountpoint":"/m","fds":{}}',
        b'{"op":"mount","mountpoint":"/m","fds":[7]}',
        b'{"op":"unmount","mountpoint":"/m","fds":[["mountpoint"]]}',
        b'{"op":["mount"],"mountpoint":"/m"}',
        b'{"op":"unmount"}',
        b'{"op":"unmount","mountpoint":"/m","lazy":"yes"}',
        b'{"op":"unmount","mountpoint":"/m","dev":7}',
        b"[" * PACKET_MAX,
        b'{"a":' * (PACKET_MAX // 5),
        b"9" * PACKET_MAX,
    ],
)
def test_a_broken_request_is_refused_in_one_short_line(packet: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        protocol.decode_request(packet)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"{",
        b"[]",
        b'{"volumeName":"data"',
        b'{"volumeName":7}',
        b'{"error":null}',
        b'{"error":"no","errno":"EBUSY"}',
        b'{"error":"no","errno":-1}',
        b'{"error":"no","errno":1.5}',
        b'{"error":"no","errno":99999999999999999999}',
    ],
)
def test_a_broken_reply_is_refused(packet: bytes) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode_reply(packet)


def test_a_mountpoint_and_options_have_a_length() -> None:
    assert (MOUNTPOINT_MAX, OPTIONS_MAX) == (4095, 16384)
    longest = MountRequest("m" * MOUNTPOINT_MAX, "o" * OPTIONS_MAX)
    decoded = protocol.decode_request(protocol.encode_request(longest))
    assert isinstance(decoded, MountRequest)
    assert (decoded.mountpoint, decoded.options) == (longest.mountpoint, longest.options)
    for request, text in (
        (MountRequest("m" * (MOUNTPOINT_MAX + 1), ""), "the mountpoint has 4096 bytes, at most 4095 are allowed"),
        (MountRequest("/", "o" * (OPTIONS_MAX + 1)), "the text of the options has 16385 bytes, at most 16384 are allowed"),
        (UnmountRequest("m" * (MOUNTPOINT_MAX + 1), False, None), "the mountpoint has 4096 bytes, at most 4095 are allowed"),
    ):
        with pytest.raises(ProtocolError, match=f"^{text}$"):
            protocol.encode_request(request)
        fields = {"op": "mount" if isinstance(request, MountRequest) else "unmount", "mountpoint": request.mountpoint}
        if isinstance(request, MountRequest):
            fields["options"] = request.options
        with pytest.raises(ProtocolError, match=f"^{text}$"):
            protocol.decode_request(json.dumps(fields).encode())


def test_a_packet_has_at_most_64_kib() -> None:
    assert PACKET_MAX == 65536
    longest = protocol.encode_request(MountRequest("/", "")).ljust(PACKET_MAX)
    assert isinstance(protocol.decode_request(longest), MountRequest)
    with pytest.raises(ProtocolError, match="65537 bytes"):
        protocol.decode_request(longest + b" ")
    with pytest.raises(ProtocolError, match="too long"):
        protocol.encode_request(MountRequest("/", "\xff" * OPTIONS_MAX))  # six bytes each


def test_the_original_message_has_at_most_500_bytes() -> None:
    assert ORIGINAL_MESSAGE_MAX == 500
    message = b'{"volumeName": "%s"}' % (b"v" * 482)
    assert len(message) == 500
    assert protocol.decode_original(message).volume_name == "v" * 482
    with pytest.raises(ProtocolError, match="501 bytes"):
        protocol.decode_original(message[:-2] + b'v"}')


def test_the_original_message_of_the_longest_volume_name_fits() -> None:
    # A volume's name is one component of a path, so it has at most 255 bytes.
    assert len(protocol.encode_reply(Reply(volume_name="v" * 255))) <= ORIGINAL_MESSAGE_MAX


@pytest.mark.parametrize("message", [b"", b"{}", b'{"error":"no","errno":1}', b'{"volumeName":null}'])
def test_an_original_message_without_a_volume_name_is_refused(message: bytes) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode_original(message)


@pytest.mark.parametrize(
    "packet",
    [
        '{"op":%s}',
        '{"op":"mount","mountpoint":%s}',
        '{"op":"unmount","mountpoint":"/x","lazy":%s}',
        '{"op":"mount","mountpoint":"/x","fds":[%s]}',
    ],
)
def test_a_value_that_is_nested_deeply_is_refused(packet: str) -> None:
    for depth in range(1, 1100):
        for opening, closing in (("[", "]"), ('{"a":', "}")):
            with pytest.raises(ProtocolError):
                protocol.decode_request((packet % (opening * depth + "7" + closing * depth)).encode())
