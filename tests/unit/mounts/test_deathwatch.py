"""Tests that the end of a program is noticed, with plain files for device nodes. What the kernel says of real ones, system tests tell."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from driver.linux import syscalls
from driver.linux.filewatch import FileWatch
from driver.mounts import deathwatch
from driver.mounts.deathwatch import DeathWatch


class Devices:
    """Stands in for the device nodes of a program that holds its fd until a test says otherwise."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.held = True
        self.files = FileWatch(syscalls.inotify_init())

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def is_device_held(self, name: str) -> bool:
        return self.held

    def watch_device(self, name: str, callback: Callable[[], None]) -> int:
        return self.files.on_last_close(self.path(name), callback)

    def unwatch(self, watch: int) -> None:
        self.files.remove(watch)


class Mount:
    """Represents a mount. When the watch asks whether it has ended, the answer is `ended`."""

    def __init__(self, folder: Path, node: str | None = "node") -> None:
        (folder / "node").touch()
        self.devices: Any = Devices(folder)
        self.asked: asyncio.Queue[bool] = asyncio.Queue()
        self.ended = True
        self.watch = DeathWatch(node, self.devices, self._has_ended)

    async def _has_ended(self) -> bool:
        self.asked.put_nowait(True)
        return self.ended

    def close(self) -> None:
        """Make the kernel tell of the last close."""
        Path(self.devices.path("node")).open("w").close()


async def test_the_last_close_is_the_end_and_is_told_once(tmp_path: Path) -> None:
    mount = Mount(tmp_path)
    mount.watch.begin()
    mount.devices.held = False
    mount.close()
    await mount.asked.get()
    await asyncio.sleep(1.2)  # longer than all looks take
    assert mount.asked.empty()


async def test_a_lock_that_is_dropped_after_the_kernel_has_told_is_noticed_soon(tmp_path: Path) -> None:
    """The closing process had to wait for a processor in between: at most as long again passes until its end is noticed."""
    mount = Mount(tmp_path)
    mount.watch.begin()
    mount.close()
    began = time.monotonic()
    await asyncio.sleep(0.15)
    mount.devices.held = False
    await mount.asked.get()
    assert time.monotonic() - began < 0.5


async def test_an_end_soon_after_a_false_alarm_is_noticed_at_once(tmp_path: Path) -> None:
    """A program that lives can open and close its own device node, and die then."""
    mount = Mount(tmp_path)
    mount.watch.begin()
    mount.close()
    await asyncio.sleep(0.6)  # the next check of that alarm is far
    mount.devices.held = False
    mount.close()
    began = time.monotonic()
    await mount.asked.get()
    assert time.monotonic() - began < 0.2


async def test_after_stop_nobody_is_asked_and_nothing_is_kept(tmp_path: Path) -> None:
    mount = Mount(tmp_path)
    mount.watch.begin()
    mount.watch.check()
    await asyncio.sleep(0)  # it is at it
    mount.devices.held = False
    mount.close()
    mount.watch.stop()
    await asyncio.sleep(1.2)
    assert mount.asked.empty()
    assert mount.devices.files._callbacks == {}


@pytest.mark.parametrize("node", [None, "missing"])
async def test_where_the_kernel_does_not_tell_it_is_looked_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: str | None
) -> None:
    monkeypatch.setattr(deathwatch.limits, "CHECK_INTERVAL", 0.01)
    mount = Mount(tmp_path, node)
    mount.ended = mount.devices.held = False
    if node is None:
        mount.watch.begin()
    else:
        with pytest.raises(FileNotFoundError):
            mount.watch.begin()
    for _ in range(len(deathwatch._STEPS) + 2):
        await mount.asked.get()
    mount.watch.stop()
