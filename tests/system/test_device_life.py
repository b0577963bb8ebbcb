"""Test the life of mounts of fuse devices: user namespaces, synchronous INIT, containers that are killed, and what their ends free."""

import os
import signal
import time
from pathlib import Path

import pytest
from harness import mounts
from harness.container import Bind, Container
from harness.device import BINDFS, FOLDER, SERVES, USER, Device, fuse_mounts, source, wait_until_unmounted
from harness.events import wait_until, within
from harness.pod import TEST_PROGRAMS, Node

from driver.model.limits import CHECK_INTERVAL, CONTAINER_CHECK_INTERVAL

_RELEASE = tuple(int(part) for part in os.uname().release.split(".")[:2])


def test_a_container_in_a_user_namespace_of_its_own(device: Device, node: Node) -> None:
    container = device.container_with_user_namespace([Bind(source(node), "/source")])
    container.check(f"{USER} {BINDFS} /source {FOLDER}")
    (mount,) = fuse_mounts(container)
    assert {"user_id=1234", "group_id=1234"} <= mount.super_options
    assert {"nosuid", "nodev"} <= mount.options
    assert container.check(f"{USER} cat {FOLDER}/file") == "content\n"
    container.check(f"{USER} fusermount3 -u {FOLDER}")
    program = container.start(f"{USER} {BINDFS} -f /source {FOLDER}")
    container.wait_for(SERVES)
    program.kill()
    wait_until_unmounted(container)
    container.check(f"{USER} {BINDFS} /source {FOLDER} && fusermount3 -u {FOLDER}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_such_a_mount_survives_the_driver(device: Device, node: Node, number: signal.Signals) -> None:
    container = device.container_with_user_namespace([Bind(source(node), "/source")])
    program = container.start(f"{USER} {BINDFS} -f /source {FOLDER}")
    container.wait_for(SERVES)
    node.driver.restart(number)
    assert container.check(f"{USER} cat {FOLDER}/file") == "content\n"
    program.kill()
    wait_until_unmounted(container)


def test_synchronous_init(device: Device, node: Node) -> None:
    container = device.container([TEST_PROGRAMS, Bind(source(node), "/source")])
    container.check(f"mkdir {FOLDER} && chown 1234 {FOLDER}")
    how = "serves" if _RELEASE >= (6, 18) else "usual-init"
    program = container.start(f"{USER} python3 /programs/sync_init.py {how} {FOLDER}")
    container.wait_for(f"{USER} cat {FOLDER}/hello")
    container.check(f"{USER} fusermount3 -u {FOLDER}")
    program.wait()


@pytest.mark.skipif(_RELEASE < (6, 18), reason="this kernel has no synchronous INIT")
@pytest.mark.parametrize("how", ["is-killed", "gives-up", "dies"])
def test_a_program_that_does_not_go_on_leaves_nothing(device: Device, node: Node, how: str) -> None:
    container = device.container([TEST_PROGRAMS])
    container.check(f"mkdir {FOLDER} && chown 1234 {FOLDER}")
    program = container.start(f"{USER} python3 /programs/sync_init.py {how} {FOLDER}")
    if how == "gives-up":
        container.wait_for(f"{USER} test -e {FOLDER}/hello")
        container.check(f"{USER} fusermount3 -u {FOLDER}")
    program.wait()
    wait_until_unmounted(container)
    wait_until("nothing is recorded", lambda: device.records() == [])


def test_a_container_that_waits_for_its_own_program_can_be_killed(device: Device, node: Node) -> None:
    """SIGKILL ends no process whose request a FUSE program has read, and the program itself may wait in the same way."""
    container = device.container([TEST_PROGRAMS, Bind(source(node), "/source")])
    container.check(f"mkdir {FOLDER} {FOLDER}2")
    # Each of the two programs waits for the other one, in the file system that the other serves.
    for place in (FOLDER, f"{FOLDER}2"):
        container.start(f"{BINDFS} -f /source {place}")
        container.wait_for(f"grep -q ' {place} .* - fuse ' /proc/self/mountinfo")
    container.check(f"pkill -STOP bindfs; (cat {FOLDER}/file &) ; (cat {FOLDER}2/file &)")
    wait_until("both wait", lambda: container.check("ps -eo wchan:30,comm | grep -c 'request_wait.*cat' || true").strip() == "2")
    with within(10 * (2 * CONTAINER_CHECK_INTERVAL), "the container ends"):
        container.kill("KILL")
        container.wait()
    wait_until("nothing is recorded", lambda: device.records() == [])


def test_the_first_process_that_is_gone_frees_what_the_container_used(device: Device, node: Node) -> None:
    """Another container may hold the fd that serves the mount; the driver then keeps nothing of the container all the same."""
    disk = node.folder / "disk"
    disk.mkdir()
    mounts.mount("-t", "tmpfs", "mfcp-disk", disk)
    try:
        (disk / "m").mkdir()
        container = device.container([TEST_PROGRAMS, Bind(source(node), "/source"), Bind(disk, "/disk")])
        container.check(f"{BINDFS} /source /disk/m")
        device.stop(container)
        wait_until("the disk is free", lambda: _unmounts(disk))
    finally:
        mounts.unmount_all_below(disk)


def test_two_containers_with_one_device(device: Device, node: Node) -> None:
    """The mounts of one are not the other's to unmount, although both have the same socket, user and mountpoint."""
    first, second = (device.container([Bind(source(node), "/source")]) for _ in range(2))
    for container in (first, second):
        container.check(f"mkdir {FOLDER} && chown 1234 {FOLDER} && {USER} {BINDFS} /source {FOLDER}")
    second.check(f"{USER} fusermount3 -u {FOLDER}")
    assert fuse_mounts(second) == []
    assert second.run(f"{USER} fusermount3 -u {FOLDER}").code == 1
    assert len(fuse_mounts(first)) == 1
    first.check(f"{USER} fusermount3 -u {FOLDER}")


def test_a_driver_that_is_killed_at_any_moment_leaves_no_dead_mount(device: Device, node: Node) -> None:
    container = device.container([Bind(source(node), "/source")])
    container.check(f"mkdir {FOLDER} && chown 1234 {FOLDER}")
    for delay in (0.0, 0.01, 0.02, 0.03, 0.05, 0.08):
        program = container.start(f"{USER} {BINDFS} -f /source {FOLDER}")
        time.sleep(delay)
        node.driver.restart(signal.SIGKILL)
        container.run(f"kill -KILL {program.pid}")  # it may have ended by itself, without an answer
        program.wait()
        wait_until("nothing is mounted", lambda: not fuse_mounts(container), 2.5 * CHECK_INTERVAL)
        container.check(f"{USER} {BINDFS} /source {FOLDER} && {USER} fusermount3 -u {FOLDER}", 30)


def _unmounts(path: Path) -> bool:
    try:
        mounts.unmount(path)
        return True
    except (AssertionError, OSError):
        return False


def test_the_container_may_be_one_of_a_pod_with_one_pid_namespace(device: Device, node: Node) -> None:
    sleeper: Container = device.container()
    sleeper.wait_until_running()
    container = device.container([Bind(source(node), "/source")], ["--device=/dev/fuse", f"--pid=container:{sleeper.name}"])
    container.check(f"mkdir {FOLDER} && {BINDFS} /source {FOLDER}")
    device.stop(container)
    wait_until("nothing is recorded", lambda: device.records() == [])


def test_a_copy_of_the_mount_namespace_keeps_the_file_system(device: Device, node: Node) -> None:
    container = device.container([Bind(source(node), "/source")], ["--device=/dev/fuse", "--cap-add=SYS_ADMIN"])
    container.check(f"mkdir {FOLDER} && chown 1234 {FOLDER} && {USER} {BINDFS} /source {FOLDER}")
    script = f"echo there; while [ ! -e /tmp/go ]; do sleep 0.02; done; {USER} cat {FOLDER}/file"
    said = len(node.driver.log)
    copy = container.start(f"unshare --mount sh -c '{script}'")
    copy.wait_until_it_says("there")
    container.check(f"fusermount3 -u {FOLDER} && touch /tmp/go")
    copy.wait_until_it_says("content")
    assert copy.wait() == 0
    assert "noticed late" not in node.driver.log[said:]


def test_a_program_that_mounts_again_as_soon_as_it_has_died(device: Device, node: Node) -> None:
    """The driver may not have taken the dead mount off yet. The client opens the mountpoint beneath it all the same."""
    container = device.container()
    container.check(f"mkdir {FOLDER} && chown 1234 {FOLDER}")
    script = (
        "import os, socket, subprocess\\n"
        "for _ in range(40):\\n"
        "    ours, theirs = socket.socketpair()\\n"
        f"    subprocess.run(['fusermount3', '-o', 'rw', '--', '{FOLDER}'], pass_fds=[theirs.fileno()], check=True,\\n"
        "                   env={**os.environ, '_FUSE_COMMFD': str(theirs.fileno())})\\n"
        "    (fd,) = socket.recv_fds(ours, 1, 1)[1]\\n"
        "    os.close(fd)\\n"
    )
    container.check(f'printf "{script}" >/tmp/again.py && {USER} python3 /tmp/again.py', 60)
    wait_until_unmounted(container)
