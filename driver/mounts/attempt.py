"""One mount(2), made where it can be given up, and never in the event loop.

mount(2) takes the lock of the directory that it mounts on. An application can hold that lock for as long as it likes: it reads
the directory into memory that its own FUSE program serves, and the program does not answer. So a usual mount is made in a thread
of the volume's own.

A FUSE program that asked for a synchronous INIT (the ioctl FUSE_DEV_IOC_SYNC_INIT, Linux 6.18) makes mount(2) wait until it has
answered, which a hostile or broken one never does. There is no mount yet whose connection could be aborted, so a thread could
not be freed. Such a mount is made in a process: killed, it gives up, and the connection ends with its fd.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from errno import EINTR, EIO
from functools import partial

from driver.blocking.processes import Process, Starter
from driver.blocking.threads import Threads
from driver.model.policy import MountArguments
from driver.mounts import fusemount
from driver.observe.internalerror import report_internal_error


class MountAttempt:
    """One such mount, from its beginning until mount(2) has returned."""

    def __init__(self, mount: Callable[["MountAttempt"], Awaitable[None]], on_end: Callable[[int], int]) -> None:
        """Begin. `on_end` is called when mount(2) has returned, with its errno, and returns the one for `ended`."""
        # 0, or the errno of mount(2), or of what it needed (EAGAIN where there was no process in time).
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.is_given_up = False
        self.process: Process | None = None
        self._task = asyncio.get_running_loop().create_task(self._run(mount, on_end))

    @staticmethod
    def in_thread(threads: Threads, fd: int, target: str, arguments: MountArguments, on_end: Callable[[int], int]) -> "MountAttempt":
        """Mount `fd` at `target` in a thread. `fd` stays open until `on_end` is called."""

        async def mount(attempt: MountAttempt) -> None:
            await threads.run_to_end(partial(attempt._mount, fd, target, arguments))

        return MountAttempt(mount, on_end)

    @staticmethod
    def in_process(starter: Starter, fd: int, target: str, arguments: MountArguments, on_end: Callable[[int], int]) -> "MountAttempt":
        """Mount `fd` at `target` in a process. `fd` stays open until `on_end` is called."""

        async def mount(attempt: MountAttempt) -> None:
            with await starter.process() as attempt.process:
                attempt._check()
                values = (arguments.source, arguments.fstype, arguments.flags, arguments.data)
                await attempt.process.do(fusemount.mount_fd, target, *values, fds=[fd])

        return MountAttempt(mount, on_end)

    def give_up(self) -> None:
        """Make it end soon, if it can: a process is killed, and a thread that has not begun does not mount."""
        if not self.ended.done() and not self.is_given_up:
            self.is_given_up = True
            if self.process is not None:
                self.process.kill()

    def _mount(self, fd: int, target: str, arguments: MountArguments) -> None:
        self._check()
        fusemount.mount_fd(target, arguments.source, arguments.fstype, arguments.flags, arguments.data, fd)

    def _check(self) -> None:
        if self.is_given_up:
            raise InterruptedError(EINTR, os.strerror(EINTR))

    async def _run(self, mount: Callable[["MountAttempt"], Awaitable[None]], on_end: Callable[[int], int]) -> None:
        errno = EIO  # stands for a mistake of the driver's own; the volume must become free after it, too
        try:
            await mount(self)
            errno = 0
        except OSError as error:
            errno = error.errno or errno
        except Exception:
            report_internal_error("mounting; the request is refused")
        finally:
            try:
                errno = on_end(errno)
            except Exception:
                errno = EIO
                report_internal_error("beginning to follow a new mount, which is unmounted; the request is refused")
            finally:
                self.ended.set_result(errno)
