"""mount(2) in a process of its own, which can be killed.

Where a FUSE program asked for a synchronous INIT (the ioctl FUSE_DEV_IOC_SYNC_INIT, Linux 6.18), mount(2) returns when the
program has answered, which a hostile or broken one never does. A thread that waits there cannot be ended, and there is no
mount yet whose connection could be aborted. A process can: killed, it gives up, and the connection ends with its fd.
"""

import asyncio
import os
from collections.abc import Callable
from errno import EINTR, EIO

from driver.blocking.processes import Process, Starter
from driver.model.policy import MountArguments
from driver.mounts import fusemount
from driver.observe.internalerror import report_internal_error


class MountProcess:
    """Makes one such mount."""

    def __init__(self, starter: Starter, fd: int, target: str, kernel: MountArguments, on_end: Callable[[], None]) -> None:
        """Mount `fd` at `target`, in a process as soon as there is one; until `on_end` is called `fd` stays open.

        `on_end` is called when it has ended, however it ended, and before `ended` is set.
        """
        # 0, or the errno of mount(2), or of what it would need (EAGAIN where there is no process in time).
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.is_killed = False
        self._process: Process | None = None
        self._mounting = asyncio.get_running_loop().create_task(self._mount(starter, fd, target, kernel, on_end))

    def kill(self) -> None:
        """Make it end, soon."""
        if not self.ended.done() and not self.is_killed:
            self.is_killed = True
            if self._process is not None:
                self._process.kill()

    async def _mount(self, starter: Starter, fd: int, target: str, kernel: MountArguments, on_end: Callable[[], None]) -> None:
        errno = EIO  # of a mistake, which must not keep the volume either
        try:
            await self._mount_apart(starter, fd, target, kernel)
            errno = 0
        except OSError as error:
            errno = error.errno or errno
        except Exception:
            report_internal_error("mounting in a process of its own; the request is refused")
        finally:
            try:
                on_end()
            except Exception:
                errno = EIO
                report_internal_error("beginning to watch a new mount, which is unmounted; the request is refused")
            finally:
                self.ended.set_result(errno)

    async def _mount_apart(self, starter: Starter, fd: int, target: str, kernel: MountArguments) -> None:
        with await starter.process() as self._process:
            if self.is_killed:
                raise InterruptedError(EINTR, os.strerror(EINTR))
            await self._process.do(fusemount.mount_fd, target, kernel.source, kernel.fstype, kernel.flags, kernel.data, fds=[fd])
