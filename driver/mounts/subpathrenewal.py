"""Gives kubelet's subPath binds of a volume the file system that is mounted there now, in the background."""

import asyncio
import logging
import os

from driver.blocking.calls import BoundedCall
from driver.model import limits
from driver.model.fusemount import FuseMount
from driver.model.paths import VolumePaths
from driver.mounts import subpaths
from driver.observe.logs import VolumeLog
from driver.observe.troubles import Troubles

KIND = "subPath"  # of trouble


class SubPathRenewal:
    """Of one FUSE mount, from when it is there until stop()."""

    __slots__ = ("_caller", "_has_old", "_log", "_paths", "_record", "_renewing", "_troubles")

    def __init__(self, record: FuseMount, paths: VolumePaths, caller: BoundedCall, log: VolumeLog, troubles: Troubles) -> None:
        """`caller` is the target's own: a program that never answers keeps one process, however often others mount."""
        self._record = record
        self._paths = paths
        self._caller = caller
        self._log = log
        self._troubles = troubles
        self._has_old = True  # for all that is known here
        self._renewing: asyncio.Task[None] | None = None

    def look(self) -> None:
        """Renew those that show a former file system. Where it failed, a later call tries again."""
        if not subpaths.has_any(self._paths):
            self._has_old = False  # those that are made later show what is mounted then
        if self._has_old and (self._renewing is None or self._renewing.done()):
            self._renewing = asyncio.get_running_loop().create_task(self._renew())

    def stop(self) -> None:
        """Renew no more."""
        if self._renewing is not None:
            self._renewing.cancel()
            self._renewing = None

    async def _renew(self) -> None:
        try:
            folder, target = subpaths.folder(self._paths), self._paths.target_path
            # The program has to answer for that.
            done = await self._caller.call(self._paths.owner, limits.SUB_PATH_WAIT, subpaths.renew, folder, target, self._record.device)
        except OSError as error:
            text = f"containers with a subPath of the volume do not see the new mount yet: {_reason(error)}"
            self._troubles.begin(KIND, text, logging.WARNING)
            return
        self._has_old = False
        self._troubles.end(KIND)
        if done:
            self._log.activity(f"subPath binds that show the new mount: {done}")


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "the FUSE program does not answer"
    return f"{os.fsdecode(error.filename)}: {error.strerror}" if error.filename else str(error.strerror)
