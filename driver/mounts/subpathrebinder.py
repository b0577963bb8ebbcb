"""Rebinds kubelet's subPath mounts of a volume after a FUSE program was replaced, in the background."""

import asyncio
import logging
import os

from driver.model.fusemount import FuseMount
from driver.mounts.kernel import TargetKernel
from driver.observe.internalerror import report_internal_error
from driver.observe.logs import VolumeLog
from driver.observe.troubles import Troubles

KIND = "subPath"  # of trouble


class SubPathRebinder:
    """Rebinds the subPath mounts to one FUSE mount: check() begins it, and begins it again where it has failed; stop() ends it."""

    def __init__(self, mount: FuseMount, kernel: TargetKernel, log: VolumeLog, troubles: Troubles) -> None:
        self._mount = mount
        self._kernel = kernel
        self._log = log
        self._troubles = troubles
        self._is_done = False
        self._task: asyncio.Task[None] | None = None

    def check(self) -> None:
        """Rebind those that show a former file system. Where that failed, a later call tries again."""
        if not self._kernel.has_sub_paths():
            self._is_done = True  # kubelet binds what is mounted from now on
        if not self._is_done and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._rebind())

    def stop(self) -> None:
        """Rebind no more, and forget what was wrong."""
        self._troubles.end(KIND)
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _rebind(self) -> None:
        try:
            count = await self._kernel.rebind_sub_paths(self._mount.device_number)
        except OSError as error:
            text = f"containers with a subPath of the volume do not see the new mount yet: {_reason(error)}"
            self._troubles.begin(KIND, text, logging.WARNING)
            return
        except Exception:
            report_internal_error("rebinding subPath mounts", self._log)
            return
        self._is_done = True
        self._troubles.end(KIND)
        if count:
            self._log.activity(f"{count} subPath mounts show the new file system")


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "the FUSE program does not answer"
    return f"{os.fsdecode(error.filename)}: {error.strerror}" if error.filename else str(error.strerror)
