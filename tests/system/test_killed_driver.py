"""Test that after the driver was killed at any of its system calls the next one goes on with every volume, and nothing is left behind.

strace kills the driver (SIGKILL) before a call is made. Only calls that change something are tried, because being killed before
another one is the same as before the next call that changes something. The driver starts, publishes, mounts, unmounts, notices a
death, and unpublishes. The normal run takes some of the calls, and MFCP_ALL=1 takes all. MFCP_SEED chooses the sample.
"""

import contextlib
import functools
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import grpc
import pytest
from harness.container import Background
from harness.events import wait_until
from harness.fleet import Application, Fleet, shows, text_at
from harness.kubelet import Published
from harness.mounts import below
from harness.pod import Node, Pod
from harness.programs import path_of

ALL = bool(os.environ.get("MFCP_ALL"))
SEED = int(os.environ.get("MFCP_SEED", "1"))
FIRES = 5.0  # seconds: by then the driver has made the call at which it is killed, if it makes that call at all
TRIES = 3  # for one call, because another thread may make it
SAMPLE = 1  # calls of each scenario in addition to ALWAYS
ALWAYS = {  # calls at which a killed driver once left something behind
    "mount": [("flock", 2)],  # a device node that is not locked yet
    "sync-init mount": [("close", 2)],  # a device node that a program has, and that was never mounted
    "lazy unmount": [("mount", 2)],  # the rest of a detach, without which containers keep the mount
    "death": [("umount2", 2)],
}

# Calls that change something that outlives the process, or that another process sees.
CHANGES = (
    "mount,umount2,open_tree,mount_setattr,mkdir,rmdir,unlink,unlinkat,rename,renameat,renameat2,mknodat,fchmod,chmod,"
    "openat,openat2,write,flock,socket,bind,listen,accept4,recvmsg,sendmsg,close,inotify_add_watch,inotify_rm_watch,clone,clone3"
)
# A start makes thousands of the other calls for its imports.
CHANGES_AT_START = (
    "mount,umount2,open_tree,mount_setattr,mkdir,rmdir,unlink,rename,renameat,fchmod,bind,listen,write,flock,inotify_add_watch"
)


class Traced:
    """Runs strace on a driver, and has it kill the driver at the `n`th call of `name` in one of its threads; never without a name."""

    def __init__(self, node: Node, name: str = "", n: int = 0, calls: str = CHANGES) -> None:
        self.has_fired = False
        self._node = node
        self._driver = node.driver
        self._output = node.folder / "strace.out"
        self._output.unlink(missing_ok=True)
        self._command = [path_of("strace"), "-f", "-q", "-o", str(self._output), "-e", f"trace={calls}"]
        self._fires = bool(name)
        if name:
            self._command += ["-e", f"inject={name}:signal=SIGKILL:when={n}"]

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Attach to the running driver. At the end the driver is dead: killed by strace, or by this function where strace has not fired."""
        command = [part for part in self._command if part != "-q"]
        with subprocess.Popen([*command, "-p", str(self._driver.pid)], stderr=subprocess.PIPE, text=True) as strace:
            assert strace.stderr is not None
            line = strace.stderr.readline()
            try:
                assert "attached" in line, line
                with self._firing():
                    yield
            finally:
                self._driver.signal(signal.SIGKILL)  # strace ends with the driver
                self._driver.wait()

    def start(self) -> None:
        """Start a driver. At the end the driver is dead: killed by strace, or by this function where strace has not fired."""
        self._driver.wrapper = tuple(self._command)
        try:
            with self._firing():
                self._driver.start()
        finally:
            if self._driver.is_alive:
                for driver in self._driver.own_processes() - {self._driver.pid}:
                    os.kill(driver, signal.SIGKILL)
            assert self._driver.wait() == -signal.SIGKILL  # strace ends as the driver did
            self._driver.wrapper = ()

    @contextlib.contextmanager
    def _firing(self) -> Iterator[None]:
        """Wait until strace has killed the driver, if it is to do so. The block may fail only where strace has killed the driver."""
        try:
            yield
        except (grpc.RpcError, AssertionError):
            if not self._kills():
                raise
        else:
            self._kills()

    def _kills(self) -> bool:
        if self._fires:
            deadline = time.monotonic() + FIRES
            while self._driver.is_alive and time.monotonic() < deadline:
                time.sleep(0.01)
            self.has_fired = not self._driver.is_alive
        return self.has_fired

    def calls(self) -> Counter[str]:
        """Return how often each call was made by the thread that made it most."""
        counts: Counter[tuple[str, str]] = Counter()
        for line in self._output.read_text(errors="replace").splitlines():
            thread, _, call = line.partition(" ")
            name = call.strip().partition("(")[0]
            if name.isidentifier():
                counts[thread, name] += 1
        most: Counter[str] = Counter()
        for (_, name), count in counts.items():
            most[name] = max(most[name], count)
        return most


@dataclass
class Stage:
    """Represents one volume, with what a scenario has done to it."""

    node: Node
    fleet: Fleet
    pod: Pod
    volume: Published | None = None
    programs: list[Background] = field(default_factory=list)
    applications: list[Application] = field(default_factory=list)

    @property
    def published(self) -> Published:
        assert self.volume is not None
        return self.volume

    def publish(self) -> None:
        self.volume = self.pod.publish()

    def start(self, text: str, how: str = "serves", program: str = "odd_program.py") -> Background:
        self.programs.append(self.fleet.start(self.published, how, text, program))
        return self.programs[-1]

    def mounted(self, text: str = "first") -> Background:
        """Start a program that serves, and an application from before and one from after its mount."""
        self.applications.append(Application(self.published))
        program = self.start(text)
        shows(self.fleet.seen(self.published), text)
        self.applications.append(Application(self.published))
        return program

    def all_show(self, text: str) -> None:
        for seen in [self.fleet.seen(self.published), *(application.seen for application in self.applications)]:
            shows(seen, text)

    def is_served(self) -> bool:
        return self.published.fuse is not None and bool(text_at(self.published.target))

    def is_unmounted_lazily(self) -> bool:
        return "unmounted lazily" in self.published.condition

    def end_applications(self) -> None:
        while self.applications:
            self.applications.pop().end()

    def end(self) -> None:
        self.end_applications()
        for program in self.programs:
            if program.is_running:
                with contextlib.suppress(AssertionError):  # it has ended just now
                    program.kill()
                program.wait()


# ---- what the driver does when it is killed


def prepare_published(stage: Stage) -> None:
    stage.publish()


def prepare_mounted(stage: Stage) -> None:
    stage.publish()
    stage.mounted()


def prepare_to_go(stage: Stage) -> None:
    """kubelet ends the containers before it unpublishes. A FUSE program may be slow to end."""
    prepare_mounted(stage)
    stage.end_applications()


def act_publish(stage: Stage) -> None:
    stage.publish()


def act_mount(stage: Stage) -> None:
    program = stage.start("first")
    wait_until("it has mounted, or not", lambda: not program.is_running or stage.is_served() or not stage.node.driver.is_alive)


def act_sync_init(stage: Stage) -> None:
    program = stage.start("", program="sync_init.py")
    wait_until("it has mounted, or not", lambda: not program.is_running or stage.is_served() or not stage.node.driver.is_alive)


def act_unmount(stage: Stage) -> None:
    stage.fleet.unmount(stage.published).wait()


def act_lazy_unmount(stage: Stage) -> None:
    stage.fleet.unmount(stage.published, "-z").wait()


def act_death(stage: Stage) -> None:
    stage.programs[0].kill()
    wait_until("it is taken off, or not", lambda: stage.published.fuse is None or not stage.node.driver.is_alive)


def act_fail(stage: Stage) -> None:
    raise AssertionError("the act")


def act_unpublish(stage: Stage) -> None:
    stage.published.unpublish()


SCENARIOS: dict[str, tuple[Callable[[Stage], None], Callable[[Stage], None]]] = {
    "publish": (lambda stage: None, act_publish),
    "mount": (prepare_published, act_mount),
    "sync-init mount": (prepare_published, act_sync_init),
    "unmount": (prepare_mounted, act_unmount),
    "lazy unmount": (prepare_mounted, act_lazy_unmount),
    "death": (prepare_mounted, act_death),
    "unpublish": (prepare_to_go, act_unpublish),
    "unpublish a waiting one": (prepare_published, act_unpublish),
}


# ---- what is true afterwards


def answers_everything(stage: Stage) -> None:
    """Check publish, mount, unmount and unpublish, whatever state the volume was left in, and that all applications see the result."""
    stage.publish()
    # A program that was mounting when the driver died has mounted by now, or ends, or waits for the driver and mounts. One that was
    # unmounted lazily serves the application that started after its mount.
    for program in stage.programs:
        wait_until(
            "the program serves, or has ended",
            lambda program=program: not program.is_running or stage.is_served() or stage.is_unmounted_lazily(),
        )
    if not stage.is_served():
        stage.start("second")
    wait_until("a program serves", stage.is_served)
    stage.all_show(text_at(stage.published.target))
    unmount = stage.fleet.unmount(stage.published)
    assert unmount.wait() == 0, unmount.err
    stage.all_show("")
    while stage.is_unmounted_lazily():
        stage.fleet.unmount(stage.published).wait()
    for program in stage.programs:
        program.wait()
    program = stage.start("third")
    stage.all_show("third")
    program.kill()
    stage.published.wait_waiting()
    stage.all_show("")
    stage.published.unpublish()
    assert below(stage.pod.folder.folder) == []


class Bystander:
    """Represents a volume that is mounted all the time and has nothing to do with the scenario."""

    def __init__(self, node: Node, fleet: Fleet) -> None:
        self.pod = node.pod()
        self.volume = self.pod.publish()
        self.program = fleet.start(self.volume, "serves", "bystander")
        self._fleet = fleet
        shows(fleet.seen(self.volume), "bystander")
        self._device = self.volume.mounts[-1].device

    def is_undisturbed(self) -> None:
        self.volume.republish()
        assert self.volume.mounts[-1].device == self._device
        assert text_at(self._fleet.seen(self.volume)) == "bystander"
        assert len(self.volume.mounts) == 2


@pytest.fixture(scope="module")
def fleet(module_node: Node) -> Iterator[Fleet]:
    fleet = Fleet(module_node)
    yield fleet
    fleet.close()


@pytest.fixture(scope="module")
def bystander(module_node: Node, fleet: Fleet) -> Iterator[Bystander]:
    yield Bystander(module_node, fleet)


def points(calls: Counter[str], scenario: str) -> list[tuple[str, int]]:
    """Return the calls at which to kill: all, or a sample."""
    if ALL:
        return [(name, n) for name, count in sorted(calls.items()) for n in range(1, count + 1)]
    chosen = random.Random(f"{SEED} {scenario}")
    names = chosen.sample(sorted(calls), min(SAMPLE, len(calls)))
    return [*ALWAYS.get(scenario, []), *((name, chosen.randint(1, calls[name])) for name in names)]


def kill_at_each(scenario: str, trace: Callable[..., Traced], once: Callable[[Traced], None]) -> None:
    """Record which calls the driver makes, and kill it at each of them. A call at which it is never killed fails the test."""
    recorded = []
    for _ in range(2):
        traced = trace()
        once(traced)
        recorded.append(traced.calls())
    # How often a thread wakes up and reads differs from run to run. The calls that both runs have are always made.
    for name, n in points(recorded[0] & recorded[1], scenario):
        kill_at(name, n, trace, once)


def kill_at(name: str, n: int, trace: Callable[..., Traced], once: Callable[[Traced], None]) -> None:
    """Kill the driver at the `n`th call of `name`."""
    for _ in range(TRIES):
        print(f"killed at {name} {n}")
        traced = trace(name, n)
        once(traced)
        if traced.has_fired:
            return
    pytest.fail(f"strace has not killed the driver at call {n} of {name}: it was not made in {TRIES} runs")


def in_scenario(node: Node, fleet: Fleet, bystander: Bystander, scenario: str, traced: Traced) -> None:
    """Play one scenario under strace, and check that everything goes on with the next driver."""
    before = node.snapshot()
    stage = Stage(node, fleet, node.pod())
    prepare, act = SCENARIOS[scenario]
    try:
        prepare(stage)
        with traced.attached():
            act(stage)
        node.driver.start()
        answers_everything(stage)
        bystander.is_undisturbed()
    finally:
        stage.end()
        if not node.driver.is_started:
            node.driver.start()
    node.delete_pods([bystander.pod])
    node.expect(before)


@pytest.mark.timeout(3600 if ALL else 120)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_at_any_system_call_of(module_node: Node, fleet: Fleet, bystander: Bystander, scenario: str) -> None:
    once = functools.partial(in_scenario, module_node, fleet, bystander, scenario)
    kill_at_each(scenario, functools.partial(Traced, module_node), once)


@pytest.mark.timeout(3600 if ALL else 120)
def test_at_any_system_call_of_its_start(module_node: Node, fleet: Fleet, bystander: Bystander) -> None:
    """Some volumes wait, some are mounted, some died without a driver, and some were published by a driver killed before the record."""
    node = module_node
    before = node.snapshot()

    def once(traced: Traced) -> None:
        _, mounted, dead, half = stages = [Stage(node, fleet, node.pod()) for _ in range(4)]
        try:
            for stage in stages:
                stage.publish()
            mounted.mounted()
            dead.mounted()
            node.driver.stop(signal.SIGKILL)
            dead.programs[0].kill()
            dead.programs[0].wait()
            for record in (node.driver.run_dir / "state").glob("*.json"):
                if half.published.request.target_path in record.read_text():
                    record.unlink()
            traced.start()
            node.driver.start()
            assert text_at(mounted.applications[0].seen) == "first"
            for stage in stages:
                answers_everything(stage)
            bystander.is_undisturbed()
        finally:
            for stage in stages:
                stage.end()
            if not node.driver.is_started:
                node.driver.start()
        node.delete_pods([bystander.pod])
        node.expect(before)

    kill_at_each("start", functools.partial(Traced, node, calls=CHANGES_AT_START), once)


# ---- the test itself


def test_a_call_that_is_never_made_fails_the_test(
    module_node: Node, fleet: Fleet, bystander: Bystander, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.FIRES", 0.1)
    once = functools.partial(in_scenario, module_node, fleet, bystander, "publish")
    with pytest.raises(pytest.fail.Exception, match="at call 1 of swapon"):
        kill_at("swapon", 1, functools.partial(Traced, module_node), once)


def test_what_fails_while_the_driver_lives_fails_the_test(
    module_node: Node, fleet: Fleet, bystander: Bystander, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.FIRES", 0.1)
    monkeypatch.setitem(SCENARIOS, "fails", (prepare_published, act_fail))
    for traced in (Traced(module_node), Traced(module_node, "swapon", 1)):
        with pytest.raises(AssertionError, match="the act"):
            in_scenario(module_node, fleet, bystander, "fails", traced)
    module_node.delete_pods([bystander.pod])
