"""Watches the first process of each container that has mounts: with it the container ends, and all that the driver holds of it."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from driver.devices.mount import DeviceMount
from driver.model import limits
from driver.observe.internalerror import report_internal_error
from driver.observe.logs import log

_PF_EXITING = 0x4  # <linux/sched.h>
_SIGKILL = 1 << 8


class Containers:
    """Holds a pidfd of the first process of each container with mounts, and those mounts."""

    def __init__(self) -> None:
        self._by_name: dict[str, _Container] = {}

    def add(self, mount: DeviceMount, process: int) -> None:
        """Watch the container of a mount. Owns `process`, a pidfd of its first process, or -1 where it has none of its own."""
        found = self._by_name.get(mount.container)
        if found is not None:
            found.mounts.append(mount)
            if process >= 0:
                os.close(process)
        elif process >= 0:
            self._by_name[mount.container] = _Container(process, [mount], self._ended)

    def remove(self, mount: DeviceMount) -> None:
        """Forget a mount that has ended, and its container with the last one."""
        found = self._by_name.get(mount.container)
        if found is not None and mount in found.mounts:
            found.mounts.remove(mount)
            if not found.mounts:
                self._by_name.pop(mount.container).close()

    async def abort_ending_periodically(self) -> None:
        """End the connections of containers that cannot end, until this is cancelled.

        A process that waits for a FUSE program of its own container is not ended by SIGKILL once the program has read the request. When the
        container is killed, the program may be waiting in the same way, and the container would never end.
        """
        while True:
            await asyncio.sleep(limits.CONTAINER_CHECK_INTERVAL)
            try:
                for container in list(self._by_name.values()):
                    container.abort_if_ending()
            except Exception:
                report_internal_error("looking for containers that cannot end")

    def _ended(self, container: "_Container") -> None:
        for mount in list(container.mounts):
            mount.end_with_container()

    def close(self) -> None:
        """Watch no more: the driver stops."""
        for container in self._by_name.values():
            container.close()
        self._by_name = {}


class _Container:
    def __init__(self, process: int, mounts: list[DeviceMount], on_end: Callable[["_Container"], None]) -> None:
        self.mounts = mounts
        self._process = process
        self._on_end = on_end
        self._was_ending = False
        asyncio.get_running_loop().add_reader(process, self._end)

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._process)
        self._on_end(self)

    def abort_if_ending(self) -> None:
        """End the connections where the first process has been ending since the last look."""
        is_ending = self._is_ending()
        if is_ending and self._was_ending:
            for mount in self.mounts:
                log.warning(f"{mount.record.allocation}: the container is being ended and its mount keeps it, so that mount is ended")
                mount.kernel.abort()
        self._was_ending = is_ending

    def _is_ending(self) -> bool:
        """Return whether the process is exiting, or has been killed and waits in the kernel (proc_pid_stat(5), proc_pid_status(5))."""
        try:
            info = Path(f"/proc/self/fdinfo/{self._process}").read_text("ascii")
            pid = next(line.split()[1] for line in info.splitlines() if line.startswith("Pid:"))
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
            pending = Path(f"/proc/{pid}/status").read_text(errors="replace")
        except (OSError, StopIteration, IndexError):
            return False
        masks = [int(line.split()[1], 16) for line in pending.splitlines() if line.startswith(("SigPnd:", "ShdPnd:"))]
        return bool(int(fields[6]) & _PF_EXITING) or any(mask & _SIGKILL for mask in masks)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._process)
        os.close(self._process)
