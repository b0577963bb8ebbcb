"""A mount that waits until its container says that the program is ready to answer INIT (sync-init)."""

import asyncio
import os
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from driver.devices.shared import Shared
from driver.model.peer import Peer
from driver.model.policy import DetachedArguments
from fusermount3_proxy.wire.protocol import MountRequest


class Requests(Protocol):
    """What such a mount asks of the allocation's requests (requests.DeviceRequests)."""

    allocation: str

    async def mount_prepared(self, prepared: "PreparedDeviceMount", client_gone: "asyncio.Future[None]") -> None:
        """Mount it, as long as the container waits. Raises Refused."""

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Let something go on that nobody waits for."""


@dataclass
class PreparedDeviceMount:
    """A /dev/fuse that a container has, and that is mounted when it says so (pods.handler.Prepared)."""

    requests: Requests
    shared: Shared
    request: MountRequest
    peer: Peer
    arguments: DetachedArguments
    name: str  # of the device node
    fd: int
    target: int
    is_handed_on: bool = False

    async def mount(self, client_gone: "asyncio.Future[None]") -> None:
        """Mount it, unless `client_gone` is settled before the program has answered INIT. Raises Refused."""
        await self.requests.mount_prepared(self, client_gone)

    def close(self) -> None:
        """Close what it holds."""
        os.close(self.fd)
        self.requests.in_background(self.shared.visits.drop(self.requests.allocation, [self.target]))

    def discard(self) -> None:
        """Close what it holds and remove the device node, unless mount() was called."""
        if not self.is_handed_on:
            self.is_handed_on = True
            self.close()
            self.shared.workspace.devices.remove(self.name)
