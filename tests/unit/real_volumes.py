"""Makes a driver's volumes with real sockets, records and inotify. Device nodes and placeholders, which need root, are never made."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from with_processes import the_starter

from driver.blocking.calls import Bounds
from driver.linux import syscalls
from driver.linux.filewatch import FileWatch
from driver.linux.mounttable import identity_at
from driver.mounts.device import DeviceFolder
from driver.volumes.records import Records
from driver.volumes.volumes import Volumes


def without_placeholders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a driver take the target's directory itself for the placeholder, which only root can mount."""
    monkeypatch.setattr("driver.mounts.fusemount.mount_placeholder", lambda target: identity_at(target))
    monkeypatch.setattr("driver.mounts.takeoff.remove_placeholder", os.rmdir)


@asynccontextmanager
async def volumes_in(folder: Path, records: Records | None = None) -> AsyncIterator[Volumes]:
    """Yield the volumes of a driver whose own files are in `folder`. After the block it serves none, and has nothing open."""
    workspace: Any = SimpleNamespace(devices=DeviceFolder(str(folder / "dev")))
    watch, records = FileWatch(syscalls.inotify_init()), records or Records(str(folder / "state"))
    volumes = Volumes(workspace, watch, records, Bounds(the_starter()))
    yield volumes
    for volume in volumes:
        volume.give_up()
        await volume._service.wait_closed()
    watch.close()
    for fd in (workspace.devices._fd, workspace.devices._making, records._files._lock):
        os.close(fd)
