"""Tests how fuse devices are given to pods, with a stand-in for kubelet behind real sockets."""

import asyncio
import errno
import logging
import os
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
from fake_kubelet import FakeKubelet, FakePodResources
from open_fds import nothing_leaked
from with_processes import run, until

from driver.api import deviceowners, fusedeviceplugins, registeredplugin
from driver.api.fusedeviceplugins import FuseDevicePlugins
from driver.api.registeredplugin import socket_name
from driver.api.rpc import deviceplugin_pb2
from driver.linux import syscalls
from driver.linux.filewatch import FileWatch
from driver.model.errors import Code, VolumeError
from driver.model.kit import Bind, ContainerKit, Device

FUSE = "mfcp.storage.pfn.io/fuse"
OTHER = "github.com/fuse"
ALL_HEALTHY = {"fuse-0": "Healthy", "fuse-1": "Healthy", "fuse-2": "Healthy"}
ALL_UNHEALTHY = dict.fromkeys(ALL_HEALTHY, "Unhealthy")
NEVER = 1000.0  # seconds


class Allocated:
    """Stands in for what makes the kits."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.found: list[Mapping[tuple[str, str], str]] = []
        self.error: Exception | None = None

    def allocate(self, resource: str, device_id: str) -> ContainerKit:
        self.calls.append((resource, device_id))
        if self.error is not None:
            raise self.error
        return ContainerKit(
            binds=(Bind("/node/tree", "/opt/mfcp"), Bind(f"/node/{device_id}", "/opt/mfcp/socket", read_only=False)),
            devices=(Device("/node/fuse", "/dev/fuse", "rw"),),
        )

    def owners(self, found: Mapping[tuple[str, str], str]) -> None:
        self.found.append(found)


class BlindWatch(FileWatch):
    """Stands in for an inotify instance without free watches."""

    def on_unlink(self, path: str, callback: Callable[[], None]) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", path)


@pytest.fixture
def folder() -> Iterator[Path]:
    # The path of pytest's temporary folder is too long for a Unix socket.
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def kubelet(folder: Path) -> FakeKubelet:
    (folder / "kubelet_internal_checkpoint").touch()
    return FakeKubelet(folder)


@pytest.fixture
def allocated() -> Allocated:
    return Allocated()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_ABSENT_RETRY", "_AWAY_RETRY", "_REFUSED_RETRY", "_DISCONNECT_WAIT"):
        monkeypatch.setattr(registeredplugin, name, 0.02)
    monkeypatch.setattr(registeredplugin, "_LOOK_INTERVAL", NEVER)
    monkeypatch.setattr(registeredplugin, "_STREAM_WAIT", NEVER)
    monkeypatch.setattr(fusedeviceplugins, "_HEALTH_INTERVAL", 0.02)


def no_problem() -> str:
    return ""


@asynccontextmanager
async def serving(
    kubelet: FakeKubelet,
    allocated: Allocated,
    *resources: str,
    count: int = 3,
    problem: Callable[[], str] = no_problem,
    watch: type[FileWatch] = FileWatch,
) -> AsyncIterator[FuseDevicePlugins]:
    """Serve fuse devices in the block, and let kubelet end with it."""
    files = watch(syscalls.inotify_init())
    pod_resources = str(kubelet.folder / "pod-resources.sock")
    plugins = FuseDevicePlugins(resources or (FUSE,), count, str(kubelet.folder), pod_resources, allocated, problem, files)
    await plugins.start()
    try:
        yield plugins
    finally:
        await plugins.stop()
        assert files._callbacks == {}
        files.close()
        await kubelet.stop()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING and "which pods" not in record.getMessage()
    ]


def sockets(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_socket()}


async def test_kubelet_learns_of_the_devices(kubelet: FakeKubelet, allocated: Allocated, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await kubelet.start()
    async with serving(kubelet, allocated):
        await until(lambda: kubelet.devices == {FUSE: ALL_HEALTHY})
        (request,) = kubelet.requests
        assert (request.version, request.resource_name, request.endpoint) == ("v1beta1", FUSE, socket_name(FUSE))
        assert request.options == deviceplugin_pb2.DevicePluginOptions(pre_start_required=False, get_preferred_allocation_available=False)
        assert sockets(kubelet.folder) == {"kubelet.sock", request.endpoint}
        assert (kubelet.folder / request.endpoint).stat().st_mode & 0o777 == 0o600
        assert f"kubelet has registered {FUSE} with 3 devices" in caplog.messages
    assert warnings(caplog) == []


async def test_each_resource_has_a_plugin(kubelet: FakeKubelet, allocated: Allocated, caplog: pytest.LogCaptureFixture) -> None:
    await kubelet.start()
    async with serving(kubelet, allocated, FUSE, OTHER, FUSE):
        await until(lambda: kubelet.devices == {FUSE: ALL_HEALTHY, OTHER: ALL_HEALTHY})
        await kubelet.allocate(OTHER, ["fuse-1"])
        await kubelet.allocate(FUSE, ["fuse-1"])
    assert allocated.calls == [(OTHER, "fuse-1"), (FUSE, "fuse-1")]
    assert sorted(request.resource_name for request in kubelet.requests) == [OTHER, FUSE]
    assert warnings(caplog) == []


async def test_the_end_leaves_nothing_and_does_not_wait(kubelet: FakeKubelet, allocated: Allocated) -> None:
    await kubelet.start()
    async with serving(kubelet, allocated, FUSE, OTHER) as plugins:
        await until(lambda: len(kubelet.devices) == 2)
        began = time.monotonic()
        await plugins.stop()
        assert time.monotonic() - began < registeredplugin._GRACE / 2
        await until(lambda: kubelet.devices == {})  # kubelet notices it by the end of the stream
        assert sockets(kubelet.folder) == {"kubelet.sock"}


@pytest.mark.parametrize("watch", [FileWatch, BlindWatch])
async def test_a_kubelet_that_restarts_gets_them_again(
    kubelet: FakeKubelet, allocated: Allocated, monkeypatch: pytest.MonkeyPatch, watch: type[FileWatch]
) -> None:
    if watch is BlindWatch:
        monkeypatch.setattr(registeredplugin, "_LOOK_INTERVAL", 0.05)
        monkeypatch.setattr(registeredplugin, "_STREAM_WAIT", 0.05)
    await kubelet.start()
    async with serving(kubelet, allocated, FUSE, OTHER, watch=watch):
        for _ in range(3):
            await until(lambda: len(kubelet.devices) == 2)
            await kubelet.stop()
            assert kubelet.devices == {}
            await kubelet.start()  # this removes all sockets
            assert sockets(kubelet.folder) == {"kubelet.sock"}
        await until(lambda: kubelet.devices == {FUSE: ALL_HEALTHY, OTHER: ALL_HEALTHY})
        await kubelet.allocate(FUSE, ["fuse-0"])


async def test_a_restart_is_noticed_by_the_socket_alone(kubelet: FakeKubelet, allocated: Allocated) -> None:
    """The stream of a kubelet that hangs goes on while the next one starts."""
    await kubelet.start()
    next_one = FakeKubelet(kubelet.folder)
    async with serving(kubelet, allocated):
        await until(lambda: kubelet.devices == {FUSE: ALL_HEALTHY})
        await next_one.start()
        try:
            await until(lambda: next_one.devices == {FUSE: ALL_HEALTHY})
        finally:
            await next_one.stop()


async def test_a_kubelet_that_leaves_the_sockets_gets_them_again(
    kubelet: FakeKubelet, allocated: Allocated, caplog: pytest.LogCaptureFixture
) -> None:
    """The end of the former kubelet's stream says nothing about the next one, which is slow."""
    caplog.set_level(logging.INFO)
    await kubelet.start()
    next_one = FakeKubelet(kubelet.folder)
    next_one.delay = 10 * registeredplugin._DISCONNECT_WAIT
    async with serving(kubelet, allocated):
        await until(lambda: kubelet.devices == {FUSE: ALL_HEALTHY})
        await next_one.start(empties=False)
        try:
            await until(lambda: caplog.text.count("kubelet has registered") == 2)
            await kubelet.disconnect(FUSE)
            await until(lambda: next_one.devices == {FUSE: ALL_HEALTHY})
            assert len(next_one.requests) == 1
        finally:
            await next_one.stop()


async def test_kubelet_may_come_later(kubelet: FakeKubelet, allocated: Allocated, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving(kubelet, allocated):
        await until(lambda: "waiting for kubelet" in caplog.text)
        with socket.socket(socket.AF_UNIX) as nobody:
            nobody.bind(os.fspath(kubelet.socket))
        await until(lambda: "waiting for it" in caplog.text)
        await kubelet.start()
        await until(lambda: kubelet.devices == {FUSE: ALL_HEALTHY})
    assert caplog.text.count("waiting for kubelet") == 1
    assert warnings(caplog) == []


async def test_a_kubelet_that_forgets_the_plugin_gets_it_again(kubelet: FakeKubelet, allocated: Allocated) -> None:
    await kubelet.start()
    async with serving(kubelet, allocated):
        for number in range(1, 4):
            await until(lambda: kubelet.devices == {FUSE: ALL_HEALTHY})
            assert len(kubelet.requests) == number
            await kubelet.disconnect(FUSE)
            await until(lambda: kubelet.devices == {})
        await until(lambda: kubelet.devices == {FUSE: ALL_HEALTHY})


async def test_a_socket_that_somebody_removes_is_made_again(
    kubelet: FakeKubelet, allocated: Allocated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registeredplugin, "_LOOK_INTERVAL", 0.05)
    monkeypatch.setattr(registeredplugin, "_STREAM_WAIT", 0.05)
    await kubelet.start()
    async with serving(kubelet, allocated):
        await until(lambda: kubelet.devices == {FUSE: ALL_HEALTHY})
        (kubelet.folder / socket_name(FUSE)).unlink()
        await until(lambda: len(kubelet.requests) == 2 and kubelet.devices == {FUSE: ALL_HEALTHY})
        assert (kubelet.folder / socket_name(FUSE)).is_socket()


async def test_a_refusal_is_one_line_and_not_the_end(kubelet: FakeKubelet, allocated: Allocated, caplog: pytest.LogCaptureFixture) -> None:
    kubelet.refusal = "the ResourceName is\ninvalid"
    text = "kubelet does not register it: the ResourceName is\\ninvalid; trying again later"
    await kubelet.start()
    async with serving(kubelet, allocated):
        for number in range(1, 3):
            await until(lambda: len(kubelet.requests) >= 3)
            assert warnings(caplog) == [f"no pod gets {FUSE}: {text}"] * number
            refusal, kubelet.refusal = kubelet.refusal, ""
            await until(lambda: kubelet.devices == {FUSE: ALL_HEALTHY})
            kubelet.requests, kubelet.refusal = [], refusal
            await kubelet.disconnect(FUSE)


async def test_another_drivers_socket_is_left_alone(kubelet: FakeKubelet, allocated: Allocated, caplog: pytest.LogCaptureFixture) -> None:
    await kubelet.start()
    other = grpc.aio.server()
    other.add_insecure_port(f"unix:{kubelet.folder / socket_name(FUSE)}")
    await other.start()
    async with serving(kubelet, allocated):
        await until(lambda: warnings(caplog) != [])
        assert kubelet.requests == []
        await other.stop(None)
        await until(lambda: kubelet.devices == {FUSE: ALL_HEALTHY})
    (line,) = warnings(caplog)
    assert line.startswith(f"no pod gets {FUSE}: cannot serve: --device-plugins-dir: another process serves")


async def test_a_path_that_is_too_long_for_a_socket_is_reported(
    kubelet: FakeKubelet, allocated: Allocated, caplog: pytest.LogCaptureFixture
) -> None:
    await kubelet.start()
    async with serving(kubelet, allocated, f"example.com/{'x' * 63}", OTHER):
        await until(lambda: kubelet.devices == {OTHER: ALL_HEALTHY})
    (line,) = warnings(caplog)
    assert "the path is longer than 107 bytes" in line


async def test_a_container_gets_the_kit_of_its_first_device(kubelet: FakeKubelet, allocated: Allocated) -> None:
    await kubelet.start()
    async with serving(kubelet, allocated):
        await until(lambda: kubelet.devices != {})
        first, second = await kubelet.allocate(FUSE, ["fuse-2", "fuse-0"], ["fuse-1"])
    assert allocated.calls == [(FUSE, "fuse-2"), (FUSE, "fuse-1")]
    assert [(m.host_path, m.container_path, m.read_only) for m in first.mounts] == [
        ("/node/tree", "/opt/mfcp", True),
        ("/node/fuse-2", "/opt/mfcp/socket", False),
    ]
    assert second.mounts[1].host_path == "/node/fuse-1"
    assert [(d.host_path, d.container_path, d.permissions) for d in first.devices] == [("/node/fuse", "/dev/fuse", "rw")]


@pytest.mark.parametrize(
    ("device_ids", "error", "code", "text"),
    [
        (["fuse-3"], None, grpc.StatusCode.INVALID_ARGUMENT, f"fuse-3 is no device of {FUSE}, which has 3 (--fuse-devices)"),
        (["fuse-0", "nvidia0"], None, grpc.StatusCode.INVALID_ARGUMENT, f"nvidia0 is no device of {FUSE}, which has 3 (--fuse-devices)"),
        ([], None, grpc.StatusCode.INVALID_ARGUMENT, f"kubelet allocates no device of {FUSE}"),
        (["fuse-0"], OSError(errno.ENOSPC, "No space left"), grpc.StatusCode.INTERNAL, "the driver failed: [Errno 28] No space left"),
        (["fuse-0"], VolumeError(Code.FAILED_PRECONDITION, "no tree"), grpc.StatusCode.FAILED_PRECONDITION, "no tree"),
    ],
)
async def test_what_fails_is_told_to_the_pod(
    kubelet: FakeKubelet, allocated: Allocated, device_ids: list[str], error: Exception | None, code: grpc.StatusCode, text: str
) -> None:
    await kubelet.start()
    allocated.error = error
    async with serving(kubelet, allocated):
        await until(lambda: kubelet.devices != {})
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await kubelet.allocate(FUSE, device_ids)
        assert (raised.value.code(), raised.value.details()) == (code, text)
        allocated.error = None
        await kubelet.allocate(FUSE, ["fuse-0"])


async def test_a_node_that_cannot_mount_has_unhealthy_devices(
    kubelet: FakeKubelet, allocated: Allocated, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    checks = 0

    def problem() -> str:
        nonlocal checks
        checks += 1
        return text

    async def some_checks() -> None:
        enough = checks + 3
        await until(lambda: checks >= enough)

    text = "no /dev/fuse: run modprobe fuse"
    await kubelet.start()
    async with serving(kubelet, allocated, FUSE, OTHER, problem=problem):
        await until(lambda: kubelet.devices == {FUSE: ALL_UNHEALTHY, OTHER: ALL_UNHEALTHY})
        await some_checks()
        text = ""
        await until(lambda: kubelet.devices == {FUSE: ALL_HEALTHY, OTHER: ALL_HEALTHY})
        await some_checks()
        text = "fs.mount-max is reached"
        await until(lambda: kubelet.devices == {FUSE: ALL_UNHEALTHY, OTHER: ALL_UNHEALTHY})
        assert len(kubelet.healths) == 6  # a list comes only when something has changed
        assert len(kubelet.requests) == 2
    reasons = [message for message in caplog.messages if "fuse devices" in message or "a fuse device," in message]
    assert reasons == [
        "no pod gets a fuse device, because no container could mount: no /dev/fuse: run modprobe fuse",
        "pods get fuse devices again",
        "no pod gets a fuse device, because no container could mount: fs.mount-max is reached",
    ]


async def test_devices_are_never_healthy_before_the_first_check(
    kubelet: FakeKubelet, allocated: Allocated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusedeviceplugins, "_HEALTH_INTERVAL", NEVER)
    await kubelet.start()
    async with serving(kubelet, allocated, problem=lambda: "no /dev/fuse"):
        await until(lambda: kubelet.healths != [])
        assert kubelet.healths == [{"Unhealthy"}]


async def test_a_check_that_fails_changes_nothing(kubelet: FakeKubelet, allocated: Allocated, caplog: pytest.LogCaptureFixture) -> None:
    checks = 0

    def problem() -> str:
        nonlocal checks
        checks += 1
        if checks == 2:
            raise RuntimeError("a mistake")
        return ""

    await kubelet.start()
    async with serving(kubelet, allocated, problem=problem):
        await until(lambda: checks > 3 and kubelet.devices != {})
        assert kubelet.devices == {FUSE: ALL_HEALTHY}
    assert "internal error while checking the node" in caplog.text


async def test_without_the_folder_it_is_off(kubelet: FakeKubelet, allocated: Allocated, caplog: pytest.LogCaptureFixture) -> None:
    missing = FakeKubelet(kubelet.folder / "missing")
    async with serving(missing, allocated, FUSE, OTHER):
        pass
    (line,) = warnings(caplog)
    assert line == f"no pod gets a fuse device: {missing.folder} (--device-plugins-dir) is not a folder; mount it from the node"


async def test_with_no_devices_it_is_off(kubelet: FakeKubelet, allocated: Allocated, caplog: pytest.LogCaptureFixture) -> None:
    await kubelet.start()
    async with serving(kubelet, allocated, count=0):
        await asyncio.sleep(0.1)
        assert sockets(kubelet.folder) == {"kubelet.sock"}
    assert warnings(caplog) == []


@pytest.fixture
def asked_on_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let kubelet be asked for the pods at the start, after a registration and after an allocation, and not from time to time."""
    monkeypatch.setattr(deviceowners, "_SOON", 0.02)
    monkeypatch.setattr(deviceowners, "_INTERVAL", NEVER)


@pytest.mark.usefixtures("asked_on_events")
async def test_the_pod_of_a_device_is_told_soon(kubelet: FakeKubelet, allocated: Allocated) -> None:
    await kubelet.start()
    pods = FakePodResources(kubelet.folder / "pod-resources.sock")
    await pods.start()
    try:
        async with serving(kubelet, allocated):
            await until(lambda: kubelet.devices != {} and pods.asked == 2)
            await kubelet.allocate(FUSE, ["fuse-2"])
            pods.containers = [("default/notebook/main", FUSE, ["fuse-2"])]
            await until(lambda: allocated.found != [])
            assert allocated.found[-1] == {(FUSE, "fuse-2"): "default/notebook/main"}
    finally:
        await pods.stop()


@pytest.mark.usefixtures("asked_on_events")
async def test_a_kubelet_that_comes_later_is_asked_for_its_pods(kubelet: FakeKubelet, allocated: Allocated) -> None:
    """It may start containers again that had a device before, without asking the driver."""
    pods = FakePodResources(kubelet.folder / "pod-resources.sock")
    pods.containers = [("default/notebook/main", FUSE, ["fuse-2"])]
    async with serving(kubelet, allocated):
        await asyncio.sleep(0.1)
        await kubelet.start()
        await pods.start()
        try:
            await until(lambda: allocated.found != [])
            assert allocated.found[-1] == {(FUSE, "fuse-2"): "default/notebook/main"}
        finally:
            await pods.stop()


def test_nothing_is_leaked(kubelet: FakeKubelet, allocated: Allocated) -> None:
    async def session() -> None:
        await kubelet.start()
        async with serving(kubelet, allocated, FUSE, OTHER):
            for _ in range(3):
                await until(lambda: len(kubelet.devices) == 2)
                await kubelet.stop()
                await kubelet.start()
            await until(lambda: len(kubelet.devices) == 2)

    run(session())  # gRPC opens some fds once
    with nothing_leaked():
        run(session())
