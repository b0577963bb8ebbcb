"""Tests the HTTP server on real sockets."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest
from open_fds import nothing_leaked
from standin_driver import DEADLINE

from driver.model import limits
from driver.observe import metrics, metricspage
from driver.observe.metricspage import BadAddress

T = TypeVar("T")


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_instruments", None)
    metrics.start(lambda: {"waiting": 0}, lambda: 0, lambda: 0, lambda: 0)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:9100", ("127.0.0.1", 9100)),
        ("localhost:0", ("localhost", 0)),
        (":9100", ("", 9100)),
        ("[::1]:9100", ("::1", 9100)),
        ("[::]:65535", ("::", 65535)),
        ("[fe80::1%eth0]:1", ("fe80::1%eth0", 1)),
    ],
)
def test_an_address_is_host_and_port(address: str, expected: tuple[str, int]) -> None:
    assert metricspage.parse(address) == expected


@pytest.mark.parametrize(
    "address",
    [
        "",
        "9100",
        "host",
        "host:",
        "host:x",
        "host:-1",
        "host:65536",
        "host:٣",
        "::1:9100",
        "fd00::5:9100",
        "[::1]",
        "[::1]9100",
        "[host]:1",
        "[::1]x:1",
        "host:+1",
        "host: 1",
        "host:1_0",
        "host:1\n",
        "a\nb:1",
        "user@host:1",
        "host:1/metrics",
        "host:1?x",
    ],
)
def test_an_invalid_address_is_reported(address: str) -> None:
    with pytest.raises(BadAddress) as caught:
        metricspage.parse(address)
    assert repr(address) in str(caught.value)
    assert str(caught.value).isprintable()


def test_the_error_for_an_ipv6_address_without_brackets_says_how_to_write_it() -> None:
    with pytest.raises(BadAddress, match=r"\[fd00::5\]:9100"):
        metricspage.parse("fd00::5:9100")


@pytest.mark.parametrize("address", ["a b:1", "a\0b:1", "no-such-host.invalid:1", "x" * 300 + ":1", "..:1", "192.0.2.1:9100"])
def test_a_host_that_is_not_this_one_is_reported(address: str) -> None:
    with pytest.raises(BadAddress) as caught:
        metricspage.listen(address)
    assert str(caught.value).isprintable()


def test_a_port_that_is_in_use_is_reported() -> None:
    with metricspage.listen("127.0.0.1:0") as first:
        port = first.getsockname()[1]
        with nothing_leaked(), pytest.raises(BadAddress, match="in use"):
            metricspage.listen(f"127.0.0.1:{port}")


@pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:0", ":0"])
async def test_it_answers_at_that_address(address: str) -> None:
    async with serving(address) as listener:
        host, port = listener.getsockname()[:2]
        with socket.create_connection(("127.0.0.1" if address == ":0" else host, port), DEADLINE) as client:
            assert b"mfcp_mounts_total" in await exchange(client, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")


def test_no_host_is_all_addresses() -> None:
    with metricspage.listen(":0") as listener:
        if socket.has_dualstack_ipv6():
            assert listener.getsockname()[0] == "::"
        else:
            assert listener.getsockname()[0] == "0.0.0.0"


class Listened(Exception):
    pass


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("[::1]:9", ("::1", 9, 0, 0)),
        ("[::]:9", ("::", 9, 0, 0)),
        ("[fd00::5]:0", ("fd00::5", 0, 0, 0)),
        ("[fe80::1%1]:9", ("fe80::1", 9, 0, 1)),
    ],
)
def test_an_ipv6_address_is_listened_at_as_one(address: str, expected: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """This holds on a machine without IPv6, too."""

    def create_server(where: object, **options: object) -> None:
        raise Listened(where, options["family"])

    monkeypatch.setattr(metricspage.socket, "create_server", create_server)
    with pytest.raises(Listened) as caught:
        metricspage.listen(address)
    where, family = caught.value.args
    assert family is socket.AF_INET6
    assert (where[0].partition("%")[0], *where[1:]) == expected


def test_a_name_whose_first_address_this_machine_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in ("192.0.2.1", "127.0.0.1")]
    monkeypatch.setattr(metricspage.socket, "getaddrinfo", lambda *arguments, **options: found)
    with nothing_leaked(), metricspage.listen("name:0") as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


@asynccontextmanager
async def serving(address: str = "127.0.0.1:0") -> AsyncIterator[socket.socket]:
    """Run a server until the end of the block, and check that it leaves nothing behind."""
    with nothing_leaked():
        listener = metricspage.listen(address)
        scrapes = metricspage.MetricsServer()
        await scrapes.start(listener)
        try:
            yield listener
        finally:
            scrapes.stop()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            if others:
                await asyncio.wait(others, timeout=DEADLINE)


def connect(listener: socket.socket) -> socket.socket:
    return socket.create_connection(listener.getsockname()[:2], DEADLINE)


async def in_thread(work: Callable[[], T]) -> T:
    return await asyncio.wait_for(asyncio.to_thread(work), DEADLINE)


async def exchange(client: socket.socket, request: bytes) -> bytes:
    """Return what the server sends until it closes the connection; nothing if it resets it."""

    def work() -> bytes:
        answer = b""
        try:
            client.sendall(request)
            while data := client.recv(65536):
                answer += data
        except ConnectionError:
            pass
        return answer

    return await in_thread(work)


def run(request: bytes) -> bytes:
    async def main() -> bytes:
        async with serving() as listener:
            with connect(listener) as client:
                return await exchange(client, request)

    return asyncio.run(main())


@pytest.mark.parametrize(
    "request_line", [b"GET /metrics HTTP/1.1", b"GET /metrics HTTP/1.0", b"GET /metrics?x=1 HTTP/1.1", b"GET /metrics"]
)
def test_the_page(request_line: bytes) -> None:
    head, _, body = run(request_line + b"\r\nAccept: */*\r\n\r\n").partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 200 OK"
    assert "Content-Type: text/plain; version=0.0.4; charset=utf-8" in lines
    assert f"Content-Length: {len(body)}" in lines
    assert body.startswith(b"# HELP mfcp_build_info")


def test_head_has_no_body() -> None:
    answer = run(b"HEAD /metrics HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /metrics/../etc HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"\r\n\r\n", b"405"),
        (b"\xff\xfe\0\r\n\r\n", b"405"),
    ],
)
def test_another_request_is_refused(request_text: bytes, status: bytes) -> None:
    assert run(request_text).split(b" ")[1] == status


def test_a_head_that_is_too_long_ends_the_connection_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SCRAPE_WAIT", 10 * DEADLINE)
    assert run(b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 4 * limits.SCRAPE_REQUEST_MAX) == b""


def exceptions_of(loop: asyncio.AbstractEventLoop) -> list[dict[str, Any]]:
    """Return a list to which the exceptions are added that nobody handles in the event loop."""
    exceptions: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: exceptions.append(context))
    return exceptions


async def test_clients_that_say_nothing_or_read_nothing_are_cut_off_and_the_next_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SCRAPE_WAIT", 0.2)
    # The page is larger than the socket's buffers.
    monkeypatch.setattr(metrics, "text", lambda: b"x" * 30_000_000)
    async with serving() as listener:
        exceptions = exceptions_of(asyncio.get_running_loop())
        silent, half, greedy = (connect(listener) for _ in range(3))
        half.send(b"GET /metr")
        greedy.send(b"GET /metrics HTTP/1.1\r\n\r\n")
        for client in (silent, half):
            assert await exchange(client, b"") == b""
            client.close()

        def read_late() -> int:
            length = 0
            try:
                while data := greedy.recv(65536):
                    length += len(data)
            except ConnectionError:
                pass
            return length

        await asyncio.sleep(0.4)
        assert await in_thread(read_late) < 30_000_000
        greedy.close()
        monkeypatch.setattr(metrics, "text", lambda: b"page")
        with connect(listener) as client:
            assert (await exchange(client, b"GET /metrics HTTP/1.1\r\n\r\n")).endswith(b"page")
        assert exceptions == []


def test_a_page_that_no_buffer_holds_comes_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    page = b"x" * 10_000_000
    monkeypatch.setattr(metrics, "text", lambda: page)
    assert run(b"GET /metrics HTTP/1.1\r\n\r\n").partition(b"\r\n\r\n")[2] == page


async def test_no_more_than_a_few_are_served_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with asyncio.timeout(DEADLINE), serving() as listener:
        exceptions = exceptions_of(asyncio.get_running_loop())
        many = [connect(listener) for _ in range(limits.SCRAPES_AT_ONCE)]
        # The next connection is closed at once.
        with connect(listener) as client:
            assert await exchange(client, b"GET /metrics HTTP/1.1\r\n\r\n") == b""
        # When one connection ends, the next one is served.
        for client in many:
            client.close()
        while True:
            with connect(listener) as client:
                if await exchange(client, b"GET /metrics HTTP/1.1\r\n\r\n"):
                    break
        assert exceptions == []


@pytest.mark.parametrize(
    ("name", "expected"), [(("127.0.0.1", 9), "127.0.0.1:9"), (("::", 9, 0, 0), "[::]:9"), (("fd00::5", 9, 0, 0), "[fd00::5]:9")]
)
def test_the_url_has_the_address_that_is_listened_at(name: tuple[object, ...], expected: str) -> None:
    class Listener:
        def getsockname(self) -> tuple[object, ...]:
            return name

    assert metricspage.url(Listener()) == f"http://{expected}/metrics"  # type: ignore[arg-type]
