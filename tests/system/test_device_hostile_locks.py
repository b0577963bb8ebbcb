"""Attack the fuse device with locked directories and FUSE programs that do not answer, and race with renames."""

import pytest
from harness import mounts
from harness.container import Background, Bind, Container
from harness.device import BINDFS, FOLDER, USER, Device, fuse_mounts, source, wait_until_unmounted
from harness.events import wait_until, within
from harness.pod import TEST_PROGRAMS, Node
from harness.table import is_everything_run

from driver.model.limits import DEVICE_MOUNTS, VISIT_WAIT, VISITS_OF_AN_ALLOCATION

CLIENT = "python3 /programs/device_client.py"
LOCKED = "mount failed: the mountpoint is kept locked by another program"
EARLIER = "mount failed: earlier mounts of this fuse device have not ended yet: "
SERVED = "/served"  # where the hostile FUSE programs of these tests are mounted


@pytest.fixture
def container(device: Device, node: Node) -> Container:
    """Start a container with a fuse device and the test programs."""
    container = device.container([TEST_PROGRAMS, Bind(source(node), "/source")])
    container.check(f"mkdir {FOLDER} {SERVED}")
    return container


def serve(container: Container, how: str) -> Background:
    """Start a hostile FUSE program at SERVED."""
    program = container.start(f"python3 /programs/hostile_fuse.py {how} {SERVED}")
    program.wait_until_it_says("serves")
    return program


def ask(container: Container, arguments: str) -> str:
    """Return what the driver answers."""
    return container.check(f"{CLIENT} {arguments}", 60).strip()


def another_mounts(device: Device) -> None:
    """Check that another container with the same device mounts and unmounts."""
    other = device.container([Bind(source(device.node), "/source")])
    other.check(f"mkdir {FOLDER}")
    with within(2, "another container mounts and unmounts"):
        other.check(f"{BINDFS} /source {FOLDER} && fusermount3 -u {FOLDER}")


def test_a_mount_that_comes_after_its_refusal_is_taken_off(device: Device, container: Container) -> None:
    """The driver cannot keep its process from mounting once that waits for the lock; dead mounts must not pile up."""
    program = serve(container, "never-read")
    holders = [container.start(f"python3 /programs/hold_directory.py {FOLDER} {SERVED}/hello")]
    program.wait_until_it_says("asked 15")
    with within(2 * VISIT_WAIT, "the mount is refused"):
        assert ask(container, f"at {FOLDER}") == LOCKED
    another_mounts(device)
    program.kill()
    for holder in holders:
        holder.wait()
    wait_until("nothing is recorded", lambda: device.records() == [])
    assert fuse_mounts(container) == []
    container.check(f"{BINDFS} /source {FOLDER} && fusermount3 -u {FOLDER}")


def test_a_server_that_leaves_a_mkdir_unanswered(device: Device, node: Node, container: Container) -> None:
    """It keeps the lock of the directory, and who mounts there waits where SIGKILL does not reach."""
    serve(container, "never-mkdir")
    container.start(f"mkdir {SERVED}/x")
    container.wait_for("ps -eo wchan:30,comm | grep -q 'request_wait.*mkdir'")
    for _ in range(VISITS_OF_AN_ALLOCATION):
        assert ask(container, f"at {SERVED}") == LOCKED
    assert ask(container, f"at {FOLDER}").startswith(EARLIER)
    another_mounts(device)
    wait_until("no more processes wait", lambda: len(node.driver.children()) == VISITS_OF_AN_ALLOCATION)
    done = node.driver.cli("device", "abort", device.name)
    assert done.returncode == 0, done.stderr
    wait_until("nothing is recorded", lambda: device.records() == [])
    wait_until_unmounted(container)
    container.check(f"{BINDFS} /source {FOLDER} && fusermount3 -u {FOLDER}")


def test_such_a_container_can_be_removed(device: Device, node: Node, container: Container) -> None:
    serve(container, "never-mkdir")
    container.start(f"mkdir {SERVED}/x")
    container.wait_for("ps -eo wchan:30,comm | grep -q 'request_wait.*mkdir'")
    container.start(f"{CLIENT} at {SERVED}")
    wait_until("a process of the driver waits", lambda: len(node.driver.children()) == 1)
    with within(15, "the container ends"):
        container.kill("KILL")
        container.wait()
    wait_until("nothing is recorded", lambda: device.records() == [])
    wait_until("no process waits", lambda: node.driver.children() == [])


@pytest.mark.parametrize("user", ["", USER])
def test_a_directory_that_the_containers_own_silent_program_serves(container: Container, user: str) -> None:
    container.check(f"chown 1234 {SERVED}")
    program = container.start(f"{user} python3 /programs/hostile_fuse.py never-anything {SERVED}")
    program.wait_until_it_says("serves")
    client = container.start(f"{user} {CLIENT} at {SERVED}")
    wait_until("there is an answer", lambda: client.out, VISIT_WAIT / 2)
    assert client.out.strip() in ("mounted", f"user has no write access to mountpoint {SERVED}")
    assert "asked 3" not in program.out  # nobody has asked for attributes
    program.kill()
    wait_until_unmounted(container)


def test_a_directory_that_the_containers_own_stopped_program_serves(container: Container) -> None:
    container.check(f"{BINDFS} /source {SERVED} && mkdir -p {SERVED}/inner")
    client = container.start(f"sh -c 'exec 3<{SERVED}/inner; pkill -STOP bindfs; exec {CLIENT} at /proc/self/fd/3/.'")
    wait_until("there is an answer", lambda: client.out or client.err, VISIT_WAIT * 2)
    assert client.out == "mounted\n", client.err
    client.wait()
    container.check(f"pkill -CONT bindfs; fusermount3 -u -z {SERVED}")
    wait_until_unmounted(container)
    container.check("rmdir /source/inner")


def test_a_fuse_file_system_that_is_not_the_drivers(device: Device) -> None:
    """The driver could not end it, and its server can keep who mounts there for ever."""
    container = device.container([TEST_PROGRAMS], ["--device=/dev/fuse", "--security-opt=seccomp=unconfined"])
    container.check(f"mkdir {FOLDER}")
    forbidden = f"mounting on {FOLDER} is forbidden"
    serves = f'python3 /programs/direct_mount.py {FOLDER} & while ! grep -q " {FOLDER} .* - fuse" /proc/self/mountinfo; do sleep 0.1; done'
    answer = container.check(f"unshare -Urm sh -c '{serves}; {CLIENT} at {FOLDER}; kill $!'")
    # The kernel itself tells the driver nothing of what belongs to another user namespace.
    answers = (f"{forbidden}: it is on a FUSE file system that this container has not mounted here", "mount failed: Permission denied")
    assert any(each in answer.splitlines() for each in answers), answer


def test_lazily_unmounted_file_systems_are_counted_as_long_as_they_are_used(device: Device, container: Container) -> None:
    client = container.start(f"{CLIENT} pile {DEVICE_MOUNTS} {FOLDER}")
    wait_until("there is an answer", lambda: client.out, 60)
    assert client.out == f"too many FUSE filesystems mounted; this fuse device allows {DEVICE_MOUNTS} (--fuse-mounts-max)\n"
    assert fuse_mounts(container) == []
    client.kill()
    wait_until("they have ended", lambda: container.run(f"{BINDFS} /source {FOLDER} && fusermount3 -u {FOLDER}").code == 0)


def test_the_death_of_a_program_whose_mount_is_on_another_one(container: Container) -> None:
    """The driver reaches the inner one through a file system that may be closed to it, and whose program may be silent."""
    container.check(f"chown 1234 {SERVED} && mkdir /source/inner && chown 1234 /source /source/inner && {USER} {BINDFS} /source {SERVED}")
    inner = container.start(f"{USER} {BINDFS} -f /source {SERVED}/inner")
    container.wait_for(f"grep -q ' {SERVED}/inner .* - fuse ' /proc/self/mountinfo")
    inner.kill()
    wait_until("the inner one is taken off", lambda: len(fuse_mounts(container)) == 1)
    container.check(f"{USER} fusermount3 -u {SERVED} && rmdir /source/inner")


def test_a_symlink_swapped_while_the_client_opens_the_mountpoint(container: Container) -> None:
    container.check(f"mkdir {FOLDER}/x /elsewhere && chown -R 1234 {FOLDER} && mkdir /elsewhere/x")
    racer = container.start(f"{USER} python3 /programs/racer.py exchange {FOLDER} /elsewhere x")
    racer.wait_until_it_says("races")
    mounted = 0
    for _ in range(300 if is_everything_run() else 40):
        done = container.run(f"{USER} {BINDFS} /source {FOLDER}/x")
        places = {mount.path for mount in fuse_mounts(container)}
        assert not any(place.startswith("/elsewhere") for place in places)
        mounted += done.code == 0
        container.run(f"for m in {FOLDER}/x {FOLDER}/x.swap; do {USER} fusermount3 -u -q $m; done")
        container.check("pkill bindfs; while pgrep -x bindfs >/dev/null; do sleep 0.01; done")
    assert mounted
    racer.kill("TERM")
    wait_until_unmounted(container)


def test_two_directories_of_a_shared_volume_exchanged_during_unmounts(device: Device, node: Node) -> None:
    """Another container exchanges the mountpoint with one of the engine's: that mount must stay, and ours must go."""
    volume, engines = node.folder / "volume", node.folder / "engines"
    for folder in (volume, volume / "a", volume / "a" / "m", volume / "b", volume / "b" / "m", engines):
        folder.mkdir()
    container = device.container([TEST_PROGRAMS, Bind(source(node), "/source"), Bind(volume, "/volume"), Bind(engines, "/volume/b/m")])
    container.wait_until_running()
    other = device.container([TEST_PROGRAMS, Bind(volume, "/volume")])
    exchange = "import ctypes; libc = ctypes.CDLL(None)\nwhile True: libc.renameat2(-100, b'/volume/a', -100, b'/volume/b', 2)"
    racer = other.start(f'python3 -c "{exchange}"')
    script = f"{BINDFS} /source /volume/a/m; fusermount3 -u /volume/a/m || fusermount3 -u -z /volume/a/m || fusermount3 -u -z /volume/b/m"
    for _ in range(300 if is_everything_run() else 40):
        container.run(script)
        table = mounts.parse(container.check("cat /proc/self/mountinfo"))
        assert [mount for mount in table if mount.path in ("/volume/a/m", "/volume/b/m") and not mount.is_fuse]
        container.check("pkill bindfs; while pgrep -x bindfs >/dev/null; do sleep 0.01; done")
        wait_until_unmounted(container)
    racer.kill()


def test_exec_and_removal_go_on_while_a_program_hangs(device: Device, node: Node, container: Container) -> None:
    serve(container, "never-anything")
    container.start(f"ls {SERVED}")
    container.wait_for("ps -eo wchan:30,comm | grep -q 'request_wait.*ls'")
    with within(10, "podman exec answers"):
        done = node.engine.call("exec", container.name, "cat", "/source/file")
    assert done.stdout == "content\n", done.stderr
    with within(15, "the container is removed"):
        container.remove()
    wait_until("nothing is recorded", lambda: device.records() == [])
