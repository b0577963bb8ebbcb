"""Tests volumes without Kubernetes, where several callers come at once."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from driver.blocking.directories import Directories
from driver.model.errors import Code, VolumeError
from driver.model.publication import Publication
from driver.volumes.standalone import Standalone


class Table:
    """Stands in for Volumes, with what is used of it."""

    def __init__(self) -> None:
        self._published: set[str] = set()
        self.failure: VolumeError | None = None
        self.may_end = asyncio.Event()
        self.directories = Directories()

    def at(self, target: str) -> object:
        return target if target in self._published else None

    async def publish(self, publication: Publication) -> object:
        if self.failure is not None:
            Path(publication.paths.root, publication.paths.sockets, "left").touch()
            raise self.failure
        self._published.add(publication.paths.target_path)
        Path(publication.paths.root, publication.paths.sockets, "fuse.sock").touch()
        return publication

    async def unpublish(self, target: str) -> None:
        await self.may_end.wait()
        self._published.discard(target)
        await asyncio.sleep(0)  # whoever waits for the task hears of its end later


async def test_two_removes_at_once(tmp_path: Path) -> None:
    table: Any = Table()
    standalone = Standalone(table, str(tmp_path))
    await standalone.add("v", False, "")
    removes = [asyncio.ensure_future(standalone.remove("v")) for _ in range(2)]
    await asyncio.sleep(0)
    table.may_end.set()
    await asyncio.gather(*removes)
    assert os.listdir(tmp_path) == []


async def test_what_is_added_while_a_remove_ends_stays(tmp_path: Path) -> None:
    table: Any = Table()
    standalone = Standalone(table, str(tmp_path))
    await standalone.add("v", False, "")
    remove = asyncio.ensure_future(standalone.remove("v"))
    table.may_end.set()
    while table.at(f"{tmp_path}/v/mount") is not None:
        await asyncio.sleep(0)
    await standalone.add("v", True, "")
    await remove
    assert os.listdir(tmp_path / "v" / "sock") == ["fuse.sock"]


async def test_why_it_could_not_be_published_is_told_though_the_folder_stays(tmp_path: Path) -> None:
    table: Any = Table()
    table.failure = VolumeError(Code.INTERNAL, "no room")
    with pytest.raises(VolumeError, match="no room"):
        await Standalone(table, str(tmp_path)).add("v", False, "")
