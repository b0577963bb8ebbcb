"""Tests the commands for fuse devices, with the driver's own service in front of devices in memory."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc.aio
import pytest
from click.testing import CliRunner, Result

from driver import cli
from driver.api.admin import Admin
from driver.api.devices import Devices
from driver.api.rpc import admin_pb2_grpc
from driver.linux import features
from driver.model.errors import Code, VolumeError
from driver.model.kit import Bind, ContainerKit, Device


@dataclass(frozen=True)
class Mount:
    """What is mounted in a container."""

    container: str = "pod-1/main"
    mountpoint: bytes = b"/mnt"
    fstype: str = "fuse.sshfs"
    source: str = "host:"
    since: float = 1_700_000_000.9
    mounter: int | None = 1234


@dataclass(frozen=True)
class Allocation:
    """A device in memory."""

    name: str
    owner: str = ""
    socket_folder: str = ""
    mounts: tuple[Mount, ...] = ()


@dataclass
class InMemory:
    """The devices of a driver."""

    held: dict[str, Allocation] = field(default_factory=lambda: {"any": Allocation("any", socket_folder="/f/sockets/any")})
    folder: str = "/f"

    async def add(self, name: str, user: str | None) -> Allocation:
        if name == "bad name":
            raise VolumeError(Code.INVALID_ARGUMENT, "device name 'bad name' is not allowed")
        self.held[name] = Allocation(name, user or "", f"{self.folder}/sockets/{name}")
        return self.held[name]

    async def remove(self, name: str) -> None:
        if name not in self.held:
            raise VolumeError(Code.NOT_FOUND, f"there is no device {name}")
        del self.held[name]

    async def abort(self, name: str) -> bool:
        had_mounts = bool(self.held[name].mounts)
        self.held[name] = replace(self.held[name], mounts=())
        return had_mounts

    def all(self) -> list[Allocation]:
        return list(self.held.values())

    def kit(self, name: str) -> ContainerKit:
        binds = (Bind(f"{self.folder}/tree", "/opt/mfcp"), Bind(f"{self.folder}/scratch", "/scratch", read_only=False))
        return ContainerKit(binds, (Device("/dev/fuse", "/dev/fuse"),))


@pytest.fixture
def devices() -> InMemory:
    return InMemory()


@contextmanager
def serving(path: str, devices: Devices | None) -> Iterator[None]:
    """Serve the driver's own service in a thread, with nothing behind it but the devices."""
    loop, ready, ended = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def serve() -> None:
        server = grpc.aio.server()
        admin_pb2_grpc.add_AdminServicer_to_server(Admin(None, None, lambda: "", devices), server)  # type: ignore[arg-type]
        server.add_insecure_port(f"unix:{path}")
        await server.start()
        ready.set()
        await ended.wait()
        await server.stop(None)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(20)
        yield
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        loop.close()


@pytest.fixture
def socket(tmp_path: Path, devices: InMemory) -> Iterator[str]:
    with serving(f"{tmp_path}/admin.sock", devices):
        yield f"{tmp_path}/admin.sock"


@pytest.fixture(autouse=True)
def no_apparmor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "has_apparmor", lambda: False)


def run(socket: str, *arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["--admin-socket", socket, "device", *arguments])


def check(socket: str, *arguments: str) -> str:
    ended = run(socket, *arguments)
    assert (ended.exit_code, ended.stderr) == (0, "")
    return ended.stdout


def check_refused(socket: str, arguments: list[str], *words: str) -> None:
    ended = run(socket, *arguments)
    assert (ended.exit_code, ended.stdout) == (1, "")
    assert len(ended.stderr.splitlines()) == 1
    for word in words:
        assert word in ended.stderr


def test_add_says_how_containers_get_the_device(socket: str, devices: InMemory) -> None:
    said = check(socket, "add", "photos")
    assert "--device mfcp.storage.pfn.io/fuse=photos\n" in said
    assert f" {check(socket, 'flags', 'photos')}" in said
    assert devices.held["photos"].owner == ""


def test_add_warns_where_no_options_can_give_the_device(socket: str, devices: InMemory) -> None:
    devices.folder = "/my folder"
    ended = run(socket, "add", "photos")
    assert (ended.exit_code, ended.stdout.splitlines()[-1].split()[-2:]) == (0, ["--device", "mfcp.storage.pfn.io/fuse=photos"])
    assert ended.stderr.startswith("warning: ")
    assert "'/my folder/tree'" in ended.stderr


def test_add_for_a_user(socket: str, devices: InMemory) -> None:
    check(socket, "add", "photos", "--user", "alice")
    assert devices.held["photos"].owner == "alice"


def test_add_names_what_apparmor_needs(socket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "has_apparmor", lambda: True)
    assert "apparmor=unconfined" in check(socket, "add", "photos")


def test_the_drivers_refusal_is_the_commands(socket: str) -> None:
    check_refused(socket, ["add", "bad name"], "'bad name' is not allowed")
    check_refused(socket, ["remove", "none"], "there is no device none")


def test_flags_of_a_driver_that_has_no_device_for_all(socket: str, devices: InMemory) -> None:
    devices.held.clear()
    check_refused(socket, ["flags"], "there is no device 'any'; start the driver with --cdi-dir")
    check_refused(socket, ["flags", "none"], "there is no device 'none'; 'device add' makes one")


def test_remove(socket: str, devices: InMemory) -> None:
    check(socket, "add", "photos")
    check(socket, "remove", "photos")
    assert set(devices.held) == {"any"}


def test_abort_says_where_there_is_nothing_to_end(socket: str, devices: InMemory) -> None:
    devices.held["any"] = replace(devices.held["any"], mounts=(Mount(),))
    assert check(socket, "abort", "any") == ""
    check_refused(socket, ["abort", "any"], "nothing is mounted through the device any")


def test_list_has_a_line_for_each_mount(socket: str, devices: InMemory) -> None:
    devices.held["any"] = replace(devices.held["any"], mounts=(Mount(), Mount("pod-2/main", b"/a\n\xff", mounter=None)))
    devices.held["own"] = Allocation("own", "alice")
    first, second, third, fourth = check(socket, "list").splitlines()
    assert first.split() == ["DEVICE", "OWNER", "CONTAINER", "MOUNTPOINT", "TYPE", "SOURCE", "SINCE", "UID"]
    assert second.split() == ["any", "-", "pod-1/main", "/mnt", "fuse.sshfs", "host:", "2023-11-14T22:13:20Z", "1234"]
    assert third.split()[2:4] == ["pod-2/main", r"/a\n\udcff"]
    assert third.split()[-1] == "-"
    assert fourth.split() == ["own", "alice", *["-"] * 6]


def test_list_as_json(socket: str, devices: InMemory) -> None:
    devices.held["any"] = replace(devices.held["any"], mounts=(Mount(), Mount(mounter=None)))
    devices.held["own"] = Allocation("own", "alice", "/run/user/7/mfcp/own")
    mount = {
        "container": "pod-1/main",
        "mountpoint": "/mnt",
        "type": "fuse.sshfs",
        "source": "host:",
        "since": "2023-11-14T22:13:20Z",
    }
    assert json.loads(check(socket, "list", "--output", "json")) == [
        {"name": "any", "owner": "", "socketFolder": "/f/sockets/any", "mounts": [{**mount, "uid": 1234}, {**mount, "uid": None}]},
        {"name": "own", "owner": "alice", "socketFolder": "/run/user/7/mfcp/own", "mounts": []},
    ]


def test_root_is_a_mounter_too(socket: str, devices: InMemory) -> None:
    devices.held["any"] = replace(devices.held["any"], mounts=(Mount(mounter=0),))
    assert check(socket, "list").splitlines()[1].split()[-1] == "0"


@pytest.mark.parametrize("arguments", [[], ["any"], ["--engine", "docker"], ["any", "--engine", "podman"]])
def test_flags_are_one_line_of_options(socket: str, arguments: list[str]) -> None:
    said = check(socket, "flags", *arguments)
    assert said == "-v /f/tree:/opt/mfcp:ro -v /f/scratch:/scratch:rw --device /dev/fuse:/dev/fuse:rw\n"


def test_flags_of_a_device_that_is_not_there(socket: str) -> None:
    check_refused(socket, ["flags", "none"], "'none'", "device list", "device add")


@pytest.mark.parametrize("folder", ["/my folder", "/f:g", "/f\tg", "/f*", "/f?", "/f[a]", "/f\\g"])
def test_flags_refuse_a_path_that_the_shell_or_an_engine_would_split(socket: str, devices: InMemory, folder: str) -> None:
    devices.folder = folder
    check_refused(socket, ["flags"], "--fuse-dir", repr(f"{folder}/tree"))


def test_flags_name_what_apparmor_needs_without_adding_it(socket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "has_apparmor", lambda: True)
    ended = run(socket, "flags")
    assert "apparmor=unconfined" in ended.stderr
    assert "apparmor" not in ended.stdout
    assert run(socket, "flags", "--engine", "docker").stderr == ""


@pytest.mark.parametrize("arguments", [["add", "x"], ["remove", "x"], ["abort", "x"], ["list"], ["flags"]])
def test_a_driver_with_the_device_off_says_how_to_switch_it_on(tmp_path: Path, arguments: list[str]) -> None:
    with serving(f"{tmp_path}/admin.sock", None):
        check_refused(f"{tmp_path}/admin.sock", arguments, "the fuse device is off", "--fuse-devices", "--fuse-dir")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["add"], "NAME"),
        (["add", "a", "b"], "b"),
        (["remove"], "NAME"),
        (["abort"], "NAME"),
        (["flags", "--engine", "lxc"], "--engine"),
        (["list", "--output", "yaml"], "--output"),
        (["bogus"], "bogus"),
    ],
)
def test_what_is_not_known_or_missing_is_reported(arguments: list[str], word: str) -> None:
    ended = run("/none", *arguments)
    assert ended.exit_code == 2
    assert word in ended.stderr.splitlines()[-1]


def test_a_command_without_a_driver_says_so(tmp_path: Path) -> None:
    for arguments in (["add", "x"], ["list"], ["flags"]):
        check_refused(f"{tmp_path}/admin.sock", arguments, "no driver answers at")
