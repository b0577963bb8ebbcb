"""Test that a lazy unmount disturbs nobody who uses the file system, and that the driver follows it until it has ended."""

import json
import signal
from dataclasses import dataclass

import pytest
from harness.container import Background, Container
from harness.events import wait_until, within
from harness.kubelet import Published
from harness.pod import Node, Pod

from driver.model.limits import DETACHED_MAX, LAZY_WAIT

DRIVER_OPTIONS = ("--metrics-address", "127.0.0.1:0")
SLACK = 4.0  # seconds, for starting programs on a slow machine
DETACHED = "unmounted lazily and are still in use: "


@dataclass
class Writer:
    """Represents a process of an application that has /data/file open, and writes to it again when it is told to."""

    container: Container
    name: str
    process: Background

    @staticmethod
    def begin(container: Container, name: str) -> "Writer":
        script = f"exec 3>/data/file; echo first >&3; touch /open-{name}; while [ ! -e /go-{name} ]; do sleep 0.02; done; echo last >&3"
        writer = Writer(container, name, container.start(f"sh -c '{script}'"))
        container.wait_for(f"test -e /open-{name}")
        return writer

    def finish(self) -> int:
        self.container.check(f"touch /go-{self.name}")
        return self.process.wait()


@dataclass
class Setup:
    """Represents a volume with a bindfs of /source-NAME, in a container of its own."""

    node: Node
    pod: Pod
    volume: Published
    fuse: Container

    def application(self) -> Container:
        """Start an application. When this returns, it has bound what is mounted now, and nothing that is mounted later."""
        application = self.pod.application(self.volume)
        application.wait_until_running()
        return application

    def serve(self, name: str) -> Background:
        self.fuse.check(f"mkdir -p /source-{name}")
        return self.volume.mounted_by(self.fuse, f"bindfs -f /source-{name} /data")

    def unmount_lazily(self) -> None:
        self.fuse.check("fusermount3 -u -z /data")
        self.volume.wait_waiting()

    def leave(self, application: Container, name: str) -> tuple[Background, Writer]:
        """Unmount a program lazily while an application has a file open, which it serves from then on."""
        program = self.serve(name)
        writer = Writer.begin(application, name)
        self.unmount_lazily()
        return program, writer

    def written(self, name: str) -> str:
        return self.fuse.check(f"cat /source-{name}/file")

    def detached(self) -> int:
        (volume,) = json.loads(self.node.driver.cli("status", "--output", "json").stdout)["volumes"]
        assert isinstance(volume["detached"], int)
        assert (DETACHED in volume["condition"]) == (volume["detached"] > 0)
        return volume["detached"]

    def no_device_is_left(self) -> None:
        wait_until("no device node is left", lambda: not any((self.node.driver.run_dir / "dev").iterdir()))

    def nothing_is_left(self) -> None:
        self.no_device_is_left()
        assert self.detached() == 0


@pytest.fixture
def setup(node: Node, pod: Pod) -> Setup:
    volume = pod.publish()
    return Setup(node, pod, volume, pod.fuse(volume))


def hang(setup: Setup, application: Container) -> Background:
    """Stop a program while an application looks for a file. The kernel keeps the root of the file system locked until it has an answer."""
    program = setup.serve("one")
    application.start("sh -c 'stat /data && touch /ready && sleep 0.3 && cat /data/nothing'")
    application.wait_for("test -e /ready")  # what stat has found is known for a second
    program.kill("STOP")
    wait_until("it waits", lambda: "request_wait" in application.run("cat /proc/$(pgrep -o -x cat)/wchan").out)
    return program


BOTH = "first\nlast\n"


@pytest.mark.parametrize("when", ["before", "after"])
def test_open_files_are_served_until_they_are_closed(setup: Setup, when: str) -> None:
    """The application's container started before the mount, or after it."""
    application = setup.application()
    program = setup.serve("one")
    if when == "after":
        application = setup.pod.application(setup.volume)
    writer = Writer.begin(application, "one")
    working = application.start("sh -c 'cd /data && while [ ! -e /go-one ]; do sleep 0.02; done; cat file'")
    application.wait_for("test /proc/$(pgrep -o -f 'cd /data')/cwd -ef /data")
    if when == "before":
        assert setup.fuse.run("fusermount3 -u /data").code == 1
    setup.unmount_lazily()
    assert application.check("ls -A /data") == ""  # the path is free at once
    assert setup.detached() == 1
    another = setup.serve("two")
    application.check("echo new >/data/file")
    assert writer.finish() == 0, writer.process.err
    assert setup.written("one") == BOTH
    assert working.wait() == 0 and working.out.startswith("first\n")
    assert setup.written("two") == "new\n"
    if when == "before":
        program.wait()  # with its last user
    else:
        assert setup.detached() == 1  # that container has the file system beneath the placeholder
        setup.pod.stop(application)
        program.wait()
    another.kill()
    setup.volume.wait_waiting()
    setup.nothing_is_left()


def test_what_nobody_uses_ends_at_once(setup: Setup) -> None:
    program = setup.serve("one")
    setup.fuse.check("fusermount3 -u -z /data")
    program.wait()
    setup.nothing_is_left()


def test_a_slow_writer_gets_everything_through(setup: Setup) -> None:
    application = setup.application()
    setup.serve("one")
    writer = application.start("sh -c 'for i in 1 2 3 4 5 6 7 8 9 10; do head -c 100000 /dev/zero; sleep 0.1; done >/data/file'")
    application.wait_for("test -s /data/file")
    setup.unmount_lazily()
    assert writer.wait() == 0, writer.err
    assert setup.fuse.check("stat -c %s /source-one/file") == "1000000\n"
    setup.nothing_is_left()


def test_a_plain_unmount_when_nothing_is_mounted_ends_it(setup: Setup) -> None:
    program = setup.serve("one")
    setup.application()
    setup.unmount_lazily()
    for options in ("-z", "-q -z"):
        result = setup.fuse.run(f"fusermount3 -u {options} /data")
        assert (result.code, setup.detached()) == (1, 1)
    assert program.is_running
    setup.fuse.check("fusermount3 -u /data")
    program.wait()
    assert setup.fuse.run("fusermount3 -u /data").code == 1
    setup.nothing_is_left()


def test_a_plain_unmount_of_the_next_program_leaves_it(setup: Setup) -> None:
    _, writer = setup.leave(setup.application(), "one")
    another = setup.serve("two")
    setup.fuse.check("fusermount3 -u /data")
    another.wait()
    assert writer.finish() == 0, writer.process.err
    assert setup.written("one") == BOTH
    setup.nothing_is_left()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_next_driver_follows_what_is_still_used(setup: Setup, how: signal.Signals) -> None:
    application = setup.application()
    program, writer = setup.leave(application, "one")
    another, second = setup.leave(application, "two")
    for _ in range(2):
        setup.node.driver.restart(how)
        assert setup.detached() == 2
    assert writer.finish() == 0, writer.process.err
    program.wait()
    wait_until("one is left", lambda: setup.detached() == 1)
    setup.node.driver.stop(how)
    assert second.finish() == 0, second.process.err
    another.wait()
    setup.node.driver.start()
    assert setup.written("one") == BOTH
    setup.nothing_is_left()


@pytest.mark.parametrize("is_unmounted_too", [True, False])
def test_unpublish_ends_what_is_still_used_and_the_next_program(setup: Setup, is_unmounted_too: bool) -> None:
    application = setup.application()
    program, _ = setup.leave(application, "one")
    another = setup.serve("two")
    Writer.begin(application, "two")
    if is_unmounted_too:
        setup.unmount_lazily()
    setup.volume.unpublish()
    program.wait()
    another.wait()
    setup.no_device_is_left()


def test_one_too_many_ends_the_oldest(setup: Setup) -> None:
    application = setup.application()
    oldest, *others = [setup.leave(application, str(number))[0] for number in range(DETACHED_MAX + 1)]
    oldest.wait()
    assert [program.is_running for program in others] == [True] * DETACHED_MAX
    assert setup.detached() == DETACHED_MAX
    assert f"more than {DETACHED_MAX} lazily unmounted" in setup.node.driver.log


@pytest.mark.parametrize("by", ["volume", "path"])
def test_somebody_on_the_node_ends_everything_of_a_volume(setup: Setup, by: str) -> None:
    application = setup.application()
    program, writer = setup.leave(application, "one")
    another = setup.serve("two")
    another.kill("STOP")
    caller = application.start("cat /data/nothing")
    (listed,) = json.loads(setup.node.driver.cli("status", "--output", "json").stdout)["volumes"]
    done = setup.node.driver.cli("abort", listed[by])
    assert (done.returncode, done.stderr) == (0, "")
    assert caller.wait() != 0
    another.kill("CONT")
    another.wait()
    program.wait()
    assert writer.finish() != 0
    setup.serve("three").kill()
    setup.volume.wait_waiting()
    setup.nothing_is_left()
    done = setup.node.driver.cli("abort", listed[by])
    assert (done.returncode, done.stderr) == (1, f"Error: there is no FUSE file system at {setup.volume.target} that the driver can end\n")
    done = setup.node.driver.cli("abort", "nonsense")
    assert (done.returncode, done.stderr) == (1, "Error: there is no volume 'nonsense'; status lists all volumes\n")


def test_a_program_that_ends_with_open_files_is_forgotten(setup: Setup) -> None:
    program, writer = setup.leave(setup.application(), "one")
    program.kill("KILL")
    program.wait()
    setup.nothing_is_left()
    assert writer.finish() != 0  # its file system is gone


def test_the_metrics_count_what_is_still_used(setup: Setup) -> None:
    setup.leave(setup.application(), "one")
    assert "mfcp_detached_mounts 1\n" in setup.node.driver.metrics()


def test_a_program_that_keeps_the_root_locked_is_ended(setup: Setup) -> None:
    """To cover the mount in containers that started after it, the driver needs the lock, too."""
    application = setup.application()
    program = hang(setup, application)
    with within(LAZY_WAIT + SLACK, "fusermount3 -u -z"):
        setup.unmount_lazily()
    assert "keeps its users waiting" in setup.node.driver.log
    assert setup.detached() == 0
    another = setup.serve("two")
    application.check("echo new >/data/file")
    assert setup.written("two") == "new\n"
    program.kill("CONT")
    program.wait()
    another.kill()
    setup.volume.wait_waiting()
    setup.nothing_is_left()


def test_a_program_that_keeps_the_root_locked_does_not_keep_the_driver_from_ending(setup: Setup) -> None:
    application = setup.application()
    program = hang(setup, application)
    unmount = setup.fuse.start("fusermount3 -u -z /data")
    setup.fuse.wait_for("! grep -q ' /data fuse' /proc/mounts")
    with within(LAZY_WAIT + SLACK, "the driver's end"):
        assert setup.node.driver.stop() == 0
    setup.node.driver.start()
    assert unmount.wait() == 0, unmount.err
    program.kill("CONT")
    program.wait()
    setup.nothing_is_left()
    with within(SLACK, "unpublish"):
        setup.volume.unpublish()
