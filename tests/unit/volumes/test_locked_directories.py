"""Tests calls of kubelet that come at once, and directories that a pod keeps locked. The lock is an event for which the thread waits."""

import asyncio
import gc
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from open_fds import nothing_leaked
from real_volumes import volumes_in, without_placeholders
from with_processes import DEADLINE, run, the_starter, until

from driver.model import limits
from driver.model.errors import Code, VolumeError
from driver.model.paths import VolumePaths, standalone
from driver.model.publication import Publication
from driver.pods.sockets import PodSockets
from driver.volumes.recordformat import Record
from driver.volumes.standalone import Standalone
from driver.volumes.volume import Volume
from driver.volumes.volumes import Volumes

SOCKETS = ["fuse.sock", "fuse.sock.v1"]


class Node:
    """Represents one driver's volumes, and directories that can be locked."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.is_free = threading.Event()
        self.waiting: list[str] = []  # the directories for whose locks a thread has waited
        self.made = 0
        self.locked: set[str] = set()
        whole = PodSockets.make

        def make(place: Any, name: str) -> PodSockets:
            if place.path in self.locked:
                self.waiting.append(place.path)
                assert self.is_free.wait(DEADLINE)
            self.made += 1
            return whole(place, name)

        monkeypatch.setattr(PodSockets, "make", staticmethod(make))
        without_placeholders(monkeypatch)

    def publication(self, volume: str = "data", sockets: str = "uid/empty") -> Publication:
        paths = VolumePaths(str(self.folder), f"uid/{volume}/mount", sockets, volume)
        (self.folder / sockets).mkdir(parents=True, exist_ok=True)
        return Publication(volume, paths, "fuse.sock", False, (), "", "")

    def volumes(self) -> AbstractAsyncContextManager[Volumes]:
        return volumes_in(self.folder)

    @asynccontextmanager
    async def publishing(self) -> AsyncIterator[tuple[Volumes, asyncio.Future[Volume]]]:
        """Begin to publish a volume whose directory is locked. The block begins when a thread waits for the lock."""
        async with self.volumes() as volumes:
            self.locked.add("uid/empty")
            call = asyncio.ensure_future(volumes.publish(self.publication()))
            await until(lambda: bool(self.waiting))
            yield volumes, call

    def sockets(self, sockets: str = "uid/empty") -> list[str]:
        return sorted(name for name in os.listdir(self.folder / sockets) if name != "dev-fuse")


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    made = Node(tmp_path, monkeypatch)
    the_starter()
    with nothing_leaked():
        yield made
        made.is_free.set()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the limits short, where a test waits for one."""
    monkeypatch.setattr(limits, "DIRECTORY_WAIT", 0.3)  # enough for work in a free directory, on a busy machine too
    monkeypatch.setattr(limits, "RESTORE_WAIT", 0.3)


async def code_of(call: Awaitable[object]) -> Code:
    with pytest.raises(VolumeError) as caught:
        await call
    return caught.value.code


async def test_two_publishes_of_a_volume_at_once_are_one(node: Node) -> None:
    async with node.volumes() as volumes:
        node.locked.add("uid/empty")
        calls = [asyncio.ensure_future(volumes.publish(node.publication())) for _ in range(2)]
        await until(lambda: bool(node.waiting))
        node.is_free.set()
        first, second = await asyncio.gather(*calls)
        assert first is second
        assert list(volumes) == [first]
        assert node.made == 1


async def test_a_publish_with_other_arguments_is_refused_meanwhile(node: Node) -> None:
    async with node.publishing() as (volumes, call):
        other = replace(node.publication(), read_only=True)
        assert await code_of(volumes.publish(other)) is Code.ABORTED
        node.is_free.set()
        await call
        assert await code_of(volumes.publish(other)) is Code.ALREADY_EXISTS


async def test_two_volumes_that_want_the_same_sockets_at_once_do_not_both_get_them(node: Node) -> None:
    async with node.publishing() as (volumes, call):
        assert await code_of(volumes.publish(node.publication("other"))) is Code.INVALID_ARGUMENT
        node.is_free.set()
        volume = await call
        await volumes.unpublish(volume.target)
        await volumes.publish(node.publication("other"))


async def test_an_unpublish_waits_for_the_publish(node: Node) -> None:
    async with node.publishing() as (volumes, publish):
        unpublish = asyncio.ensure_future(volumes.unpublish(node.publication().paths.target_path))
        await asyncio.sleep(0.01)
        assert await code_of(volumes.publish(node.publication())) is Code.ABORTED
        assert not unpublish.done()
        node.is_free.set()
        await asyncio.gather(publish, unpublish)
        assert list(volumes) == []
        assert node.sockets() == []
        assert not (node.folder / "uid/data/mount").exists()
        assert volumes._records.load() == []


async def test_a_publish_that_its_caller_gives_up_is_finished(node: Node) -> None:
    async with node.publishing() as (volumes, call):
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        node.is_free.set()
        (volume,) = [await volumes.publish(node.publication())]
        assert volume.troubles.texts == []
        assert node.sockets() == SOCKETS
        assert node.made == 1
        assert len(volumes._records.load()) == 1


def test_a_publish_that_fails_after_its_caller_has_gone_is_no_internal_error(
    node: Node, short: None, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with node.publishing() as (volumes, call):
            call.cancel()
            await until(lambda: not volumes._publishing)
            node.is_free.set()
            await until(lambda: node.made == 1 and node.sockets() == [])

    run(main())
    assert "never retrieved" not in caplog.text


async def test_retries_in_a_locked_directory_share_one_thread_and_late_sockets_are_removed(node: Node, short: None) -> None:
    async with node.volumes() as volumes:
        node.locked.add("uid/empty")
        for _ in range(3):
            with pytest.raises(VolumeError, match=f"{node.folder}/uid/empty: a process in a container keeps") as caught:
                await volumes.publish(node.publication())
            assert caught.value.code is Code.DEADLINE_EXCEEDED
        await volumes.unpublish(node.publication().paths.target_path)
        assert len(node.waiting) == 1
        node.is_free.set()
        await until(lambda: node.made == 1 and node.sockets() == [])
        node.locked.clear()
        volume = await volumes.publish(node.publication())
        assert node.sockets() == SOCKETS
        await volumes.unpublish(volume.target)
        del volume, caught  # they keep what they were made with
        gc.collect()
        assert len(volumes.directories._by_path) == 0


def test_an_unpublish_does_not_wait_for_a_directory_that_is_locked(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "PROBE_WAIT", 0.05)
    whole = PodSockets.remove

    def remove(sockets: PodSockets) -> None:
        assert node.is_free.wait(DEADLINE)
        whole(sockets)

    monkeypatch.setattr(PodSockets, "remove", remove)

    async def main() -> None:
        async with node.volumes() as volumes:
            volume = await volumes.publish(node.publication())
            await volumes.unpublish(volume.target)
            assert not (node.folder / "uid/data/mount").exists()
            assert node.sockets() == SOCKETS
            node.is_free.set()
            await until(lambda: node.sockets() == [])

    run(main())
    assert "or a process in a container keeps their directory locked" in caplog.text


async def test_locked_directories_delay_no_other_volume_at_the_start(node: Node, short: None, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"v{i}" for i in range(6)]
    async with node.volumes() as volumes:
        for name in names:
            volume_paths = standalone(name, str(node.folder))
            (node.folder / volume_paths.target).mkdir(parents=True)
            (node.folder / volume_paths.sockets).mkdir()
            volumes._records.save(Record(Publication(name, volume_paths, "fuse.sock", False, (), "", "")))
        node.locked |= {"v1/sock", "v4/sock"}
        await volumes.restore("/pods", str(node.folder))
        for volume in volumes:
            name = volume.publication.volume_id
            is_locked = f"{name}/sock" in node.locked
            assert any("not listening" in text and "locked" in text for text in volume.troubles.texts) == is_locked
            assert node.sockets(f"{name}/sock") == ([] if is_locked else SOCKETS)
        # A republish meanwhile waits for the thread that hangs there, and begins no other one.
        volume = next(volume for volume in volumes if volume.publication.volume_id == "v1")
        await volume.republish()
        assert sorted(node.waiting) == ["v1/sock", "v4/sock"]
        node.is_free.set()
        await until(lambda: node.made == len(names) and node.sockets("v1/sock") == node.sockets("v4/sock") == [])
        node.locked.clear()
        await volume.republish()
        assert not volume.troubles.has("sockets")
        assert node.sockets("v1/sock") == SOCKETS


async def test_an_add_in_a_locked_folder_fails_and_other_volumes_are_added(node: Node, short: None) -> None:
    async with node.volumes() as volumes:
        volumes_without_pods = Standalone(volumes, str(node.folder))
        node.locked.add("v/sock")
        assert await code_of(volumes_without_pods.add("v", False, "")) is Code.DEADLINE_EXCEEDED
        assert isinstance(await volumes_without_pods.add("w", False, ""), Volume)
        node.is_free.set()
        await until(lambda: node.made == 2 and not os.path.exists(node.folder / "v/sock/fuse.sock"))
        node.locked.clear()
        await volumes_without_pods.add("v", False, "")
        await asyncio.gather(volumes_without_pods.remove("v"), volumes_without_pods.remove("w"))
        assert not (node.folder / "v").exists()
        assert not (node.folder / "w").exists()
