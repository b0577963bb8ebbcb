"""Test what one allocation does with requests and events, with a node that exists only here."""

import asyncio
import functools
import itertools
import os
from collections.abc import Callable, Coroutine, Sequence
from errno import EBUSY, EINVAL, ENOSPC, EPERM
from typing import Any

import pytest
from with_processes import until

from driver.blocking.processes import NotAsked
from driver.devices import attached, namespace
from driver.devices.containers import Containers
from driver.devices.records import DeviceRecord
from driver.devices.requests import DeviceRequests
from driver.devices.shared import Shared
from driver.devices.visits import Late
from driver.model.peer import Peer
from driver.model.policy import NotMounted, Refused
from driver.mounts.device import OpenDevice
from driver.observe.logs import VolumeLog
from fusermount3_proxy.wire.protocol import MOUNTPOINT_FD, FindRequest, MountRequest, UnmountRequest

USER = Peer(pid=os.getpid(), uid=1000, gid=1000)
OTHER = Peer(pid=os.getpid(), uid=1001, gid=1001)
ROOT = Peer(pid=os.getpid(), uid=0, gid=0)


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in an event loop of its own."""

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(test(*arguments, **named))

    return run


class FakeConnection:
    """Stands in for mounts.connections.Connection."""

    def __init__(self, node: "FakeNode", number: str) -> None:
        self.identity = f"connection of {number}"
        self._node, self._number = node, number

    def abort(self) -> None:
        self._node.aborted.append(self._number)

    def close(self) -> None:
        pass


class FakeNode:
    """Stands in for device nodes, connections, inotify, records, and the processes that enter containers."""

    def __init__(self) -> None:
        self.devices = self.connections = self
        self.folder = "/dev"
        self.held: dict[str, bool] = {}  # device nodes, and whether some process has them open
        self.used: set[str] = set()  # connections
        self.attached: set[str] = set()
        self.aborted: list[str] = []
        self.saved: dict[str, DeviceRecord] = {}
        self.callbacks: dict[str, Callable[[], None]] = {}
        self.calls: list[str] = []
        self.saved_at_call: list[DeviceRecord] = []
        self.outcome: dict[str, BaseException | tuple[object, ...]] = {}
        self._numbers = itertools.count(50)

    # device nodes
    def open(self, number: str = "", mode: int = 0) -> Any:
        if number:
            return FakeConnection(self, number)
        name = f"{next(self._numbers):016x}"
        self.held[name] = True
        return OpenDevice(name, os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))

    def is_there(self, name: str, connection: object = None) -> bool:
        return name in (self.held if connection is None else self.used)

    def is_held(self, name: str) -> bool:
        return self.held.get(name, False)

    def remove(self, name: str | int) -> None:
        if isinstance(name, str):
            self.held.pop(name, None)

    def path(self, name: str) -> str:
        return name

    # inotify
    def on_last_close(self, path: str, callback: Callable[[], None]) -> int:
        self.callbacks[path] = callback
        return 1

    # connections
    def find(self, number: str, identity: str) -> FakeConnection:
        return FakeConnection(self, number)

    # records
    def save(self, record: DeviceRecord) -> None:
        self.saved[str(record.mount.device)] = record

    def delete(self, record: DeviceRecord) -> None:
        self.saved.pop(str(record.mount.device), None)

    # processes
    async def mount(self, share: str, limit: float, function: Callable[..., Any], *arguments: Any, fds: Sequence[int]) -> Any:
        return await self.call(share, limit, function, *arguments, fds=fds)

    async def call(self, share: str, limit: float, function: Callable[..., Any], *arguments: Any, fds: Sequence[int] = ()) -> Any:
        name = function.__name__
        self.calls.append(name)
        self.saved_at_call = list(self.saved.values())
        await asyncio.sleep(0)
        outcome = self.outcome.get(name)
        if isinstance(outcome, BaseException):
            raise outcome
        if outcome is not None:
            return outcome, []
        if function is namespace.mount:
            return self.mounted()
        if function is attached.unmount:
            self.attached.discard(arguments[1])
            self.used.discard(arguments[1])
            return (namespace.DONE,), []
        if function is attached.detach:
            self.attached.discard(arguments[2])
            return True, []
        if function is attached.is_gone:
            return True, []
        return None, []

    async def drop(self, share: str, fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)

    def mounted(self) -> tuple[Any, list[int]]:
        """Mount, and return what the process answers."""
        number = f"0:{next(self._numbers)}"
        self.attached.add(number)
        self.used.add(number)
        answer = (namespace.DONE, number, 1000, 1000, False, 4026532000, "pid namespace 7")
        return answer, [os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC) for _ in range(2)]

    def die(self, name: str) -> None:
        self.held[name] = False
        self.callbacks[name]()


def requests_on(node: FakeNode, mounts_max: int = 8, is_shared: bool = False) -> DeviceRequests:
    shared: Any = Shared(node, node, node, node, Containers(), mounts_max, True)  # type: ignore[arg-type]
    return DeviceRequests("d", shared, VolumeLog("", "d"), is_shared)


def mount_request(path: str = "/m", options: str = "", fds: tuple[str, ...] = (MOUNTPOINT_FD,)) -> MountRequest:
    return MountRequest(path, options, fds=fds)


async def refused(work: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        await work
    return caught.value


@in_loop
async def test_a_mount_is_recorded_and_served() -> None:
    node = FakeNode()
    requests = requests_on(node)
    os.close(await requests.mount(mount_request(options="fsname=a,subtype=b,allow_other"), USER))
    (mount,) = requests.mounts
    assert (mount.source, mount.fstype, mount.mounter, mount.container) == ("a", "fuse.b", 1000, "pid namespace 7")
    assert list(node.saved.values()) == [mount.record]
    await requests.unmount(UnmountRequest("/m"), USER)
    assert (requests.mounts, node.saved, node.attached, node.held) == ([], {}, set(), {})


@in_loop
async def test_what_is_about_to_be_mounted_is_recorded_first() -> None:
    node = FakeNode()
    requests = requests_on(node)
    node.outcome["mount"] = OSError(EPERM, "not permitted")
    assert (await refused(requests.mount(mount_request(), USER))).errno == EPERM
    (record,) = node.saved_at_call
    assert (record.mount.device_number, record.pid != 0) == ("", True)
    assert (node.saved, node.held, requests.mounts) == ({}, {}, [])


class LateMount(Late):
    """Stands in for what Visits.mount() raises: the process ends when `answer` is settled."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[tuple[Any, list[int]]] = asyncio.get_running_loop().create_future()

    async def late(self) -> tuple[Any, list[int]]:
        return await self.answer


@pytest.mark.parametrize("is_mounted", [False, True])
@in_loop
async def test_a_mount_that_takes_too_long_is_taken_off_when_it_is_made(is_mounted: bool) -> None:
    """A container that keeps a directory locked for a while would pile up dead mounts there."""
    node = FakeNode()
    requests = requests_on(node)
    node.outcome["mount"] = late = LateMount()
    assert (await refused(requests.mount(mount_request(), USER))).errno == EBUSY
    (name,) = node.saved  # the next driver would look for it
    assert requests.mounts == []
    late.answer.set_result(node.mounted() if is_mounted else (None, []))
    if is_mounted:
        await until(lambda: requests.mounts)
        node.die(name)
        await until(lambda: not requests.mounts)
        assert node.attached == set()
    await until(lambda: not node.saved)
    assert node.held == {}


@pytest.mark.parametrize("fds", [(), ("mountpoint", "mountpoint"), ("other",)])
@in_loop
async def test_a_mount_without_its_fd_is_refused(fds: tuple[str, ...]) -> None:
    node = FakeNode()
    assert "one file descriptor" in str(await refused(requests_on(node).mount(mount_request(fds=fds), USER)))
    assert (node.calls, node.held) == ([], {})


@in_loop
async def test_a_process_that_refuses_or_does_not_start() -> None:
    node = FakeNode()
    requests = requests_on(node)
    node.outcome["mount"] = (namespace.REFUSED, EPERM, "mountpoint /m not owned by user")
    error = await refused(requests.mount(mount_request(), USER))
    assert (error.errno, str(error)) == (EPERM, "mountpoint /m not owned by user")
    node.outcome["mount"] = NotAsked(11, "no process")
    assert (await refused(requests.mount(mount_request(), USER))).errno == EBUSY
    assert (node.saved, node.held, requests.mounts) == ({}, {}, [])


@in_loop
async def test_mounts_are_limited_and_unmounted_ones_are_not_counted() -> None:
    node = FakeNode()
    requests = requests_on(node, mounts_max=2)
    for number in range(2):
        os.close(await requests.mount(mount_request(f"/{number}"), USER))
    assert (await refused(requests.mount(mount_request("/2"), USER))).errno == ENOSPC
    await requests.unmount(UnmountRequest("/0"), USER)
    os.close(await requests.mount(mount_request("/2"), USER))


@in_loop
async def test_mounts_at_once_are_counted_before_they_are_made() -> None:
    node = FakeNode()
    requests = requests_on(node, mounts_max=2)
    done = await asyncio.gather(*(requests.mount(mount_request(f"/{n}"), USER) for n in range(5)), return_exceptions=True)
    fds = [each for each in done if isinstance(each, int)]
    assert len(fds) == 2
    for fd in fds:
        os.close(fd)


@in_loop
async def test_a_program_that_dies_may_be_cleaned_up_once() -> None:
    node = FakeNode()
    requests = requests_on(node)
    os.close(await requests.mount(mount_request(), USER))
    (name,) = node.held
    node.die(name)
    await until(lambda: not requests.mounts)
    assert "detach" in node.calls
    assert (node.attached, node.saved, node.held) == (set(), {}, {})
    assert requests.find(FindRequest("/m"))
    await requests.unmount(UnmountRequest("/m"), USER)
    with pytest.raises(NotMounted):
        await requests.unmount(UnmountRequest("/m"), USER)


@in_loop
async def test_a_program_that_only_drops_its_lock_keeps_its_mount() -> None:
    node = FakeNode()
    requests = requests_on(node)
    os.close(await requests.mount(mount_request(), USER))
    (name,) = node.held
    node.outcome["is_gone"] = TimeoutError(110, "timed out")
    node.die(name)
    await until(lambda: node.calls.count("is_gone") > 2)
    assert len(requests.mounts) == 1
    requests.stop()


@in_loop
async def test_who_may_unmount_what() -> None:
    node = FakeNode()
    requests = requests_on(node)
    for place in ("/a", "/b"):
        os.close(await requests.mount(mount_request(place), USER))
    assert (await refused(requests.unmount(UnmountRequest("/a"), OTHER))).errno == EINVAL
    # The device number decides, where the client sees one.
    await requests.unmount(UnmountRequest("/elsewhere", device=requests.mounts[0].record.mount.device_number), USER)
    assert [mount.mountpoint for mount in requests.mounts] == [b"/b"]
    assert (await refused(requests.unmount(UnmountRequest("/b", device="0:9999"), USER))).errno == EINVAL
    await requests.unmount(UnmountRequest("/b"), ROOT)
    assert requests.mounts == []


@in_loop
async def test_a_busy_mount_stays() -> None:
    node = FakeNode()
    requests = requests_on(node)
    os.close(await requests.mount(mount_request(), USER))
    node.outcome["unmount"] = OSError(EBUSY, os.strerror(EBUSY))
    assert (await refused(requests.unmount(UnmountRequest("/m"), USER))).errno == EBUSY
    assert len(requests.mounts) == 1
    del node.outcome["unmount"]
    await requests.unmount(UnmountRequest("/m"), USER)


@in_loop
async def test_abort_ends_everything() -> None:
    node = FakeNode()
    requests = requests_on(node)
    assert not requests.abort()
    for place in ("/a", "/b"):
        os.close(await requests.mount(mount_request(place), USER))
    assert requests.abort()
    assert len(node.aborted) == 2
    requests.stop()
