"""Tests which container has which device, as kubelet tells it over a real socket."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fake_kubelet import FakePodResources

from driver.api import podresources
from driver.api.podresources import PodResources

FUSE = "mfcp.storage.pfn.io/fuse"
OTHER = "github.com/fuse"


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name) / "kubelet.sock"


@asynccontextmanager
async def kubelet(path: Path) -> AsyncIterator[FakePodResources]:
    service = FakePodResources(path)
    await service.start()
    try:
        yield service
    finally:
        await service.stop()


async def test_each_device_has_its_container(path: Path) -> None:
    async with kubelet(path) as service:
        service.containers = [
            ("default/a/main", FUSE, ["fuse-0", "fuse-7"]),
            ("default/a/sidecar", OTHER, ["fuse-0"]),
            ("team/b/main", FUSE, ["fuse-1"]),
            ("team/c/main", "nvidia.com/gpu", ["fuse-2"]),
            ("team/d/main", FUSE, []),
        ]
        assert await PodResources(str(path), [FUSE, OTHER]).owners() == {
            (FUSE, "fuse-0"): "default/a/main",
            (FUSE, "fuse-7"): "default/a/main",
            (OTHER, "fuse-0"): "default/a/sidecar",
            (FUSE, "fuse-1"): "team/b/main",
        }
        service.containers = []
        assert await PodResources(str(path), [FUSE]).owners() == {}


async def test_an_answer_may_be_long(path: Path) -> None:
    async with kubelet(path) as service:
        service.containers = [(f"default/pod-{number}/main", FUSE, ["x" * 1000]) for number in range(6000)]
        assert await PodResources(str(path), [FUSE]).owners() == {(FUSE, "x" * 1000): "default/pod-5999/main"}


async def test_a_kubelet_without_the_socket_is_reported_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pods = PodResources(str(path), [FUSE])
    for _ in range(3):
        assert await pods.owners() is None
    (line,) = caplog.messages
    assert line == f"the driver cannot tell which pods have a fuse device: {path} (--pod-resources-socket) does not exist"


async def test_a_kubelet_that_does_not_answer_is_reported_each_time_that_it_begins(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(podresources, "_ANSWER_WAIT", 0.2)
    pods = PodResources(str(path), [FUSE])
    async with kubelet(path) as service:
        for _ in range(2):
            service.is_hanging = True
            assert await pods.owners() is None
            assert await pods.owners() is None
            service.is_hanging = False
            monkeypatch.setattr(podresources, "_ANSWER_WAIT", 5.0)
            assert await pods.owners() == {}
            monkeypatch.setattr(podresources, "_ANSWER_WAIT", 0.2)
    assert [message.partition(", ")[0] for message in caplog.messages] == [
        f"the driver cannot tell which pods have a fuse device: kubelet does not answer at {path}: DEADLINE_EXCEEDED"
    ] * 2


async def test_a_socket_that_nobody_serves_is_no_answer(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.touch()
    assert await PodResources(str(path), [FUSE]).owners() is None
    assert "UNAVAILABLE" in caplog.text
