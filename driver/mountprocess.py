"""mount(2) in a process of its own, which can be killed.

Where a FUSE program asked for a synchronous INIT (the ioctl FUSE_DEV_IOC_SYNC_INIT, Linux 6.18), mount(2) returns when the
program has answered, which a hostile or broken one never does. A thread that waits there cannot be ended, and there is no
mount yet whose connection could be aborted. A process can: killed, it gives up, and the connection ends with its fd.
"""

import asyncio
from collections.abc import Callable
from errno import EINVAL

from driver import apart, fusemount
from driver.policy import KernelMount


class MountProcess:
    """One such process, from its start on."""

    def __init__(self, fd: int, target: str, kernel: KernelMount, on_end: Callable[[], None]) -> None:
        """Start it: it mounts `fd` at `target`.

        `on_end` is called when it has ended, however it ended, and before `ended` is set. Raises OSError.
        """
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()  # 0, or the errno of mount(2)
        self.is_killed = False
        self._on_end = on_end
        self._job = apart.start(fusemount.mount_fd, target, kernel.source, kernel.fstype, kernel.flags, kernel.data, fds=[fd])
        asyncio.get_running_loop().add_reader(self._job.reader, self._read)

    def kill(self) -> None:
        """Make it end, soon."""
        if not self.ended.done():
            self.is_killed = True
            self._job.kill()

    def _read(self) -> None:
        if not self._job.read():
            return
        asyncio.get_running_loop().remove_reader(self._job.reader)
        errno = 0
        try:
            self._job.result()
        except OSError as error:
            errno = error.errno or EINVAL
        self._job.close()
        try:
            self._on_end()
        finally:
            self.ended.set_result(errno)
