"""Test fifty volumes with random events. A model says after each step what must be mounted and what must be seen.

hypothesis draws the steps in two parts. In one the driver is killed and replaced again and again. In the other a
single driver lives through everything, and must have in the end what it had in the beginning. Each part takes two fifths of the
soak's time (harness/leaks.py); test_leaks.py takes the rest. A failure prints its steps.
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import pytest
from harness import mounts
from harness.container import Background
from harness.events import wait_until, within
from harness.fleet import Application, Fleet, shows, text_at
from harness.kubelet import Published
from harness.leaks import SECONDS, Leaks
from harness.mounts import Mount
from harness.pod import Node, Pod
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.errors import FlakyStrategyDefinition
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

pytestmark = pytest.mark.alone

T = TypeVar("T")

PART = SECONDS * 2 / 5
VOLUMES = 50
HUNG_MAX, APPLICATIONS_MAX = 5, 12
# Bytes for Leaks.grown(). It is more than in test_leaks.py, because what happens at the same time differs from example to example, and
# each new peak stays. In five minutes and 63 examples, 640 KiB came in the second half, in steps, with none in between.
PEAKS_MORE = 2 << 20
BOUND = 10.0  # seconds, for each call


class State(Enum):
    GONE = "not published"
    WAITING = "nothing is mounted"
    SERVED = "mounted, and its program answers"
    HUNG = "mounted, and its program is stopped"


@dataclass
class Volume:
    """Holds what the model knows of one volume."""

    pod: Pod
    state: State = State.GONE
    volume: Published | None = None
    program: Background | None = None
    text: str = ""
    has_sockets: bool = False
    applications: list[Application] = field(default_factory=list)

    @property
    def published(self) -> Published:
        assert self.volume is not None
        return self.volume

    @property
    def serving(self) -> Background:
        assert self.program is not None
        return self.program

    def end_applications(self) -> None:
        while self.applications:
            self.applications.pop().end()


class TimeIsUp(BaseException):
    """It is not an Exception, so hypothesis lets it through."""


Draw = Callable[[Random], Any]


def number(most: int) -> Draw:
    return lambda random: random.randint(0, most)


def one_of(*values: object) -> Draw:
    return lambda random: random.choice(values)


@dataclass(frozen=True)
class Step:
    """Describes something that can happen, when it can, and what is drawn for it."""

    do: Callable[..., None]
    is_possible: Callable[["Machine"], bool]
    drawn: dict[str, Draw]
    replaces_driver: bool = False


STEPS: list[Step] = []


def step(
    is_possible: Callable[["Machine"], bool], replaces_driver: bool = False, **drawn: Draw
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a method a step."""

    def add(do: Callable[..., None]) -> Callable[..., None]:
        STEPS.append(Step(do, is_possible, drawn, replaces_driver))
        return do

    return add


class Machine(RuleBasedStateMachine):
    """Runs the model, and the real thing beside it."""

    node: Node
    leaks: Leaks
    replaces_driver: bool
    deadline: float
    done = 0
    failure: BaseException | None = None

    def __init__(self) -> None:
        super().__init__()
        self.before = self.node.snapshot()
        self.fleet = Fleet(self.node)
        self.volumes = [Volume(self.node.pod()) for _ in range(VOLUMES)]
        self.steps: list[str] = []
        self.number = 0

    # ---- how steps choose

    def those(self, *states: State, sockets: bool | None = None) -> list[Volume]:
        return [each for each in self.volumes if each.state in states and sockets in (None, each.has_sockets)]

    def choose(self, which: int, among: list[Volume], step: str) -> Volume:
        chosen = among[which % len(among)]
        self.say(f"{step} {self.volumes.index(chosen)} ({chosen.state.value})")
        return chosen

    def all_steps(self) -> list[Step]:
        return [step for step in STEPS if self.replaces_driver or not step.replaces_driver]

    def say(self, step: str) -> None:
        self.steps.append(step)
        type(self).done += 1

    # ---- steps

    # hypothesis draws one seed, and not each choice: it begins with simple examples and with steps left out, and an
    # example is long here. A failure names the seed.
    @initialize(random=st.randoms(use_true_random=True))
    def begin(self, random: Random) -> None:
        self.random = random
        for each in self.volumes:
            self._publish(each)
        self.mount_some_at_once(list(range(0, VOLUMES, 3)), "serves")

    @rule()
    def go_on(self) -> None:
        """Do one of the possible steps, each with the same probability."""
        if time.monotonic() > self.deadline:
            raise TimeIsUp  # not within a step, which may have stopped the driver
        chosen = self.random.choice([step for step in self.all_steps() if step.is_possible(self)])
        with self.keeping_failures():
            chosen.do(self, **{name: draw(self.random) for name, draw in chosen.drawn.items()})

    @contextmanager
    def keeping_failures(self) -> Iterator[None]:
        """Keep the first failure: hypothesis repeats the example, and the time may be up before it has come as far."""
        try:
            yield
        except BaseException as error:
            type(self).failure = self.failure or error
            raise

    @step(lambda self: bool(self.those(State.WAITING, State.SERVED, State.HUNG)), which=number(999))
    def republish(self, which: int) -> None:
        self._publish(self.choose(which, self.those(State.WAITING, State.SERVED, State.HUNG), "republish"))

    @step(lambda self: bool(self.those(State.GONE)), which=number(999))
    def publish(self, which: int) -> None:
        self._publish(self.choose(which, self.those(State.GONE), "publish"))

    @step(
        lambda self: bool(self.those(State.WAITING, sockets=True)),
        those=lambda random: random.sample(range(999), 5),
        how=one_of("serves", "sync-init", "first-thread-ends"),
    )
    def mount_some_at_once(self, those: list[int], how: str) -> None:
        started = []
        for which in those:
            if among := self.those(State.WAITING, sockets=True):
                started.append(self.choose(which, among, f"mount {how}"))
                self._start(started[-1], how)
        for each in started:
            self._check_views(each)

    @step(lambda self: bool(self.those(State.SERVED, State.HUNG, sockets=True)), which=number(999))
    def mount_what_is_mounted(self, which: int) -> None:
        each = self.choose(which, self.those(State.SERVED, State.HUNG, sockets=True), "mount again")
        # It mounts elsewhere, because a program looks at its mountpoint first, and would wait there for one that hangs.
        rival = self.fleet.start(each.published, "serves", "rival", at="/tmp")
        assert rival.wait() == 1
        assert "Device or resource busy" in rival.err

    @step(lambda self: bool(self.those(State.SERVED, State.HUNG)), which=number(999))
    def kill_program(self, which: int) -> None:
        each = self.choose(which, self.those(State.SERVED, State.HUNG), "kill the program of")
        each.serving.kill()
        each.serving.wait()
        self._is_waiting(each)

    @step(lambda self: bool(self.those(State.SERVED) and len(self.those(State.HUNG)) < HUNG_MAX), which=number(999))
    def stop_program(self, which: int) -> None:
        each = self.choose(which, self.those(State.SERVED), "stop the program of")
        each.serving.kill("STOP")
        each.state = State.HUNG

    @step(lambda self: bool(self.those(State.HUNG)), which=number(999))
    def let_program_go_on(self, which: int) -> None:
        each = self.choose(which, self.those(State.HUNG), "let go on the program of")
        each.serving.kill("CONT")
        each.state = State.SERVED
        self._check_views(each)

    @step(
        lambda self: bool(self.those(State.SERVED, State.HUNG, sockets=True)),
        which=number(999),
        options=one_of("", "-z"),
    )
    def unmount(self, which: int, options: str) -> None:
        each = self.choose(which, self.those(State.SERVED, State.HUNG, sockets=True), f"unmount {options}")
        done = self.fleet.unmount(each.published, options)
        assert done.wait(BOUND) == 0, done.err
        if options == "-z":
            # An application that started after the mount still uses the file system, and so may a question of the driver's. Where
            # nobody does, this one finds nothing.
            assert self.fleet.unmount(each.published).wait(BOUND) in (0, 1)
        self._let_end(each)
        self._is_waiting(each)

    @step(lambda self: bool(self.those(State.WAITING, sockets=True)), which=number(999))
    def unmount_what_is_not_mounted(self, which: int) -> None:
        each = self.choose(which, self.those(State.WAITING, sockets=True), "unmount in vain")
        # The first unmount may be that of a dead program's mount; there is no second one.
        assert self.fleet.unmount(each.published).wait(BOUND) in (0, 1)
        assert self.fleet.unmount(each.published).wait(BOUND) == 1

    @step(lambda self: bool(len(self.those(State.GONE)) < VOLUMES // 3), which=number(999))
    def unpublish(self, which: int) -> None:
        self._unpublish(self.choose(which, self.those(State.WAITING, State.SERVED, State.HUNG), "unpublish"))

    @step(
        lambda self: bool(self.those(State.WAITING, State.SERVED, State.HUNG, sockets=True)),
        which=number(999),
        suffixes=one_of(("",), (".v1",), ("", ".v1")),
    )
    def remove_sockets(self, which: int, suffixes: tuple[str, ...]) -> None:
        each = self.choose(which, self.those(State.WAITING, State.SERVED, State.HUNG, sockets=True), f"remove {suffixes} of")
        for suffix in suffixes:
            each.published.socket.with_name(f"{each.published.socket.name}{suffix}").unlink()
        each.has_sockets = False

    @step(lambda self: bool(sum(len(each.applications) for each in self.volumes) < APPLICATIONS_MAX), which=number(999))
    def start_application(self, which: int) -> None:
        each = self.choose(which, self.those(State.WAITING, State.SERVED), "an application of")
        each.applications.append(Application(each.published))
        self._check_views(each)

    @step(lambda self: True, which=number(999))
    def stats(self, which: int) -> None:
        each = self.choose(which, self.those(State.WAITING, State.SERVED, State.HUNG), "stats of")
        condition = self._in_time(each.published.stats).volume_condition
        word = {State.WAITING: "waiting since", State.SERVED: "mounted since", State.HUNG: "does not answer"}[each.state]
        assert word in condition.message
        assert condition.abnormal == (each.state is not State.SERVED)

    @step(
        lambda self: True,
        replaces_driver=True,
        how=one_of(signal.SIGTERM, signal.SIGKILL),
        dying=lambda random: random.sample(range(999), random.randint(0, 3)),
    )
    def restart_driver(self, how: signal.Signals, dying: list[int]) -> None:
        self.say(f"{how.name} for the driver; meanwhile programs die: {dying}")
        assert self.node.driver.stop(how) in (0, -how)
        died = []
        for which in dying:
            if among := self.those(State.SERVED):
                each = self.choose(which, among, "dies meanwhile:")
                each.serving.kill()
                each.serving.wait()
                each.state = State.WAITING
                died.append(each)
        self.node.driver.start()
        for each in self.volumes:
            each.has_sockets = each.state is not State.GONE  # the next driver makes them again at its start
        for each in died:
            self._is_waiting(each)

    @step(lambda self: bool(self.those(State.WAITING, sockets=True)), replaces_driver=True, which=number(999), after=number(150))
    def kill_driver_while_it_mounts(self, which: int, after: int) -> None:
        """What is mounted then is known when the program serves, or has ended."""
        each = self.choose(which, self.those(State.WAITING, sockets=True), f"kill the driver after {after} ms of a mount of")
        self._start(each, "serves")
        time.sleep(after / 1000)
        self.node.driver.restart(signal.SIGKILL)
        for other in self.volumes:
            other.has_sockets = other.state is not State.GONE
        wait_until("it serves, or has ended", lambda: not each.serving.is_running or text_at(each.published.target) == each.text, 30)
        if each.serving.is_running:
            each.state = State.SERVED
            self._check_views(each)
        else:
            self._is_waiting(each)

    @step(lambda self: True, chance=number(9))
    def kill_container(self, chance: int) -> None:
        """Kill a container with all programs in it; this is rare, because so much ends with it."""
        self.say("kill the container" if chance == 9 else "let the container live")
        if chance != 9:
            return
        self.fleet.container.kill("KILL")
        self.fleet.close()
        served = self.those(State.SERVED, State.HUNG)
        self.fleet = Fleet(self.node)
        for each in served:
            self._is_waiting(each)

    # ---- what must be true

    @invariant()
    def what_is_mounted_is_what_the_model_says(self) -> None:
        """Check that each mount is on the placeholder, once, in the node's table and in the container's."""
        with self.keeping_failures():
            expected = {}
            for each in self.volumes:
                if each.state is not State.GONE:
                    fuse = ["fuse"] if each.state in (State.SERVED, State.HUNG) else []
                    expected[each.published.request.target_path] = ["tmpfs", *fuse]

            wait_until("the node's table is as the model says", lambda: types(mounts.below(self.node.driver.pods_dir)[1:]) == expected)
            inside = {self.fleet.inside(Path(path)): there for path, there in expected.items()}
            wait_until("the container's table is as the model says", lambda: types(self.fleet.all_mounts()) == inside)

    def teardown(self) -> None:
        try:
            with self.keeping_failures():
                self._end()
        except BaseException:
            print(f"the last of {len(self.steps)} steps: {'; '.join(self.steps[-40:])}")
            raise

    def _end(self) -> None:
        for each in self.volumes:
            if each.state is not State.GONE:
                self._unpublish(each)
        self.fleet.close()
        self.node.delete_pods()
        if self.replaces_driver:
            self.node.expect(self.before)
        else:
            self.leaks.check()
        assert "Traceback" not in self.node.driver.log

    # ---- what steps do

    def _in_time(self, call: Callable[[], T]) -> T:
        with within(BOUND, "a call"):
            return call()

    def _publish(self, each: Volume) -> None:
        each.volume = self._in_time(each.pod.publish)
        each.has_sockets = True
        if each.state is State.GONE:
            each.state = State.WAITING
        self._check_views(each)

    def _start(self, each: Volume, how: str) -> None:
        self.number += 1
        each.text = "Hello World!" if how == "sync-init" else f"life-{self.number}"
        if how == "sync-init":
            each.program = self.fleet.start(each.published, "serves", "", program="sync_init.py")
        else:
            each.program = self.fleet.start(each.published, how, each.text)
        each.state = State.SERVED

    def _is_waiting(self, each: Volume) -> None:
        each.state, each.program = State.WAITING, None
        each.published.wait_waiting(BOUND)
        self._check_views(each)

    def _let_end(self, each: Volume) -> None:
        if each.state is State.HUNG:
            each.serving.kill("CONT")
        if each.program is not None:
            each.program.wait()

    def _unpublish(self, each: Volume) -> None:
        each.end_applications()
        self._in_time(each.published.unpublish)
        self._let_end(each)
        each.state, each.volume, each.program, each.has_sockets = State.GONE, None, None, False

    def _check_views(self, each: Volume) -> None:
        """Check what the applications see, those from before the mount and those from after it."""
        if each.state in (State.WAITING, State.SERVED):
            text = each.text if each.state is State.SERVED else ""
            for seen in [self.fleet.seen(each.published), *(application.seen for application in each.applications)]:
                try:
                    shows(seen, text)
                except AssertionError as error:
                    printed = each.program.err if each.program is not None else ""
                    raise AssertionError(f"{error}; its program {'printed: ' + printed if printed else 'printed nothing'}") from None


def types(table: list[Mount]) -> dict[str, list[str]]:
    """Return what is mounted where, topmost last."""
    return {path: [mount.fstype for mount in mounts.stack(path, table)] for path in {mount.path for mount in table}}


def soak(node: Node, replaces_driver: bool, steps: int) -> None:
    """Run examples of `steps` steps until the time is up."""
    Machine.node, Machine.leaks, Machine.replaces_driver = node, Leaks(node), replaces_driver
    Machine.done, Machine.failure, Machine.deadline = 0, None, time.monotonic() + PART
    chosen = settings(
        max_examples=1_000_000,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        # No smaller example is searched: the same steps need not fail again, and each takes its time.
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    try:
        run_state_machine_as_test(Machine, settings=chosen)
    except TimeIsUp:
        pass
    except FlakyStrategyDefinition:
        # hypothesis raises this where an example ends in the middle of steps of which it has seen more before.
        if time.monotonic() <= Machine.deadline:
            raise
    if Machine.failure is not None:
        raise Machine.failure
    print(f"{Machine.done} steps in {PART:g} s")
    assert Machine.done > PART / 10


@pytest.mark.timeout(PART * 2 + 300)
def test_fifty_volumes_at_random(module_node: Node) -> None:
    soak(module_node, replaces_driver=True, steps=150)


@pytest.mark.timeout(PART * 2 + 300)
def test_fifty_volumes_at_random_with_one_driver(module_node: Node) -> None:
    """Programs and containers are killed, and the driver is never replaced: after each example it has what it had before the first."""
    pid = module_node.driver.pid
    soak(module_node, replaces_driver=False, steps=30)
    assert module_node.driver.pid == pid
    memory = Machine.leaks.memory
    print(f"memory in KiB after each example: {[each >> 10 for each in memory]}")
    assert Machine.leaks.grown() < PEAKS_MORE
