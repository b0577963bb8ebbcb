"""Test that kubelet's next republish, or the next program, repairs a target at which somebody on the node has unmounted something.

Some tests mount something else there instead.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import hostile, mounts
from harness.container import Background
from harness.events import wait_until
from harness.fleet import Application, Fleet, shows
from harness.kubelet import Published
from harness.pod import TEST_PROGRAMS, Node, Pod

REPORTED = "the volume was unmounted on the node"


@pytest.fixture
def fleet(node: Node) -> Iterator[Fleet]:
    fleet = Fleet(node)
    yield fleet
    fleet.close()


def served(node: Node, fleet: Fleet) -> tuple[Published, Background]:
    """Mount a program whose file contains "first"; returns the volume and the program."""
    volume = node.pod().publish()
    program = fleet.start(volume, "serves", "first")
    shows(fleet.seen(volume), "first")
    return volume, program


def is_whole(volume: Published) -> None:
    """Check that a placeholder is there, that a program can mount on it, and that unpublish finds nothing of an application's."""
    assert [mount.fstype for mount in volume.mounts] == ["tmpfs"]
    with pytest.raises(OSError, match="No space left"):
        (volume.target / "early").touch()
    hostile.mount_and_end(volume)
    volume.unpublish()


def test_the_placeholder(node: Node, pod: Pod) -> None:
    """Without it, what an application writes is written to the node's disk, and unpublish, which deletes no file, cannot end."""
    volume = pod.publish()
    said = len(node.driver.log)
    mounts.unmount(volume.target)
    volume.republish()
    assert REPORTED in volume.condition
    volume.republish()
    assert node.driver.log[said:].count(REPORTED) == 1
    is_whole(volume)


def test_the_placeholder_and_its_directory(pod: Pod) -> None:
    volume = pod.publish()
    mounts.unmount(volume.target)
    volume.target.rmdir()
    volume.republish()
    is_whole(volume)


def test_a_symlink_in_the_place_of_its_directory(pod: Pod, tmp_path: Path) -> None:
    """The link is not followed, and the condition says what to do."""
    volume = pod.publish()
    mounts.unmount(volume.target)
    volume.target.rmdir()
    volume.target.symlink_to(tmp_path)
    volume.republish()
    assert f"{volume.target} is not a directory but a file or a symlink: look at it and remove it by hand" in volume.condition
    answer, fds = hostile.request(volume, hostile.MOUNT)
    assert (answer["error"], fds) == ("mount failed: Not a directory", [])
    assert not mounts.stack(tmp_path)
    volume.target.unlink()
    volume.republish()
    assert "symlink" not in volume.condition
    is_whole(volume)


def test_the_placeholder_before_a_program_mounts(pod: Pod) -> None:
    volume = pod.publish()
    mounts.unmount(volume.target)
    hostile.mount_and_end(volume)
    is_whole(volume)


def test_the_placeholder_while_a_program_is_asked_for_init(node: Node, pod: Pod) -> None:
    """A process mounts for the program. When that was killed, a new device is at the target, and yet it is no FUSE mount."""
    volume = pod.publish()
    fuse = pod.fuse(volume, binds=[TEST_PROGRAMS])
    program = fuse.start("python3 /programs/sync_init.py never /data")
    wait_until("it has INIT", lambda: "has INIT" in program.out, 10)
    mounts.unmount_lazily(volume.target)
    program.kill("KILL")
    wait_until("the process has ended", lambda: not node.driver.children(), 10)
    assert volume.condition.startswith("waiting since")
    volume.republish()
    is_whole(volume)


def test_something_else_is_mounted_there(node: Node, pod: Pod) -> None:
    volume = pod.publish()
    mounts.mount("-t", "ramfs", "something", volume.target)
    said = f"{volume.target}: a ramfs file system that the driver did not mount is there"
    for _ in range(2):
        volume.republish()
        assert said in volume.condition
    assert node.driver.log.count(said) == 1
    mounts.unmount(volume.target)
    volume.republish()
    assert volume.condition.endswith("no FUSE program has mounted it yet")
    is_whole(volume)


def test_something_else_was_mounted_there_when_a_program_asked(pod: Pod) -> None:
    """Without Kubernetes there is no republish that would check again."""
    volume = pod.publish()
    mounts.mount("-t", "ramfs", "something", volume.target)
    os.close(hostile.mount(volume))
    wait_until("its mount is off", lambda: [mount.fstype for mount in volume.mounts] == ["tmpfs", "ramfs"])
    assert "that the driver did not mount is there" in volume.condition
    mounts.unmount(volume.target)
    hostile.mount_and_end(volume)
    assert "that the driver did not mount" not in volume.condition


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("is_republished", [True, False], ids=["republished", "asked"])
def test_a_mount_whose_program_lives(node: Node, fleet: Fleet, layers: int, is_republished: bool) -> None:
    """Another program can mount, in place of the mount that no container which starts now sees."""
    volume, first = served(node, fleet)
    former = Application(volume)  # keeps the file system, and with it its program
    for _ in range(layers):
        mounts.unmount_lazily(volume.target)
    if is_republished:
        volume.republish()
        assert volume.condition.startswith("waiting since")
    second = fleet.start(volume, "serves", "second")
    shows(fleet.seen(volume), "second")
    application = Application(volume)
    assert REPORTED in volume.condition
    shows(former.seen, "first")
    former.end()
    first.wait()
    assert second.is_running
    shows(application.seen, "second")
    second.kill("KILL")
    shows(application.seen, "")
    application.end()
    is_whole(volume)


def test_a_republish_after_a_restart_finds_nothing_wrong(node: Node, fleet: Fleet) -> None:
    """The new driver does not know the placeholder beneath a mount until the mount is detached."""
    volume, program = served(node, fleet)
    said = len(node.driver.log)
    node.driver.restart()
    volume.republish()
    program.kill("KILL")
    volume.wait_waiting()
    volume.republish()
    assert REPORTED not in node.driver.log[said:]
    is_whole(volume)


def test_something_else_is_mounted_over_it(node: Node, fleet: Fleet) -> None:
    """What is mounted over it is not the driver's, and the mount beneath goes on."""
    volume, _ = served(node, fleet)
    mounts.mount("-t", "tmpfs", "mfcp-test", volume.target)
    volume.republish()
    assert [mount.is_fuse for mount in volume.mounts] == [False, True, False]
    mounts.unmount(volume.target)
    shows(fleet.seen(volume), "first")
    volume.republish()
    assert volume.condition.startswith("mounted since") and REPORTED not in volume.condition


@pytest.mark.parametrize("restarts", [False, True])
def test_what_is_beneath_something_else_is_neither_lost_nor_taken_off(node: Node, fleet: Fleet, restarts: bool) -> None:
    volume, program = served(node, fleet)
    application = Application(volume)
    mounts.mount("-t", "tmpfs", "mfcp-test", volume.target)
    if restarts:
        node.driver.restart()
    unmount = fleet.unmount(volume)
    assert unmount.wait() != 0
    hostile.is_refused_as_busy(volume)
    assert volume.condition.startswith("mounted since")
    assert "a tmpfs file system that the driver did not mount is there" in volume.condition
    program.kill("KILL")
    program.wait()
    mounts.unmount(volume.target)
    volume.republish()
    volume.wait_waiting()
    shows(application.seen, "")
    application.end()
    is_whole(volume)


def test_unpublish_beneath_something_else_ends_the_program(node: Node, fleet: Fleet) -> None:
    """No container keeps the mount."""
    volume, program = served(node, fleet)
    application = Application(volume)
    for _ in range(2):
        mounts.mount("-t", "tmpfs", "mfcp-test", volume.target)
    volume.unpublish()
    program.wait()
    shows(application.seen, "")
    application.end()


def test_an_unmount_on_the_node_is_not_called_a_crash(node: Node, fleet: Fleet) -> None:
    volume, program = served(node, fleet)
    mounts.unmount(volume.target)
    program.wait()
    wait_until("it is reported", lambda: REPORTED in volume.condition)
    assert "it was unmounted, and not mounted again" in volume.condition


def test_something_else_is_mounted_over_the_placeholder_before_a_restart(node: Node, pod: Pod) -> None:
    """The condition reports it as long as it is there."""
    volume = pod.publish()
    node.driver.stop()
    mounts.mount("-t", "tmpfs", "mfcp-test", volume.target)
    node.driver.start()
    for _ in range(2):
        assert "a tmpfs file system that the driver did not mount is there" in volume.condition
        volume.republish()
    mounts.unmount(volume.target)
    volume.republish()
    assert "that the driver did not mount" not in volume.condition
    is_whole(volume)


def test_unmounting_on_the_node_again_and_again_while_programs_mount(pod: Pod) -> None:
    """The unmount happens at any moment of a mount. If a former file system were taken for the new one, nobody could mount any more."""
    volume = pod.publish()
    code = "import ctypes, sys\nlibc = ctypes.CDLL(None)\nwhile True: libc.umount2(sys.argv[1].encode(), 2)  # MNT_DETACH"
    with subprocess.Popen([sys.executable, "-c", code, volume.target]) as unmounts:
        try:
            for _ in range(200):
                _, fds = hostile.request(volume, hostile.MOUNT)
                for fd in fds:
                    os.close(fd)
        finally:
            unmounts.kill()
    wait_until("the last program's end is noticed", lambda: volume.condition.startswith("waiting since"), 20)
    volume.republish()
    is_whole(volume)
