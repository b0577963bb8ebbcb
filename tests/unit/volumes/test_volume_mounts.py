"""Tests the life of a volume's mounts against a kernel in memory: states, races, and every order of two events."""

import asyncio
import gc
import itertools
import os
import weakref
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from errno import EBUSY, EMFILE

import pytest
import virtual_time
from fake_kernel import TARGET, FakeKernel, FileSystem
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from open_fds import nothing_leaked

from driver.model.limits import DETACHED_MAX
from driver.model.peer import Peer
from driver.model.policy import Refused, of_volume
from driver.model.state import End, Past, State
from driver.observe import metrics
from driver.observe.logs import VolumeLog
from driver.observe.troubles import Troubles
from driver.volumes.mounts import VolumeMounts
from driver.volumes.requests import VolumeRequests
from fusermount3_proxy.wire.mountinfo import PLACEHOLDER_SOURCE, Mount
from fusermount3_proxy.wire.protocol import FindRequest, MountRequest, UnmountRequest

PEER = Peer(pid=7, uid=1000, gid=1000)
POLICY = of_volume(False, [], "")


class World:
    """Represents one published volume, its programs, and what has happened to it."""

    def __init__(self, pace: int = 0) -> None:
        self.kernel = FakeKernel(pace)
        self.ends: list[End] = []
        self.refusals: list[Refused] = []
        self.failures: list[OSError] = []
        self.fds: list[int] = []
        self.changes = 0
        self.is_unpublished = False
        self.begin()
        self.mounts.place.make()
        self.mounts.place.mount_placeholder()

    def begin(self) -> None:
        """Know nothing of the volume, as a driver that has just started."""
        log = VolumeLog("default/pod", "data")
        self.troubles = Troubles(log)
        self.mounts = VolumeMounts(TARGET, self.kernel, Past(1.0), log, self.troubles, self._changed)
        self.requests = VolumeRequests(self.mounts, POLICY, log)

    def _changed(self) -> None:
        self.changes += 1

    @property
    def fuse(self) -> FileSystem | None:
        """Return the FUSE file system at the target."""
        return next((each for each in self.kernel.stack if each.is_fuse), None)

    # ---- events: what programs, containers, kubelet and people do

    async def mount(self) -> None:
        try:
            self.fds.append(await self.requests.mount(MountRequest("/mnt", ""), PEER))
        except Refused as refused:
            self.refusals.append(refused)

    async def mount_with_init(self) -> None:
        prepared = None
        try:
            prepared = await self.requests.prepare(MountRequest("/mnt", ""), PEER)
            await prepared.mount(asyncio.get_running_loop().create_future())
        except Refused as refused:
            self.refusals.append(refused)
        finally:
            if prepared is not None:
                prepared.discard()

    async def die(self) -> None:
        if self.fuse is not None and self.fuse.device is not None:
            self.kernel.die(self.fuse.device)

    async def unmount(self, lazy: bool = False) -> None:
        try:
            await self.requests.unmount(UnmountRequest("/mnt", lazy), PEER)
        except Refused as refused:
            self.refusals.append(refused)

    async def unmount_lazily(self) -> None:
        await self.unmount(lazy=True)

    async def open_file(self) -> None:
        if self.fuse is not None:
            self.fuse.is_busy = True

    async def close_files(self) -> None:
        self.kernel.close_files()

    async def republish(self) -> None:
        if not self.requests.is_closing:  # else it is refused
            await self.mounts.republish()

    async def unpublish(self) -> None:
        self.requests.is_closing = True
        self.failures.clear()
        try:
            await self.mounts.unpublish()
            self.is_unpublished = True
        except OSError as error:
            self.failures.append(error)

    async def unmount_on_node(self) -> None:
        self.kernel.unmount_on_node()

    async def cover(self) -> None:
        if self.kernel.has_directory:
            self.kernel.push("ext4", "/dev/sda")

    async def become_slow(self) -> None:
        self.kernel.is_slow = True

    async def become_stubborn(self) -> None:
        self.kernel.is_stubborn = True

    async def become_stuck(self) -> None:
        self.kernel.is_stuck = True

    async def settle(self) -> None:
        """Wait until nothing is under way: two republishes later, as kubelet calls them."""
        self.kernel.is_slow = self.kernel.is_stubborn = self.kernel.is_stuck = False
        for _ in range(2):
            await asyncio.sleep(30)
            await self.republish()
        if self.failures:
            await self.unpublish()  # kubelet tries again
        await asyncio.sleep(30)

    def close(self) -> None:
        self.mounts.stop()
        for fd in self.fds:
            os.close(fd)

    # ---- what holds whenever nothing is under way

    def check(self) -> None:
        assert self.kernel.detaching == 0
        life = self.mounts.current
        if self.is_unpublished:
            assert (self.kernel.has_directory, self.kernel.stack, self.mounts.mounts) == (False, [], ())
        else:
            top = self.kernel.stack[-1]
            if life is None:
                assert self.fuse is None
                assert self.mounts.state is State.WAITING
                assert top.number == self.mounts.place.placeholder or self.troubles.has("target")
            else:
                assert self.fuse is not None
                assert self.fuse.number == life.mount.device_number
                assert self.fuse.is_connected or self.fuse is not top, "a dead mount stays"
        # Nothing is left of mounts that have ended.
        alive = {life.mount.device} if life is not None else set()
        attached = len(alive)
        alive |= {each.device for each in self.kernel.lazy if each.is_connected}
        in_use = [each.number for each in self.kernel.lazy if each.is_connected]
        assert self.mounts.count_detached() == len(in_use)
        assert not (self.is_unpublished and in_use), "unpublish ends all"
        assert set(self.kernel.devices) == alive
        assert {name for name, _ in self.kernel.watches.values()} <= alive
        assert self.mounts.past.mounts == len(self.ends) + attached, "each mount ends once"
        assert not self.mounts.place.lock.locked()


@pytest.fixture(autouse=True)
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[End]]:
    found: list[End] = []
    monkeypatch.setattr(metrics, "unmounted", found.append)
    return found


def in_world(scenario: Callable[[World], Awaitable[None]], ends: list[End], pace: int = 0) -> None:
    """Run a scenario in an event loop of its own; no fd may be left."""

    async def run() -> None:
        world = World(pace)
        world.ends = ends
        try:
            await scenario(world)
        finally:
            world.close()

    with nothing_leaked():
        virtual_time.run(run())


EVENTS: dict[str, Callable[[World], Awaitable[None]]] = {
    "a program mounts": World.mount,
    "a program mounts with sync-init": World.mount_with_init,
    "the program dies": World.die,
    "unmount": World.unmount,
    "lazy unmount": World.unmount_lazily,
    "an application opens a file": World.open_file,
    "the last users of lazily unmounted file systems go": World.close_files,
    "republish": World.republish,
    "unpublish": World.unpublish,
    "unmounted on the node": World.unmount_on_node,
    "something is mounted over it": World.cover,
    "detaching becomes slow": World.become_slow,
    "processes become stubborn": World.become_stubborn,
    "mount(2) becomes stuck": World.become_stuck,
}


async def begun(world: World, is_mounted: bool) -> None:
    if is_mounted:
        await world.mount()
        assert world.mounts.state is State.MOUNTED


@pytest.mark.parametrize("is_mounted", [False, True], ids=["waiting", "mounted"])
@pytest.mark.parametrize(("first", "second"), [pytest.param(*pair, id=" - ".join(pair)) for pair in itertools.product(EVENTS, repeat=2)])
def test_two_events_in_every_order(ends: list[End], first: str, second: str, is_mounted: bool) -> None:
    """The second one comes at every turn of the event loop of the first one."""
    for pace, delay in itertools.product((0, 1, 3), range(8)):

        async def scenario(world: World, delay: int = delay) -> None:
            await begun(world, is_mounted)
            tasks = [asyncio.ensure_future(EVENTS[first](world))]
            for _ in range(delay):
                await asyncio.sleep(0)
            tasks.append(asyncio.ensure_future(EVENTS[second](world)))
            await asyncio.gather(*tasks)
            await world.settle()
            world.check()

        ends.clear()
        in_world(scenario, ends, pace)


STEPS = st.lists(st.tuples(st.sampled_from(sorted(EVENTS)), st.integers(0, 6)), max_size=12)


@settings(
    max_examples=int(os.environ.get("MFCP_EXAMPLES", "300")), suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@example(steps=[("detaching becomes slow", 0), ("unmounted on the node", 0), ("unpublish", 0)], pace=0)
@given(steps=STEPS, pace=st.integers(0, 4))
def test_any_sequence_of_events(ends: list[End], steps: list[tuple[str, int]], pace: int) -> None:
    async def scenario(world: World) -> None:
        tasks = []
        for name, delay in steps:
            tasks.append(asyncio.ensure_future(EVENTS[name](world)))
            for _ in range(delay):
                await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        await world.settle()
        world.check()

    ends.clear()
    in_world(scenario, ends, pace)


def test_a_mount_that_cannot_be_looked_at_is_unmounted_and_refused(ends: list[End]) -> None:
    """mount(2) has succeeded, and the driver has no fd left to find out what is mounted."""

    async def scenario(world: World) -> None:
        world.kernel.fails["mounted"] = OSError(EMFILE, os.strerror(EMFILE))
        await world.mount()
        assert [refused.errno for refused in world.refusals] == [EMFILE]
        assert world.fuse is None
        await world.mount()
        assert world.mounts.state is State.MOUNTED
        await world.settle()
        world.check()

    in_world(scenario, ends)


def test_a_placeholder_that_is_mounted_late_is_not_taken_for_a_fuse_mount(ends: list[End]) -> None:
    """It was unmounted on the node, and something holds the lock of the directory beneath."""

    async def scenario(world: World) -> None:
        world.kernel.unmount_on_node()
        world.kernel.is_stuck = True
        for _ in range(3):
            await world.mount()
        assert [refused.errno for refused in world.refusals] == [EBUSY] * 3
        await world.settle()
        assert world.mounts.state is State.WAITING
        await world.mount()
        assert world.mounts.state is State.MOUNTED
        await world.settle()
        world.check()

    in_world(scenario, ends)


def test_a_placeholder_that_is_unmounted_while_the_driver_reads_the_mount_table_is_not_adopted(ends: list[End]) -> None:
    """Somebody types `umount -l` twice on the node: for the FUSE mount, and for the placeholder."""

    async def scenario(world: World) -> None:
        await world.mount()
        world.kernel.unmount_on_node()
        read = world.kernel.mounts

        def read_before_the_unmount() -> list[Mount]:
            stack = read()
            if stack:
                world.kernel.unmount_on_node()
            return stack

        world.kernel.mounts = read_before_the_unmount  # type: ignore[method-assign]
        await world.republish()
        world.kernel.mounts = read  # type: ignore[method-assign]
        assert not world.kernel.stack
        await world.republish()
        assert [each.source for each in world.kernel.stack] == [PLACEHOLDER_SOURCE]
        await world.unpublish()
        assert not world.failures
        assert not world.kernel.has_directory

    in_world(scenario, ends)


def test_a_driver_that_stops_gives_up_a_mount_that_waits_for_init(ends: list[End]) -> None:
    async def scenario(world: World) -> None:
        world.kernel.pace = 1000
        mounting = asyncio.ensure_future(world.mount_with_init())
        await asyncio.sleep(0)
        assert world.mounts.is_busy
        world.mounts.stop()
        await mounting
        assert not world.mounts.is_busy

    in_world(scenario, ends)


@pytest.mark.parametrize("identity", ["", "0:1"])
def test_what_was_unmounted_lazily_is_followed_although_the_connection_is_not_known_again(ends: list[End], identity: str) -> None:
    """fusectl was mounted nowhere while no driver ran, so nothing tells whose connection has the number."""

    async def scenario(world: World) -> None:
        await world.mount()
        await world.open_file()
        await world.unmount_lazily()
        (recorded,) = world.mounts.detached
        world.mounts.stop()
        world.begin()
        world.mounts.adopt_detached((replace(recorded, connection=identity),))
        assert world.mounts.count_detached() == 1
        assert not world.mounts.end_detached(), "it could be another pod's"
        assert world.mounts.count_detached() == 0
        assert world.kernel.lazy[0].is_connected

    in_world(scenario, ends)


def test_a_program_that_takes_its_time_to_end_makes_room_for_others_that_are_in_use(ends: list[End]) -> None:
    """It writes back what it has cached, for example, after the last user of its file system is gone."""

    async def scenario(world: World) -> None:
        for _ in range(DETACHED_MAX):
            await world.mount()
            await world.open_file()
            await world.unmount_lazily()
        unused = world.kernel.lazy.pop()
        await world.mount()
        await world.open_file()
        await world.unmount_lazily()
        assert all(each.is_connected for each in world.kernel.lazy)
        assert world.mounts.count_detached() == DETACHED_MAX
        assert unused.device not in world.mounts.devices

    in_world(scenario, ends)


@pytest.mark.parametrize("when", ["before the unmount", "after it", "while no driver runs"])
def test_what_was_unmounted_lazily_goes_on_although_its_device_node_is_removed(ends: list[End], when: str) -> None:
    """Somebody clears the run folder away."""

    async def scenario(world: World) -> None:
        def clear() -> None:
            world.kernel.devices.clear()
            world.kernel.fails["watch_device"] = FileNotFoundError()

        await world.mount()
        await world.open_file()
        if when == "before the unmount":
            clear()
        await world.unmount_lazily()
        if when == "after it":
            clear()
        elif when == "while no driver runs":
            recorded = world.mounts.detached
            world.mounts.stop()
            clear()
            world.begin()
            world.mounts.adopt_detached(recorded)
        await asyncio.sleep(30)
        (served,) = world.kernel.lazy
        assert served.is_connected
        assert world.mounts.count_detached() == 1
        await world.close_files()
        await asyncio.sleep(30)
        assert world.mounts.detached == ()

    in_world(scenario, ends)


def test_a_client_that_sees_several_sockets_finds_what_was_unmounted_lazily(ends: list[End]) -> None:
    """A plain unmount ends it, so the client has to find its volume."""

    async def scenario(world: World) -> None:
        await world.mount()
        await world.open_file()
        await world.unmount_lazily()
        assert world.requests.find(FindRequest("/mnt"))
        assert not world.requests.find(FindRequest("/other"))
        await world.unmount()
        assert not world.requests.find(FindRequest("/mnt"))
        assert world.refusals == []

    in_world(scenario, ends)


def test_a_volume_whose_unpublish_failed_is_not_busy(ends: list[End]) -> None:
    async def scenario(world: World) -> None:
        world.kernel.holds_files = True
        await world.unpublish()
        assert len(world.failures) == 1
        assert not world.mounts.is_busy

    in_world(scenario, ends)


@pytest.mark.parametrize("end", ["the program dies", "unmount", "lazy unmount"])
def test_a_volume_is_freed_without_the_garbage_collector(ends: list[End], end: str) -> None:
    """A full collection holds the event loop, and what was there at its start is never collected."""

    async def scenario(world: World) -> None:
        gc.disable()
        try:
            await world.mount()
            await EVENTS[end](world)
            await asyncio.sleep(60)
            await world.unpublish()
            freed = weakref.ref(world.mounts)
            world.begin()
            await asyncio.sleep(60)
            assert freed() is None
        finally:
            gc.enable()

    in_world(scenario, ends)
