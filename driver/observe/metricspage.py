"""Serves the metrics over HTTP at --metrics-address. Without that option the driver opens nothing on the network.

The event loop makes a page and passes it to the kernel in about a millisecond, without a thread. Connections are limited in
time and number, so a peer that reads slowly, or not at all, uses up one connection for that time.
"""

import asyncio
import socket
from urllib.parse import urlsplit

from driver.model import limits
from driver.observe import metrics

_PATH = b"/metrics"
_BACKLOG = 16


class BadAddress(Exception):
    """Reports why the driver cannot listen at an address."""


def parse(address: str) -> tuple[str, int]:
    """Split HOST:PORT, and return both. An IPv6 address is in brackets; an empty HOST means all addresses. Raises BadAddress."""
    bare_host, _, bare_port = address.rpartition(":")
    if ":" in bare_host and "[" not in bare_host:
        raise BadAddress(f"{address!r}: write an IPv6 address in brackets, [{bare_host}]:{bare_port}")
    try:
        url = urlsplit(f"//{address}")
        host, port = url.hostname or "", url.port
    except ValueError as error:
        raise BadAddress(f"{address!r} is not HOST:PORT: {error}") from None
    # urlsplit() also accepts a path and a user, and it removes line ends.
    if port is None or url.netloc != address or "@" in address:
        raise BadAddress(f"{address!r} is not HOST:PORT")
    return host, port


def listen(address: str) -> socket.socket:
    """Return a socket that listens at HOST:PORT. Raises BadAddress."""
    host, port = parse(address)
    try:
        if host:
            return _listen_at(host, port)
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        return socket.create_server(("", port), family=family, dualstack_ipv6=dual, backlog=_BACKLOG)
    except socket.gaierror as error:
        raise BadAddress(f"{address!r}: the host is not known: {error.strerror}") from None
    except OSError as error:
        raise BadAddress(f"cannot listen at {address!r}: {error.strerror}") from None
    except ValueError:  # the host cannot be encoded as a host name, or holds a NUL
        raise BadAddress(f"{address!r}: this cannot be the name of a host") from None


def _listen_at(host: str, port: int) -> socket.socket:
    *others, last = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, _, _, _, where in others:
        try:
            return socket.create_server(where, family=family, backlog=_BACKLOG)
        except OSError:
            pass  # a host name may have an IPv6 address although this node has none
    return socket.create_server(last[4], family=last[0], backlog=_BACKLOG)


def url(listener: socket.socket) -> str:
    """Return the URL of the metrics page at a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{_PATH.decode()}"


class MetricsServer:
    """Serves the metrics page at one listening socket, which it owns from start() on."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._serving = 0

    async def start(self, listener: socket.socket) -> None:
        """Begin to serve the connections that arrive at `listener`."""
        self._server = await asyncio.start_server(self._serve, sock=listener, limit=limits.SCRAPE_REQUEST_MAX, backlog=_BACKLOG)

    def stop(self) -> None:
        """Accept no more connections."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._serving >= limits.SCRAPES_AT_ONCE:
            writer.transport.abort()
            return
        self._serving += 1
        try:
            async with asyncio.timeout(limits.SCRAPE_WAIT):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(_answer(head))
                # Without this wait the abort() below would drop what the peer has not read yet.
                writer.close()
                await writer.wait_closed()
        except (OSError, EOFError, asyncio.LimitOverrunError):
            pass  # the peer is too slow, has closed the connection, or has sent no request
        finally:
            writer.transport.abort()
            self._serving -= 1


def _answer(head: bytes) -> bytes:
    method, _, rest = head.split(b"\r\n", 1)[0].partition(b" ")
    path = rest.split(b" ")[0].split(b"?")[0]
    if method not in (b"GET", b"HEAD"):
        return _response("405 Method Not Allowed", "text/plain", b"the method must be GET or HEAD\n", with_body=True)
    if path != _PATH:
        return _response("404 Not Found", "text/plain", b"the metrics are at /metrics\n", method == b"GET")
    return _response("200 OK", metrics.CONTENT_TYPE, metrics.text(), method == b"GET")


def _response(status: str, kind: str, body: bytes, with_body: bool) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + (body if with_body else b"")
