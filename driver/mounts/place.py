"""What a mount needs of the place where it is attached."""

import asyncio
from typing import Protocol

from driver.model.fusemount import FuseMount
from driver.model.state import Detach


class Place(Protocol):
    """Where a FUSE mount is attached, and how it is detached there.

    TargetPlace (target.py), the target path of a volume, is the only one. Another kind would attach and detach a mount in its own
    way; the life of the mount (life.py) would be the same.
    """

    lock: asyncio.Lock  # held by each task that attaches, detaches or checks a mount at this place

    def is_detached(self, mount: FuseMount) -> bool:
        """Return whether `mount` is known not to be attached here any more. Asks no FUSE program."""
        ...

    async def is_gone(self, mount: FuseMount, had_lock: bool) -> bool:
        """Ask the kernel whether `mount` has lost its program, or is not attached here any more.

        `had_lock` says that the mount has a device node, whose lock is gone. Raises NotAsked where nobody could be asked,
        TimeoutError where the program does not answer, which it does only while it lives, and OSError.
        """
        ...

    async def detach(self, mount: FuseMount, how: Detach) -> None:
        """Detach `mount` in every container that sees it.

        Raises OSError, with EBUSY where the unmount is plain and the mount is in use, and nothing has changed then; and
        TimeoutError where the work goes on alone.
        """
        ...
