"""What a volume offers to the server of its sockets: it carries out the requests (volumes/requests.py does)."""

import asyncio
from typing import Protocol

from driver.model.peer import Peer
from fusermount3_proxy.wire.protocol import FindRequest, MountRequest, UnmountRequest


class Prepared(Protocol):
    """Represents a mount with synchronous INIT that waits for the client's `proceed`."""

    @property
    def fd(self) -> int:
        """Return the /dev/fuse fd for the client. The server does not close it."""

    async def mount(self, client_gone: "asyncio.Future[None]") -> None:
        """Mount. Gives up when `client_gone` is settled. Raises Refused."""

    def discard(self) -> None:
        """Close the fd. Does nothing after mount()."""


class Handler(Protocol):
    """Carries out the requests. Coroutines raise Refused."""

    async def mount(self, request: MountRequest, peer: Peer) -> int:
        """Mount, and return the /dev/fuse fd, which the server closes."""

    async def prepare(self, request: MountRequest, peer: Peer) -> Prepared:
        """Prepare a mount with synchronous INIT, for when the client sends `proceed`."""

    async def unmount(self, request: UnmountRequest, peer: Peer) -> None:
        """Unmount."""

    def find(self, request: FindRequest) -> bool:
        """Return whether the mount is the one that the request names."""
