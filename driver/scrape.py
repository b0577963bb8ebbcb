"""Serves the metrics over HTTP, where --metrics-address asks for it; otherwise nothing is opened on the network.

A page is made and handed to the kernel in about a millisecond of the event loop, without a thread. Whoever connects has
a limited time for all of it, and few do it at once, so one that reads slowly or never costs a connection for that time.
"""

import asyncio
import os
import socket
from errno import EADDRNOTAVAIL

from driver import metrics
from fusermount3_proxy import limits

_PATH = b"/metrics"
_BACKLOG = 16


class BadAddress(Exception):
    """An address that cannot be listened at; the text says why."""


def parse(address: str) -> tuple[str, int]:
    """HOST:PORT as a pair; an IPv6 address stands in brackets, and no HOST is all addresses. Raises BadAddress."""
    host, colon, port = address.rpartition(":")
    if not (colon and port.isascii() and port.isdigit() and int(port) <= 65535):
        raise BadAddress(f"{address!r} is not HOST:PORT")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host:
            raise BadAddress(f"{address!r}: only an IPv6 address stands in brackets")
    elif ":" in host:
        raise BadAddress(f"{address!r}: write an IPv6 address in brackets, [{host}]:{port}")
    if "\0" in host or any(c.isspace() for c in host):
        raise BadAddress(f"{address!r}: the host is not one")
    return host, int(port)


def listen(address: str) -> socket.socket:
    """A socket that listens at HOST:PORT. Raises BadAddress."""
    host, port = parse(address)
    try:
        return _listen_at(host, port) if host else _listen_everywhere(port)
    except socket.gaierror as error:
        raise BadAddress(f"{address!r}: the host is not known: {error.strerror}") from None
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the host is not one"
        raise BadAddress(f"cannot listen at {address!r}: {reason}") from None


def _listen_at(host: str, port: int) -> socket.socket:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for number, (family, _, _, _, where) in enumerate(found, 1):
        try:
            return socket.create_server(where, family=family, backlog=_BACKLOG)
        except OSError:
            # A name may have an IPv6 address on a machine that has none.
            if number == len(found):
                raise
    raise OSError(EADDRNOTAVAIL, os.strerror(EADDRNOTAVAIL))


def _listen_everywhere(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_BACKLOG)
    return socket.create_server(("", port), backlog=_BACKLOG)


def url(listener: socket.socket) -> str:
    """Where the page is, for the log."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{_PATH.decode()}"


class Scrapes:
    """The HTTP server; it owns its listening socket."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._serving = 0

    async def start(self, listener: socket.socket) -> None:
        """Answer whoever connects."""
        self._server = await asyncio.start_server(self._serve, sock=listener, limit=limits.SCRAPE_REQUEST_MAX, backlog=_BACKLOG)

    def stop(self) -> None:
        """Take no more connections."""
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
                # Until the client has taken all of it.
                writer.close()
                await writer.wait_closed()
        except (OSError, EOFError, asyncio.LimitOverrunError):
            pass  # late, gone, or no request: the abort below is the answer
        finally:
            writer.transport.abort()
            self._serving -= 1


def _answer(head: bytes) -> bytes:
    method, _, rest = head.split(b"\r\n", 1)[0].partition(b" ")
    path = rest.split(b" ")[0].split(b"?")[0]
    if method not in (b"GET", b"HEAD"):
        return _response("405 Method Not Allowed", "text/plain", b"only GET and HEAD\n", with_body=True)
    if path != _PATH:
        return _response("404 Not Found", "text/plain", b"the metrics are at /metrics\n", method == b"GET")
    return _response("200 OK", metrics.CONTENT_TYPE, metrics.text(), method == b"GET")


def _response(status: str, kind: str, body: bytes, with_body: bool) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + (body if with_body else b"")
