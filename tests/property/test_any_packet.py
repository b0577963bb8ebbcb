import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from fusermount3_proxy.wire import protocol
from fusermount3_proxy.wire.protocol import ORIGINAL_MESSAGE_MAX, PACKET_MAX, MountRequest, ProtocolError, Reply, UnmountRequest

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["mount", "unmount", "/m", "0:45"])
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=8)
names = ["op", "mountpoint", "options", "fds", "syncInit", "lazy", "dev", "volumeName", "error", "errno"]
objects = st.dictionaries(st.sampled_from(names) | st.text(), values)
packets = (
    st.binary()
    | st.text().map(lambda text: text.encode("utf-8", "surrogatepass"))
    | values.map(json.dumps).map(str.encode)
    | objects.map(json.dumps).map(str.encode)
    # These packets are correct except for a part that is cut off or inserted.
    | st.builds(
        lambda packet, at, noise: packet[:at] + noise + packet[at:],
        objects.map(json.dumps).map(str.encode),
        st.integers(0, 200),
        st.binary(max_size=3),
    )
    | st.builds(lambda packet, at: packet[:at], objects.map(json.dumps).map(str.encode), st.integers(0, 200))
)


@given(packets)
@example(b"[" * PACKET_MAX)
@example(b"1" * PACKET_MAX)
@example(b'{"op":"mount","mountpoint":"\\ud800"}')
def test_decoding_a_request_raises_only_its_own_error(packet: bytes) -> None:
    try:
        request = protocol.decode_request(packet)
    except ProtocolError as error:
        assert len(str(error)) < 500
        assert "\n" not in str(error)
        return
    # All fields of the request have the right types.
    assert all(isinstance(name, str) for name in request.fds)
    protocol.from_wire(request.mountpoint)
    if isinstance(request, MountRequest):
        protocol.from_wire(request.options)
        assert isinstance(request.sync_init, bool)
    else:
        assert isinstance(request.lazy, bool)
        assert request.device is None or isinstance(request.device, str)


@given(packets)
def test_decoding_a_reply_raises_only_its_own_error(packet: bytes) -> None:
    for decode in (protocol.decode_reply, protocol.decode_original):
        try:
            reply = decode(packet)
        except ProtocolError as error:
            assert len(str(error)) < 500
            continue
        assert reply.error is None or isinstance(reply.error, str)
        assert reply.volume_name is None or isinstance(reply.volume_name, str)
        assert 0 <= reply.errno < 4096


@given(packets)
@example(b'{"error":"\\ud800"}')
def test_a_decoded_reply_can_be_printed(packet: bytes) -> None:
    try:
        reply = protocol.decode_reply(packet)
    except ProtocolError:
        return
    (reply.error or reply.volume_name or "").encode("utf-8", "surrogateescape")


@given(st.binary(), st.binary(), st.booleans())
def test_a_mount_request_of_any_bytes_arrives(mountpoint: bytes, options: bytes, sync_init: bool) -> None:
    sent = MountRequest(protocol.to_wire(mountpoint), protocol.to_wire(options), sync_init)
    packet = protocol.encode_request(sent)
    assert json.loads(packet)["op"] == "mount"
    received = protocol.decode_request(packet)
    assert isinstance(received, MountRequest)
    assert protocol.from_wire(received.mountpoint) == mountpoint
    assert protocol.from_wire(received.options) == options
    assert received.sync_init is sync_init


@given(st.binary(), st.booleans(), st.none() | st.text())
def test_an_unmount_request_of_any_bytes_arrives(mountpoint: bytes, lazy: bool, device: str | None) -> None:
    packet = protocol.encode_request(UnmountRequest(protocol.to_wire(mountpoint), lazy, device))
    received = protocol.decode_request(packet)
    assert isinstance(received, UnmountRequest)
    assert (protocol.from_wire(received.mountpoint), received.lazy, received.device) == (mountpoint, lazy, device)


@given(st.text(), st.integers(0, 4095))
def test_a_refusal_arrives(error: str, errno: int) -> None:
    received = protocol.decode_reply(protocol.encode_reply(Reply(error=error, errno=errno)))
    assert (received.error, received.errno, received.volume_name) == (error, errno, None)


@given(st.text(max_size=60))
def test_a_volumes_name_arrives_in_both_protocols(name: str) -> None:
    packet = protocol.encode_reply(Reply(volume_name=name))
    assert protocol.decode_reply(packet).volume_name == name
    if len(packet) <= ORIGINAL_MESSAGE_MAX:
        assert protocol.decode_original(packet).volume_name == name


@given(st.text(st.characters(max_codepoint=255)))
def test_wire_text_and_bytes_are_one_to_one(text: str) -> None:
    assert protocol.to_wire(protocol.from_wire(text)) == text


@given(st.text())
def test_text_that_stands_for_no_bytes_is_an_error(text: str) -> None:
    try:
        assert len(protocol.from_wire(text)) == len(text)
    except ProtocolError:
        assert max(text) > "\xff"


@given(objects)
def test_the_c_scanner_reads_what_the_json_module_reads(fields: dict[str, Any]) -> None:
    packet = json.dumps(fields).encode()
    if b"NaN" in packet or b"Infinity" in packet:
        return
    assert protocol._decode_object(packet, PACKET_MAX) == json.loads(packet)
