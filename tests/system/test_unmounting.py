"""Test fusermount3 -u, called by hand and by the FUSE library, and another mount after it: the volume's sockets stay."""

import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import mounts
from harness.container import Background, Bind, Container
from harness.events import wait_until
from harness.kubelet import Published
from harness.pod import SOCKETS, VARIABLE, Node, Pod, tree

from driver.mounts import takeoff

both_places = pytest.mark.parametrize("mountpoint", ["/data", "/elsewhere"])


class Setup:
    """Represents one pod for all tests here; each test ends with nothing mounted."""

    def __init__(self, pod: Pod) -> None:
        self.volume: Published = pod.publish()
        self.fuse: Container = pod.fuse(self.volume)
        self.before: Container = pod.application(self.volume)
        # These two run no FUSE program: one sees the volume at a path of its own, and one does not see it at all.
        self.other: Container = pod.fuse(self.volume, data="/mine", dev_fuse=False)
        environment = {VARIABLE: f"{SOCKETS}/{self.volume.socket.name}"}
        self.blind: Container = pod.container([Bind(self.volume.socket.parent, SOCKETS), *tree()], environment=environment)
        self.fuse.check("mkdir /source /elsewhere && echo content >/source/file")
        for container in (self.fuse, self.before, self.other, self.blind):  # otherwise a test would find them new at its end
            container.wait_until_running()

    def mount(self, mountpoint: str = "/data") -> Background:
        program = self.volume.mounted_by(self.fuse, f"bindfs -f /source {mountpoint}")
        assert self.before.check("cat /data/file") == "content\n"
        return program

    def unmounted(self, program: Background) -> None:
        """Check that the program has ended well, and that applications see the placeholder."""
        assert program.wait() == 0, program.err
        self.volume.wait_waiting()
        assert self.before.check("ls -A /data") == ""


@pytest.fixture(scope="module")
def setup(module_node: Node) -> Setup:
    return Setup(module_node.pod())


@both_places
def test_unmount_and_mount_again_three_times(node: Node, setup: Setup, mountpoint: str) -> None:
    for _ in range(3):
        program = setup.mount(mountpoint)
        result = setup.fuse.run(f"fusermount3 -u {mountpoint}")
        assert (result.code, result.out, result.err) == (0, "", "")
        setup.unmounted(program)


def test_the_drivers_own_questions_do_not_make_it_busy(node: Node, setup: Setup) -> None:
    """kubelet asks for the volume's condition at any moment."""
    asked = 0
    stopped = threading.Event()

    def ask() -> None:
        nonlocal asked
        while not stopped.is_set():
            asked += setup.volume.condition.startswith("mounted")

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for _ in range(20):
            program = setup.mount()
            result = setup.fuse.run("fusermount3 -u /data")
            assert (result.code, result.err) == (0, "")
            setup.unmounted(program)
    finally:
        stopped.set()
        thread.join()
    assert asked > 20


@pytest.fixture
def found_mount(folder: Path) -> Iterator[tuple[Path, int]]:
    """Mount a file system, and open an fd with which somebody has found it."""
    path = Path(tempfile.mkdtemp(prefix="mount-", dir=folder))
    mounts.call_mount("tmpfs", path, "tmpfs")
    yield path, os.open(path, os.O_PATH)
    mounts.unmount_all_below(path)


def test_a_lookup_at_the_same_moment_does_not_make_it_busy(found_mount: tuple[Path, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A question begins with a lookup of the mount, and a lookup alone makes the mount busy."""
    path, fd = found_mount
    monkeypatch.setattr(takeoff.time, "sleep", lambda _: os.close(fd))
    takeoff._unmount_unless_busy(str(path))
    assert not mounts.stack(path)


def test_what_stays_busy_is_reported_soon(found_mount: tuple[Path, int], monkeypatch: pytest.MonkeyPatch) -> None:
    path, fd = found_mount
    waited: list[float] = []
    monkeypatch.setattr(takeoff.time, "sleep", waited.append)
    with pytest.raises(OSError, match="Device or resource busy"):
        takeoff._unmount_unless_busy(str(path))
    os.close(fd)
    assert sum(waited) < 0.1


@both_places
def test_the_library_unmounts_when_it_is_reported_to_stop(node: Node, setup: Setup, mountpoint: str) -> None:
    program = setup.mount(mountpoint)
    program.kill("TERM")
    setup.unmounted(program)


def test_an_application_that_started_after_the_mount_sees_each_one(pod: Pod) -> None:
    """Such an application has bound the FUSE file system itself, and is not in the placeholder's propagation tree."""
    volume = pod.publish()
    fuse = pod.fuse(volume)
    fuse.check("mkdir /source")
    after = None
    for number in range(3):
        fuse.check(f"echo {number} >/source/file")
        volume.mounted_by(fuse, "bindfs -f /source /data")
        after = after or pod.application(volume)
        assert after.check("cat /data/file") == f"{number}\n"
        fuse.check("fusermount3 -u /data")
        assert after.check("ls -A /data") == ""


@both_places
@pytest.mark.parametrize("options", ["-u", "-u -z", "-u -q", "-uqz"])
def test_from_another_container_of_the_pod(node: Node, setup: Setup, options: str, mountpoint: str) -> None:
    """This container names the volume by its own path of it, which no other container has."""
    program = setup.mount(mountpoint)
    result = setup.other.run(f"fusermount3 {options} /mine")
    assert (result.code, result.out, result.err) == (0, "", "")
    setup.unmounted(program)
    assert setup.other.check("ls -A /mine") == ""


@both_places
def test_from_a_container_that_does_not_see_the_volume(node: Node, setup: Setup, mountpoint: str) -> None:
    """It names the path that the program gave, which only the driver knows."""
    assert setup.blind.run("test -e /data -o -e /elsewhere").code == 1
    program = setup.mount(mountpoint)
    for unknown in ("/mine", "/elsewhere2"):
        result = setup.blind.run(f"fusermount3 -u {unknown}")
        assert (result.code, result.err) == (1, f"fusermount3: entry for {unknown} not found in /etc/mtab\n")
    result = setup.blind.run(f"fusermount3 -u {mountpoint}")
    assert (result.code, result.out, result.err) == (0, "", "")
    setup.unmounted(program)


def test_a_busy_file_system_stays_for_other_containers_too(node: Node, setup: Setup) -> None:
    program = setup.mount()
    user = setup.before.start("sh -c 'exec 5</data/file; echo open; exec sleep 1000'")
    wait_until("the file is open", lambda: user.out == "open\n")
    for container, path in ((setup.other, "/mine"), (setup.blind, "/data")):
        result = container.run(f"fusermount3 -u {path}")
        assert (result.code, result.err) == (1, f"fusermount3: failed to unmount {path}: Device or resource busy\n")
    user.kill()
    user.wait()
    assert setup.other.run("fusermount3 -u /mine").code == 0
    setup.unmounted(program)


@both_places
def test_the_first_unmount_of_what_a_dead_program_left_succeeds(node: Node, setup: Setup, mountpoint: str) -> None:
    """With libfuse's helper it would still be mounted, and scripts and programs take an error for one of their own."""
    setup.mount(mountpoint).kill("KILL")
    setup.volume.wait_waiting()
    wait_until("the driver is done with it", lambda: setup.fuse.run(f"fusermount3 -u {mountpoint}").code == 0)
    result = setup.fuse.run(f"fusermount3 -u {mountpoint}")
    assert (result.code, result.err) == (1, f"fusermount3: entry for {mountpoint} not found in /etc/mtab\n")
    # A mount that was unmounted leaves nothing behind.
    program = setup.mount(mountpoint)
    assert setup.fuse.run(f"fusermount3 -u {mountpoint}").code == 0
    setup.unmounted(program)
    assert setup.fuse.run(f"fusermount3 -u {mountpoint}").code == 1


@both_places
@pytest.mark.parametrize("is_away", [False, True], ids=["before", "meanwhile"])
def test_the_first_unmount_succeeds_after_a_restart_of_the_driver_too(
    module_node: Node, setup: Setup, mountpoint: str, is_away: bool
) -> None:
    driver = module_node.driver
    program = setup.mount(mountpoint)
    if is_away:
        driver.stop()
    program.kill("KILL")
    program.wait()
    if not is_away:
        setup.volume.wait_waiting()
        driver.stop()
    driver.start()
    setup.volume.wait_waiting()
    wait_until("the driver is done with it", lambda: setup.fuse.run(f"fusermount3 -u {mountpoint}").code == 0)
    driver.restart()
    assert setup.fuse.run(f"fusermount3 -u {mountpoint}").code == 1


def test_a_busy_file_system_stays(node: Node, setup: Setup) -> None:
    program = setup.mount()
    user = setup.before.start("sh -c 'exec 5</data/file; echo open; exec sleep 1000'")
    wait_until("the file is open", lambda: user.out == "open\n")
    result = setup.fuse.run("fusermount3 -u /data")
    assert (result.code, result.err) == (1, "fusermount3: failed to unmount /data: Device or resource busy\n")
    result = setup.fuse.run("fusermount3 -u -q /data")
    assert (result.code, result.err) == (1, "")
    assert setup.before.check("cat /data/file") == "content\n"

    assert setup.fuse.run("fusermount3 -u -z /data").code == 0
    setup.volume.wait_waiting()
    user.kill()
    user.wait()
    setup.unmounted(program)


@pytest.mark.parametrize("quiet", [False, True])
def test_nothing_is_mounted(node: Node, setup: Setup, quiet: bool) -> None:
    result = setup.fuse.run(f"fusermount3 -u {'-q' if quiet else ''} /data")
    text = "" if quiet else "fusermount3: entry for /data not found in /etc/mtab\n"
    assert (result.code, result.out, result.err) == (1, "", text)


def test_that_nothing_is_mounted_is_no_warning(node: Node, pod: Pod) -> None:
    """Start scripts unmount what a crash could have left."""
    setup = Setup(pod)

    def level(path: str) -> str:
        assert setup.fuse.run(f"fusermount3 -uz {path}").code == 1
        lines = [line for line in node.driver.log.splitlines() if setup.volume.request.volume_id in line]
        (refused,) = [line for line in lines if f"not mounted: '{path}'" in line]
        return refused.split()[1]

    assert level("/data") == "INFO"
    setup.mount()
    assert level("/srv") == "WARNING"


def test_another_path_than_the_mounted_one(node: Node, setup: Setup) -> None:
    program = setup.mount("/elsewhere")
    result = setup.fuse.run("fusermount3 -u /srv")
    assert (result.code, result.err) == (1, "fusermount3: entry for /srv not found in /etc/mtab\n")
    assert setup.before.check("cat /data/file") == "content\n"
    # The volume's own path is in the container's mount table, whatever path the program gave.
    assert setup.fuse.run("fusermount3 -u /data").code == 0
    setup.unmounted(program)


def test_lazy_goes_with_unmount_only(node: Node, setup: Setup) -> None:
    result = setup.fuse.run("fusermount3 -z /data")
    assert (result.code, result.err) == (1, "fusermount3: -z can only be used with -u\n")


AS = "setpriv --reuid={0} --regid={0} --clear-groups"


@pytest.mark.parametrize("options", ["-u", "-u -z"])
def test_only_the_user_who_mounted_and_root_unmount(pod: Pod, options: str) -> None:
    """libfuse's helper finds no entry of another user's in its mount table."""
    volume = pod.publish()
    fuse = pod.fuse(volume)
    fuse.check("mkdir /source && echo content >/source/file && chmod 755 /source")
    unmount = f"fusermount3 {options} /data"
    refused = (1, "fusermount3: entry for /data not found in /etc/mtab\n")
    # As root of its own user namespace, in which there is nobody else.
    as_root_over_nobody = f"unshare --user --map-root-user {unmount}"
    for by in (f"{AS.format(1000)} {unmount}", unmount):
        program = volume.mounted_by(fuse, f"{AS.format(1000)} bindfs -f /source /data")
        for other in (f"{AS.format(2000)} {unmount}", f"{AS.format(2000)} {as_root_over_nobody}"):
            result = fuse.run(other)
            assert (result.code, result.err) == refused or "unshare failed" in result.err
        assert fuse.check("cat /data/file") == "content\n"
        fuse.check(by)
        program.wait()
        volume.wait_waiting()
    program = volume.mounted_by(fuse, "bindfs -f /source /data")
    result = fuse.run(f"{AS.format(1000)} {unmount}")
    assert (result.code, result.err) == refused
    fuse.check(unmount)
    program.wait()


def test_a_lazily_unmounted_file_system_is_ended_by_its_user_alone(pod: Pod) -> None:
    volume = pod.publish()
    fuse = pod.fuse(volume)
    fuse.check("mkdir /source && chmod 755 /source")
    program = volume.mounted_by(fuse, f"{AS.format(1000)} bindfs -f /source /data")
    late = pod.application(volume)
    late.check("true")
    fuse.check("fusermount3 -u -z /data")
    assert fuse.run(f"{AS.format(2000)} fusermount3 -u /data").code == 1
    assert program.is_running
    fuse.check(f"{AS.format(1000)} fusermount3 -u /data")
    program.wait()
