"""mount(2) in a process of its own, which can be killed.

Where a FUSE program asked for a synchronous INIT (the ioctl FUSE_DEV_IOC_SYNC_INIT, Linux 6.18), mount(2) returns when the
program has answered, which a hostile or broken one never does. A thread that waits there cannot be ended, and there is no
mount yet whose connection could be aborted. A process can: killed, it gives up, and the connection ends with its fd.
"""

import asyncio
import os
import signal
from collections.abc import Callable
from errno import EINTR, EINVAL

from driver import apart


class MountProcess:
    """One such process, from its start on."""

    def __init__(self, fd: int, mount: Callable[[], None], on_end: Callable[[], None]) -> None:
        """Start it: it calls `mount()` with `fd` alone, besides the standard streams, of the driver's fds.

        `on_end` is called when it has ended, however it ended, and before `ended` is set. Raises OSError.
        """
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()  # 0, or the errno of mount(2)
        self.is_killed = False
        self._on_end = on_end
        driver = os.getpid()
        pid = os.fork()
        if pid == 0:
            _run(driver, fd, mount)
        self._pidfd = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    def kill(self) -> None:
        """Make it end, soon."""
        if not self.ended.done():
            self.is_killed = True
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _reap(self) -> None:
        info = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        if info is None:
            return
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._on_end()
        self.ended.set_result(info.si_status if info.si_code == os.CLD_EXITED else EINTR)


def _run(driver: int, fd: int, mount: Callable[[], None]) -> None:
    """The process's whole life. Never returns."""
    status = EINVAL
    try:
        if not apart.enter(driver, fd):
            return
        mount()
        status = 0
    except OSError as error:
        status = error.errno or EINVAL
    finally:
        os._exit(status)
