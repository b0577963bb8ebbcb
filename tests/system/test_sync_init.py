"""Test --sync-init of libfuse 3.19: the program answers INIT while the driver mounts, or never answers."""

import signal

import pytest
from harness.container import Background, Container
from harness.events import within
from harness.kubelet import Published
from harness.pod import TEST_PROGRAMS, Node, Pod

SYNC_MOUNT_WAIT = 30.0  # seconds that a program has for its answer
BUSY = "fusermount3: mount failed: Device or resource busy"


class Setup:
    """Represents a pod with one volume; each test ends with nothing mounted."""

    def __init__(self, pod: Pod) -> None:
        self.volume: Published = pod.publish()
        self.fuse: Container = pod.fuse(self.volume, binds=[TEST_PROGRAMS])
        self.application: Container = pod.application(self.volume)
        self.application.wait_until_running()

    def start(self, how: str, options: str = "") -> Background:
        return self.fuse.start(f"python3 /programs/sync_init.py {how} /data {options}")

    def starts_and_prints(self, how: str, word: str) -> Background:
        program = self.start(how)
        program.wait_until_it_says(word)
        return program

    def serves(self, program: Background) -> None:
        """Check that the program has mounted, that an application reads, and that the program ends by an unmount."""
        self.volume.wait_mounted(program)
        assert self.application.check("cat /data/hello") == "Hello World!\n"
        assert self.fuse.run("fusermount3 -u /data").code == 0
        assert program.wait() == 0, program.err
        self.volume.wait_waiting()


@pytest.fixture
def setup(pod: Pod) -> Setup:
    return Setup(pod)


def test_a_program_that_answers_is_mounted_with_its_options(setup: Setup) -> None:
    for _ in range(3):
        program = setup.start("serves", "fsname=source,subtype=kind,ro,noatime")
        mount = setup.volume.wait_mounted(program)
        assert (mount.source, mount.fstype) == ("source", "fuse.kind")
        assert {"ro", "noatime", "nosuid", "nodev"} <= set(mount.options)
        setup.serves(program)
        assert program.out == "has the fd\nhas INIT\n0 0\n"
        assert program.err == ""


def test_on_a_kernel_without_it_the_mount_ends_before_init_is_answered(setup: Setup) -> None:
    program = setup.start("usual-init")
    setup.volume.wait_mounted(program)
    setup.serves(program)
    assert program.out == "has the fd\n0 0\nhas INIT\n"


def test_it_is_replaced_when_it_dies_after_the_mount(setup: Setup) -> None:
    program = setup.start("serves")
    setup.volume.wait_mounted(program)
    assert setup.application.check("cat /data/hello") == "Hello World!\n"
    program.kill("KILL")
    setup.volume.wait_waiting()
    setup.serves(setup.start("serves"))


def test_a_program_that_changes_its_mind_mounts_in_the_usual_way_at_once(setup: Setup) -> None:
    """Nothing is reserved for the program, so its first call is not in the way of its second."""
    for _ in range(10):
        program = setup.start("gives-up")
        setup.serves(program)
        assert program.out == "has the fd\n0\n"
        assert BUSY not in program.err


def test_a_program_that_dies_before_it_proceeds_blocks_nobody(setup: Setup) -> None:
    assert setup.start("is-killed").wait() == 128 + signal.SIGKILL
    setup.serves(setup.start("serves"))


def test_a_program_that_dies_with_init_in_hand_blocks_nobody(setup: Setup) -> None:
    for _ in range(3):
        program = setup.start("dies")
        assert program.wait() == 128 + signal.SIGKILL
        assert "has INIT" in program.out
        setup.serves(setup.start("serves"))


def test_while_a_program_does_not_answer_everything_else_goes_on(node: Node, setup: Setup) -> None:
    hung = setup.starts_and_prints("never", "has INIT")
    with within(SYNC_MOUNT_WAIT / 2, "everything else"):
        setup.volume.republish()
        assert setup.application.check("ls -A /data") == ""
        result = setup.fuse.run("fusermount3 -u /data")
        assert (result.code, result.err) == (1, "fusermount3: entry for /data not found in /etc/mtab\n")
        rival = setup.start("serves")
        assert rival.wait() != 0
        assert BUSY in rival.err
        other = Setup(node.pod())
        other.serves(other.start("serves"))
    assert hung.is_running
    # The program gets an error, and another one can mount.
    assert hung.wait(SYNC_MOUNT_WAIT + 10) == 0
    assert hung.out == "has the fd\nhas INIT\n-4 1\n"
    assert hung.err == "fusermount3: mount failed: the FUSE program did not answer INIT in time\n"
    setup.serves(setup.start("serves"))


def test_a_hung_program_that_is_killed_is_replaced_at_once(setup: Setup) -> None:
    hung = setup.starts_and_prints("never", "has INIT")
    hung.kill("KILL")
    hung.wait()
    setup.serves(setup.start("serves"))


def test_unpublish_does_not_wait_for_it(setup: Setup) -> None:
    hung = setup.starts_and_prints("never", "has INIT")
    with within(5, "unpublish"):
        setup.volume.unpublish()
    hung.wait()
    assert hung.out == "has the fd\nhas INIT\n-11 1\n"


def test_a_driver_that_is_killed_meanwhile_leaves_nothing_behind(node: Node, setup: Setup) -> None:
    hung = setup.starts_and_prints("never", "has INIT")
    node.driver.stop(signal.SIGKILL)
    assert hung.wait() == 0
    assert hung.out == "has the fd\nhas INIT\n-5 1\n"
    assert hung.err.startswith("fusermount3: the driver closed the connection")
    assert setup.volume.fuse is None
    node.driver.start()
    setup.serves(setup.start("serves"))


def test_a_program_that_is_killed_with_its_helper_at_any_moment_is_replaced(node: Node, setup: Setup) -> None:
    """The moments lie between its line that it is ready and its serving, a fifth of a millisecond apart."""
    said = len(node.driver.log)
    for number in range(40):
        assert setup.start(f"{number / 5}").wait() == 128 + signal.SIGKILL
        setup.volume.wait_waiting()
    new = node.driver.log[said:]
    # Some moments are before the mount, and some after it.
    assert "request refused: mount failed: the client has gone" in new
    assert "the FUSE program has ended; its mount is detached" in new
    setup.serves(setup.start("serves"))
