"""Test the fuse device: a container's programs mount at mountpoints of their own, as on a workstation with a setuid fusermount3."""

import signal
from pathlib import Path

import pytest
from harness import mounts
from harness.container import Bind, Container
from harness.device import BINDFS, FOLDER, OTHER, SERVES, USER, Device, fuse_mounts, source, wait_until_unmounted
from harness.events import wait_until, within
from harness.pod import Node, Pod


def test_an_ordinary_user_mounts_and_unmounts(device: Device, device_container: Container) -> None:
    device_container.check(f"{USER} {BINDFS} /source {FOLDER}")
    (mount,) = fuse_mounts(device_container)
    assert (mount.path, mount.fstype, mount.source) == (FOLDER, "fuse", "/source")
    assert {"nosuid", "nodev"} <= mount.options
    assert {"user_id=1234", "group_id=1234"} <= mount.super_options
    assert device_container.check(f"{USER} cat {FOLDER}/file") == "content\n"
    assert len(device.records()) == 1
    device_container.check(f"{USER} fusermount3 -u {FOLDER}")
    assert fuse_mounts(device_container) == []
    assert device.records() == []


def test_the_mount_is_seen_nowhere_else(device: Device, device_container: Container) -> None:
    other = device.container()
    other.wait_until_running()
    device_container.check(f"{USER} {BINDFS} /source {FOLDER}")
    assert fuse_mounts(other) == []
    assert not any(mount.is_fuse and mount.source == "/source" for mount in mounts.table())
    device_container.check(f"{USER} fusermount3 -u {FOLDER}")


def test_the_mount_of_a_dead_program_is_taken_away(device_container: Container) -> None:
    program = device_container.start(f"{USER} {BINDFS} -f /source {FOLDER}")
    device_container.wait_for(SERVES)
    with within(2.0, "the mount of a dead program is taken away"):
        program.kill()
        wait_until_unmounted(device_container)
    assert device_container.run(f"{USER} fusermount3 -u {FOLDER}").code == 0  # as after any death: scripts clean up
    assert device_container.run(f"{USER} fusermount3 -u {FOLDER}").code == 1
    device_container.check(f"{USER} {BINDFS} /source {FOLDER} && {USER} fusermount3 -u {FOLDER}")


_CLOSES_AND_UNMOUNTS = """
import os, socket, subprocess
for _ in range(40):
    a, b = socket.socketpair()
    environment = {**os.environ, "_FUSE_COMMFD": str(b.fileno())}
    subprocess.run(["fusermount3", "--", "%(folder)s"], pass_fds=[b.fileno()], env=environment, check=True)
    os.close(socket.recv_fds(a, 1, 1)[1][0])
    subprocess.run(["fusermount3", "-u", "%(folder)s"], check=True)
"""


def test_a_program_that_closes_its_fd_and_then_unmounts(device_container: Container) -> None:
    """libfuse does so at its end. The driver may have the dead mount before, after, or during the unmount."""
    script = _CLOSES_AND_UNMOUNTS % {"folder": FOLDER}
    device_container.check(f"cat >/tmp/script <<'END'\n{script}\nEND\n{USER} python3 /tmp/script")
    assert fuse_mounts(device_container) == []


def test_a_busy_mount_is_unmounted_lazily_alone(device_container: Container) -> None:
    device_container.check(f"{USER} {BINDFS} /source {FOLDER}")
    reader = device_container.start(f"{USER} sh -c 'exec 3<{FOLDER}/file; echo open; while [ ! -e /tmp/go ]; do sleep 0.02; done; cat <&3'")
    reader.wait_until_it_says("open")
    refused = device_container.run(f"{USER} fusermount3 -u {FOLDER}")
    assert (refused.code, refused.err) == (1, f"fusermount3: failed to unmount {FOLDER}: Device or resource busy\n")
    assert device_container.run(f"{USER} fusermount3 -u -q {FOLDER}").err == ""
    device_container.check(f"{USER} fusermount3 -u -z {FOLDER}")
    assert fuse_mounts(device_container) == []
    device_container.check("touch /tmp/go")
    reader.wait_until_it_says("content")
    assert reader.wait() == 0


def test_who_may_unmount(device_container: Container) -> None:
    device_container.check(f"{USER} {BINDFS} /source {FOLDER}")
    refused = device_container.run(f"{OTHER} fusermount3 -u {FOLDER}")
    assert (refused.code, refused.err) == (1, f"fusermount3: entry for {FOLDER} not found in /etc/mtab\n")
    device_container.check(f"fusermount3 -u {FOLDER}")


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("/dev/shm", "mounting on /dev/shm is forbidden: it is below /dev"),
        ("/proc", "mounting over filesystem type 0x00009fa0 is forbidden"),
        ("/sys", "mounting over filesystem type 0x62656572 is forbidden"),
        ("/", "mounting on / is forbidden: it is the root directory"),
        ("/opt/mfcp", "mounting on /opt/mfcp is forbidden: it is /opt/mfcp"),
        ("/dev/null", "mountpoint /dev/null is not a directory or a regular file"),
        ("/missing", "failed to access mountpoint /missing: No such file or directory"),
    ],
)
def test_mountpoints_that_nobody_may_have(device_container: Container, place: str, words: str) -> None:
    assert _ask(device_container, place, "") == (1, f"fusermount3: {words}\n")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        ("mkdir /x && chmod 755 /x", "user has no write access to mountpoint /x"),
        ("mkdir /x && chmod 1777 /x", "mountpoint /x not owned by user"),
        ("touch /x && chmod 644 /x", "failed to open /x: Permission denied"),
        ("mkdir /x && chown 1234 /x && chmod 555 /x", "user has no write access to mountpoint /x"),
        ("mkdir /x && chgrp 77 /x && chmod 775 /x", "user has no write access to mountpoint /x"),
        ("mkfifo /x", "mountpoint /x is not a directory or a regular file"),
        ("ln -s /m /x", "mountpoint /x is not a directory or a regular file"),
    ],
)
def test_mountpoints_that_are_not_the_users(device_container: Container, make: str, words: str) -> None:
    device_container.check(make)
    assert _ask(device_container, "/x", USER) == (1, f"fusermount3: {words}\n")
    assert fuse_mounts(device_container) == []


def test_a_file_is_a_mountpoint(device_container: Container) -> None:
    device_container.check("touch /file && chown 1234 /file")
    assert _ask(device_container, "/file", USER) == (0, "")


def _ask(container: Container, place: str, user: str) -> tuple[int, str]:
    """Ask for a mount at a place as a FUSE library does, and let it go at once."""
    script = (
        "import os, socket, subprocess; a, b = socket.socketpair(); "
        f"p = subprocess.run(['fusermount3', '-o', 'rw', '--', '{place}'], pass_fds=[b.fileno()], "
        "env={**os.environ, '_FUSE_COMMFD': str(b.fileno())}); os._exit(p.returncode)"
    )
    done = container.run(f'{user} python3 -c "{script}"')
    return done.code, done.err


def test_mounts_are_limited(module_node: Node, device: Device, device_container: Container) -> None:
    module_node.driver.options = (*module_node.driver.options, "--fuse-mounts-max", "3")
    module_node.driver.restart()
    try:
        for number in range(3):
            device_container.check(f"mkdir /n{number} && {BINDFS} /source /n{number}")
        device_container.check("mkdir /n3")
        assert _ask(device_container, "/n3", "") == (
            1,
            "fusermount3: too many FUSE filesystems mounted; this fuse device allows 3 (--fuse-mounts-max)\n",
        )
        for number in range(3):
            device_container.check(f"fusermount3 -u /n{number}")
    finally:
        module_node.driver.options = module_node.driver.options[:-2]
        module_node.driver.restart()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_mounts_survive_the_driver(module_node: Node, device_container: Container, number: signal.Signals) -> None:
    program = device_container.start(f"{USER} {BINDFS} -f /source {FOLDER}")
    device_container.wait_for(SERVES)
    module_node.driver.restart(number)
    assert device_container.check(f"{USER} cat {FOLDER}/file") == "content\n"
    program.kill()
    wait_until_unmounted(device_container)
    device_container.check(f"{USER} {BINDFS} /source {FOLDER}")
    module_node.driver.restart(number)
    device_container.check(f"{USER} fusermount3 -u {FOLDER}")
    wait_until_unmounted(device_container)


def test_a_program_that_dies_while_no_driver_runs(module_node: Node, device_container: Container) -> None:
    program = device_container.start(f"{USER} {BINDFS} -f /source {FOLDER}")
    device_container.wait_for(SERVES)
    module_node.driver.stop(signal.SIGKILL)
    program.kill()
    program.wait()
    module_node.driver.start()
    wait_until_unmounted(device_container)


def test_a_container_that_ends_leaves_nothing(device: Device, device_container: Container) -> None:
    device_container.check(f"{USER} {BINDFS} /source {FOLDER}")
    device.stop(device_container)
    wait_until("the mount is forgotten", lambda: device.records() == [])


def test_any_bytes_in_the_name(device_container: Container) -> None:
    device_container.check(f"cd {FOLDER} && mkdir \"$(printf 'a b\\tc\\\\d\\345\\nx')\" && chown 1234 *")
    device_container.check(f"cd {FOLDER} && {USER} {BINDFS} /source a* && {USER} fusermount3 -u a*")
    assert fuse_mounts(device_container) == []


def test_nested_mounts(device_container: Container) -> None:
    device_container.check(f"mkdir -p /own/inner && chown -R 1234 /own && {USER} {BINDFS} /own {FOLDER}")
    device_container.check(f"{USER} {BINDFS} /source {FOLDER}/inner")
    assert len(fuse_mounts(device_container)) == 2
    assert device_container.run(f"{USER} fusermount3 -u {FOLDER}").code == 1
    device_container.check(f"{USER} fusermount3 -u {FOLDER}/inner && {USER} fusermount3 -u {FOLDER}")
    assert fuse_mounts(device_container) == []


def test_the_overlay_of_a_container_is_free_at_once(device: Device, node: Node, tmp_path: Path) -> None:
    """Nothing of the driver's keeps what the container has used: the file system that it was on can be unmounted at once."""
    disk = node.folder / "disk"
    disk.mkdir()
    mounts.mount("-t", "tmpfs", "mfcp-disk", disk)
    try:
        (disk / "m").mkdir()
        container = device.container([Bind(source(node), "/source"), Bind(disk, "/disk")])
        container.check(f"{BINDFS} /source /disk/m")
        device.stop(container)
        wait_until("the disk is free", lambda: _unmounts(disk))
    finally:
        mounts.unmount_all_below(disk)


def _unmounts(path: Path) -> bool:
    try:
        mounts.unmount(path)
        return True
    except (AssertionError, OSError):
        return False


def test_a_driver_whose_folder_is_no_folder_serves_volumes(module_node: Node, pod: Pod) -> None:
    """It says once what is wrong, and that containers get no fuse device."""
    driver = module_node.driver
    file = module_node.folder / "file"
    file.touch()
    whole, said = driver.options, len(driver.log)
    driver.options = (*whole, "--fuse-dir", str(file))
    try:
        driver.restart()
        wait_until("it is said", lambda: "no container gets a fuse device: " in driver.log[said:])
        pod.publish().wait_waiting()
    finally:
        driver.options = whole
        driver.restart()
