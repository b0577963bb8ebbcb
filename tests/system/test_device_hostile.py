"""Attack the fuse device as a container does that has root in itself: mountpoints, file descriptors, and who asks."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import mounts
from harness.container import Bind, Container
from harness.device import FOLDER, USER, Device, fuse_mounts, wait_until_unmounted
from harness.events import wait_until, within
from harness.pod import TEST_PROGRAMS, Node

CLIENT = "python3 /programs/device_client.py"
UNCONFINED = ("--device=/dev/fuse", "--security-opt=seccomp=unconfined")  # the container may make namespaces
LESS = "setpriv --bounding-set=-dac_override --inh-caps=-dac_override"  # root, whom mode bits stop
LEAST = "setpriv --bounding-set=-all --inh-caps=-all"
NOT_HERE = "it is not in the mount namespace of the process that asks"
ENDED = "mount failed: the process that asked has ended"


@pytest.fixture
def container(device: Device, node: Node) -> Container:
    """Start a container with a fuse device and the test programs, whose engine lets it make namespaces."""
    container = device.container([TEST_PROGRAMS], UNCONFINED)
    container.check(f"mkdir {FOLDER} && chown 1234 {FOLDER}")
    return container


def ask(container: Container, arguments: str, user: str = "") -> str:
    """Return what the driver answers."""
    answer = container.check(f"{user} {CLIENT} {arguments}").strip()
    wait_until_unmounted(container)
    return answer


def forbidden(path: str, why: str) -> str:
    """Return the words of a refusal."""
    return f"mounting on {path} is forbidden: {why}"


# ---- mountpoints


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/", "it is the root directory"),
        ("/dev", "it is /dev"),
        ("/dev/shm", "it is below /dev"),
        ("/dev/shm/x", "it is below /dev"),
        ("/dev/mqueue", None),
        ("/dev/pts", None),
        ("/proc", None),
        ("/proc/self", None),
        ("/proc/acpi", "it is below /proc"),
        ("/sys", None),
        ("/sys/firmware", "it is below /sys"),
        ("/opt/mfcp", "it is /opt/mfcp"),
        ("/opt/mfcp/socket", "it is below /opt/mfcp"),
        ("/opt/mfcp/fusermount3", "it is below /opt/mfcp"),
        ("/opt/mfcp/bin", "it is below /opt/mfcp"),
    ],
)
def test_places_of_the_engines(container: Container, path: str, why: str | None) -> None:
    container.check(f"mkdir -p /dev/shm/x && test -e {path}")
    answer = ask(container, f"at {path}")
    if why is None:
        assert answer.startswith(("mounting over filesystem type ", "mountpoint "))
    else:
        assert answer == forbidden(path, why)


@pytest.mark.parametrize(
    ("root", "path", "answer"),
    [
        ("/dev/shm", "/x", "it is below /dev"),
        ("/opt/mfcp", "/bin", "it is below /opt/mfcp"),
        ("/r", "/dev/x", "it is below /dev"),
        ("/r", "/proc/x", "it is below /proc"),
        ("/r", "/opt/mfcp", "it is /opt/mfcp"),
        ("/r", "/", "it is the root directory"),
        ("/own", "/x", "it is outside of the root directory of the process that asks"),
        ("/r", "/x", None),
    ],
)
def test_a_chroot_hides_no_place_of_the_engines(device: Device, node: Node, root: str, path: str, answer: str | None) -> None:
    folder = node.folder / "root"
    for name in ("dev/x", "proc/x", "opt/mfcp", "x"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    container = device.container([TEST_PROGRAMS, Bind(folder, "/r")])
    container.check("mkdir -p /dev/shm/x /own/x")
    assert ask(container, f"chroot {root} {path}") == ("mounted" if answer is None else forbidden(path, answer))


_TREE = """
mkdir -p /t/foreign /t/sticky /t/sticky/own /t/group /t/own /t/unsearchable/x /t/nobodys
chmod 755 /t/foreign; chmod 1777 /t/sticky; chown 1234 /t/sticky/own; chgrp 77 /t/group; chmod 775 /t/group
chown 1234 /t/own; chown 1235 /t/nobodys; chmod 700 /t/nobodys
touch /t/file /t/readonly; chown 1234 /t/file /t/readonly; chmod 444 /t/readonly
"""


@pytest.mark.parametrize(
    ("user", "path", "answer"),
    [
        (USER, "/t/foreign", "user has no write access to mountpoint /t/foreign"),
        (USER, "/t/sticky", "mountpoint /t/sticky not owned by user"),
        (USER, "/t/group", "user has no write access to mountpoint /t/group"),
        (USER, "/t/readonly", "failed to open /t/readonly: Permission denied"),
        (USER, "/t/sticky/own", "mounted"),
        (USER, "/t/own", "mounted"),
        (USER, "/t/file", "mounted"),
        ("setpriv --reuid 1234 --regid 1234 --groups 77", "/t/group", "mounted"),
        ("", "/t/nobodys", "mounted"),
        ("", "/t/sticky", "mounted"),
        (
            "setpriv --bounding-set=-dac_override --inh-caps=-dac_override",
            "/t/nobodys",
            "user has no write access to mountpoint /t/nobodys",
        ),
        ("setpriv --bounding-set=-all --inh-caps=-all", "/t/nobodys", "user has no write access to mountpoint /t/nobodys"),
        ("setpriv --bounding-set=-dac_override --inh-caps=-dac_override", "/t/foreign", "mounted"),
    ],
)
def test_directories_of_other_users(container: Container, user: str, path: str, answer: str) -> None:
    container.check(_TREE)
    assert ask(container, f"at {path}", user) == answer


@pytest.mark.parametrize("path", ["/t/nobodys", "/t/foreign", "/etc"])
def test_root_of_a_user_namespace_of_its_own_is_nobody(container: Container, path: str) -> None:
    """`unshare -Ur` gives every capability to everybody, over nothing that was there before."""
    container.check(_TREE)
    answer = ask(container, f"at {path}", f"{USER} unshare -Ur")
    assert answer == f"user has no write access to mountpoint {path}"


def test_a_user_namespace_that_is_entered_in_the_middle_gives_no_rights(container: Container) -> None:
    """Root without CAP_DAC_OVERRIDE has it in a new user namespace; the driver must not take what it had before for what it has there."""
    container.check(_TREE)
    assert container.check(f"{LESS} {CLIENT} become-user-namespace 300 /t/nobodys", 60).strip() == "0"


def test_a_read_only_mount(device: Device, node: Node) -> None:
    """fusermount3 lets no user mount where the user could write nothing, whatever the mode bits say: a ConfigMap has 0777."""
    folder = node.folder / "config"
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "file").touch()
    (folder / "file").chmod(0o666)
    container = device.container([TEST_PROGRAMS, Bind(folder, "/config", read_only=True)])
    assert ask(container, "at /config", USER) == "user has no write access to mountpoint /config"
    assert ask(container, "at /config/file", USER) == "failed to open /config/file: Read-only file system"


def test_a_shared_mount(device: Device, node: Node) -> None:
    folder = node.folder / "shared"
    folder.mkdir()
    mounts.mount("-t", "tmpfs", "mfcp-shared", folder)
    try:
        mounts.mount("--make-shared", folder)
        container = device.container([TEST_PROGRAMS, Bind(folder, "/shared", "rshared"), Bind(folder, "/slave", "rslave")])
        container.check("mkdir /shared/x")
        for path in ("/shared", "/shared/x"):
            assert ask(container, f"at {path}") == forbidden(path, "the mount would appear outside of the container (shared propagation)")
        assert ask(container, "at /slave/x") == "mounted"
        assert not [mount for mount in mounts.below(folder) if mount.is_fuse]
        device.stop(container)
    finally:
        mounts.unmount_all_below(folder)


# ---- file descriptors


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("none", "bad request: it comes without the file descriptor of the mountpoint"),
        ("two", "bad request: it comes with more than one file descriptor, or with one that is not allowed"),
        ("two-named", "bad request: a mount at a fuse device comes with one file descriptor, mountpoint"),
        ("unnamed", "bad request: a mount at a fuse device comes with one file descriptor, mountpoint"),
        ("other-name", "bad request: fds names 'directory'; this socket accepts mountpoint"),
        ("for-reading", "bad request: the mountpoint must be opened with O_PATH"),
        ("pipe", "bad request: the mountpoint must be opened with O_PATH"),
        ("memory", "bad request: the mountpoint must be opened with O_PATH"),
        ("memory-path", forbidden(FOLDER, NOT_HERE)),
        ("namespace", forbidden(FOLDER, NOT_HERE)),
        ("socket", f"mountpoint {FOLDER} is not a directory or a regular file"),
        ("fifo", f"mountpoint {FOLDER} is not a directory or a regular file"),
        ("link", f"mountpoint {FOLDER} is not a directory or a regular file"),
        ("device", f"mountpoint {FOLDER} is not a directory or a regular file"),
    ],
)
def test_fds_that_are_no_mountpoint(container: Container, kind: str, answer: str) -> None:
    assert ask(container, f"fds {kind} {FOLDER}", USER) == answer


@pytest.mark.parametrize("kind", ["lingering", "two-with-lingering", "unnamed-lingering"])
def test_fds_whose_close_blocks(device: Device, node: Node, container: Container, kind: str) -> None:
    other = device.container([TEST_PROGRAMS])
    other.check(f"mkdir {FOLDER}")
    with node.driver.paused():
        client = container.start(f"{CLIENT} fds {kind} {FOLDER}")
        client.wait_until_it_says("sent")
    with within(3, "another container mounts"):
        assert ask(other, f"at {FOLDER}") == "mounted"
    client.wait(30)
    assert client.out.splitlines()[1:] != ["mounted"]


@pytest.mark.parametrize("user", [USER, ""])
@pytest.mark.parametrize("how", ["detached", "inner", "outer"])
def test_fds_of_other_mount_namespaces(container: Container, how: str, user: str) -> None:
    """Among them one of a mount that is attached nowhere: since Linux 6.15 the kernel itself would mount there."""
    assert ask(container, f"{how} {FOLDER}", user) == forbidden(FOLDER, NOT_HERE)


def test_a_removed_directory(container: Container) -> None:
    container.check("mkdir /removed")
    script = "import sys; sys.path.append('/programs'); from device_client import *; fd = path_only('/removed'); os.rmdir('/removed'); "
    assert container.check(f"python3 -c \"{script} say(*ask('/removed', fd))\"").strip() == "mount failed: No such file or directory"
    assert fuse_mounts(container) == []


# ---- who asks


@pytest.mark.parametrize(("how", "answer"), [("dead", ENDED), ("replaced", "mounted")])
def test_a_process_that_ends_or_becomes_another_program(container: Container, how: str, answer: str) -> None:
    assert ask(container, f"{how} {FOLDER}", USER) == answer


def test_a_connection_that_another_container_has_lent(device: Device, node: Node, container: Container) -> None:
    """The mountpoint is looked for where the process is that has connected, so lending gives nobody a mount elsewhere."""
    volume = node.folder / "volume"
    volume.mkdir()
    volume.chmod(0o777)
    first = device.container([TEST_PROGRAMS, Bind(volume, "/volume")])
    second = node.pod().container([TEST_PROGRAMS, Bind(volume, "/volume")])
    first.start(f"{CLIENT} lend /volume/lend").wait_until_it_says("lends")
    second.check(f"mkdir {FOLDER} /volume/x")
    for path in (FOLDER, "/volume/x"):
        assert second.check(f"{CLIENT} lent /volume/lend {path}").strip() == forbidden(path, NOT_HERE)
    assert fuse_mounts(first) == fuse_mounts(second) == []


def test_a_pid_that_belongs_to_another_process_by_now(container: Container) -> None:
    last = Path("/proc/sys/kernel/ns_last_pid")
    container.check("mkfifo /tmp/in")
    client = container.start(f"{USER} sh -c 'exec {CLIENT} reused {FOLDER} </tmp/in'")
    container.check("sh -c 'sleep 60 >/tmp/in &'")
    client.wait_until_it_says("child ")
    inside = client.out.split()[1]
    pid = next(int(numbers[1]) for numbers in _pids() if numbers[-1] == inside and int(numbers[1]) in _processes_of(container))
    container.check("echo >/tmp/in")
    client.wait_until_it_says("dead")

    def is_taken() -> bool:
        last.write_text(str(pid - 1))
        return any(int(numbers[1]) == pid for numbers in _pids())

    wait_until("another process of the container has the pid", is_taken)
    container.check("echo >/tmp/in")
    client.wait_until_it_says(ENDED)


def _pids() -> Iterator[list[str]]:
    """Return the numbers of all processes in their pid namespaces: NSpid, and after it the outermost first."""
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            yield next(line for line in path.read_text(errors="replace").splitlines() if line.startswith("NSpid:")).split()
        except (OSError, StopIteration):
            continue


def _processes_of(container: Container) -> set[int]:
    """Return the pids, as the node sees them, of the processes in a container's pid namespace."""
    wanted, found = os.readlink(f"/proc/{container.pid}/ns/pid"), set()
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{name}/ns/pid") == wanted:
                found.add(int(name))
        except OSError:
            continue
    return found
