"""Attack the processes of the driver that enter containers, and what they leave there: tracing, remounting, unmounting, floods."""

import re
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import mounts
from harness.container import Bind, Container
from harness.device import BINDFS, FOLDER, OTHER, USER, Device, fuse_mounts, source, wait_until_unmounted
from harness.events import SLOWER, wait_until, within
from harness.pod import TEST_PROGRAMS, Node
from harness.programs import path_of
from harness.table import is_everything_run

CLIENT = "python3 /programs/device_client.py"
_CAP_SYS_PTRACE = 19

# What a process may call after it has entered a container: with fds that it holds, and with memory of its own.
_ALLOWED = re.compile(
    r"(read|write|close|fstat|lseek|fcntl|ioctl|flock|getsockopt|getsockname|getpeername|sendmsg|recvmsg|fchdir)\(\d+( <|[,)])"
    r'|openat\(\d+, "self/mountinfo", O_RDONLY'  # in the node's /proc
    r'|openat\(\d+, "\d+", O_RDWR'  # the device node of the mount once more, by the fd of it
    r'|(statx|newfstatat)\(\d+, "(self/ns/\w+)?", '
    r'|readlinkat\(\d+, "\d+", '
    r'|umount2\("\d+", '
    r'|move_mount\(\d+, "", \d+, "", '
    r"|(fsopen|fsconfig|fsmount)\("
    r"|mmap\(.*MAP_ANONYMOUS"
    r"|(munmap|mremap|brk|madvise|prctl|rt_sigprocmask|rt_sigaction|getpid|gettid|futex|exit_group|setresuid|setresgid)\("
    r"|<\.\.\.|---|\+\+\+"  # the second half of a call, signals, ends
)
# What is_gone() and reopen() of attached.py call besides: they walk to the mountpoint, and follow no link.
_WALK = re.compile(
    r'openat\(AT_FDCWD, "/", O_RDONLY\|[A-Z_|]*O_PATH'
    r'|openat2\(\d+, "/[^"]*", \{flags=[A-Z_|]*O_NOFOLLOW[A-Z_|]*O_PATH, resolve=RESOLVE_NO_SYMLINKS\|RESOLVE_IN_ROOT\}'
)


@pytest.fixture
def container(device: Device, node: Node) -> Container:
    """Start a container with a fuse device and the test programs, whose engine lets it make namespaces."""
    container = device.container(
        [TEST_PROGRAMS, Bind(source(node), "/source")], ["--device=/dev/fuse", "--security-opt=seccomp=unconfined"]
    )
    container.check(f"mkdir {FOLDER} && chown 1234 {FOLDER}")
    return container


def entering(node: Node) -> int:
    """Return the pid of the driver's process that forks those which enter containers."""
    for pid in node.driver.own_processes() - {node.driver.pid}:
        status = Path(f"/proc/{pid}/status").read_text()
        effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
        if int(effective.split()[1], 16) >> _CAP_SYS_PTRACE & 1:
            return pid
    raise AssertionError("no process of the driver may enter containers")


@contextmanager
def traced(node: Node, file: Path) -> Iterator[None]:
    """Write the system calls of the processes that enter containers to a file."""
    tracer = subprocess.Popen(
        [path_of("strace"), "-f", "-q", "-s", "4096", "-o", file, "-p", str(entering(node))],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until("strace has begun", lambda: "TracerPid:\t0" not in Path(f"/proc/{entering(node)}/status").read_text())
        yield
    finally:
        tracer.terminate()
        tracer.wait()


def after_entering(file: Path) -> list[list[str]]:
    """Return the calls of each process after the last setns(2) of a mount namespace."""
    calls: dict[str, list[str]] = defaultdict(list)
    for line in file.read_text(errors="replace").splitlines():
        pid, _, call = line.partition(" ")
        calls[pid].append(call.strip())
    found = []
    for each in calls.values():
        entered = [
            number for number, call in enumerate(each) if call.startswith("setns(") and "CLONE_NEWNS" in call and call.endswith("= 0")
        ]
        if entered:
            found.append(each[entered[-1] + 1 :])
    return found


@pytest.mark.parametrize("has_user_namespace", [False, True])
def test_what_a_process_calls_in_a_container(
    device: Device, node: Node, container: Container, tmp_path: Path, has_user_namespace: bool
) -> None:
    """It opens nothing by a path of the container's but what attached.py documents, and imports nothing: the container could be there."""
    if has_user_namespace:
        container = device.container_with_user_namespace([Bind(source(node), "/source")])
    container.check(f"{USER} {BINDFS} /source {FOLDER} && {USER} fusermount3 -u {FOLDER}")  # one process may be there already
    with traced(node, tmp_path / "calls"):
        container.check(f"{USER} {BINDFS} /source {FOLDER} && {USER} fusermount3 -u {FOLDER}")
        container.check(f"{USER} {BINDFS} /source {FOLDER}")
        container.check("pkill -KILL bindfs")
        wait_until_unmounted(container)
        assert container.run(f"{OTHER} {BINDFS} /source {FOLDER}").code != 0
        time.sleep(0.5)
    processes = after_entering(tmp_path / "calls")
    assert len(processes) >= 3  # a spare process may have been there before strace
    assert any("move_mount(" in call for calls in processes for call in calls)
    assert any("umount2(" in call for calls in processes for call in calls)
    for calls in processes:
        is_walking = any(call.startswith("openat2(") for call in calls)
        assert not (is_walking and any(call.startswith("move_mount(") for call in calls))
        assert [call for call in calls if not _ALLOWED.match(call) and not (is_walking and _WALK.match(call))] == []


def test_root_of_the_containers_user_namespace_reaches_no_process_of_the_drivers(device: Device, node: Node) -> None:
    """It sees all pids of the node here, and the process enters its user namespace, where it has every capability."""
    container = device.container_with_user_namespace([TEST_PROGRAMS, Bind(source(node), "/source")], ["--pid=host"])
    spy = container.start("python3 /programs/spy.py")
    spy.wait_until_it_says("spies")
    for _ in range(100 if is_everything_run() else 15):
        container.run(f"{USER} {BINDFS} /source {FOLDER} && {USER} fusermount3 -u {FOLDER}")
    spy.kill("TERM")
    spy.wait()
    assert "seen" in spy.out  # it has found such processes
    assert {line.split()[1] for line in spy.out.splitlines() if line.startswith("reached")} == set()
    # With the node's pids it can kill those processes, and so leave dead mounts: in its own container alone.
    container.run("pkill -KILL bindfs")
    wait_until("nothing is recorded", lambda: device.records() == [])


@pytest.mark.parametrize("prefix", ["", "unshare -Urm"])
def test_nosuid_and_nodev_stay(container: Container, prefix: str) -> None:
    container.check(f"{BINDFS} /source {FOLDER}")
    for options in ("remount,bind,suid,dev", "remount,bind,suid", "remount,bind,dev"):
        assert container.run(f"{prefix} mount -o {options} none {FOLDER}").code != 0
    (mount,) = fuse_mounts(container)
    assert {"nosuid", "nodev"} <= mount.options
    container.check(f"fusermount3 -u {FOLDER}")


def test_in_a_user_namespace_of_its_own_root_may_remount_and_gains_no_device(device: Device, node: Node) -> None:
    options = ["--cap-add=SYS_ADMIN", "--security-opt=seccomp=unconfined"]
    container = device.container_with_user_namespace([TEST_PROGRAMS], options)
    container.check("mkdir -p /m/d && chmod 777 /m/d")
    program = container.start("python3 /programs/hostile_fuse.py device-file /m/d")
    program.wait_until_it_says("serves")
    container.check("mount -o remount,bind,suid,dev none /m/d")
    refused = container.run("cat /m/d/hello")
    assert refused.code != 0 and "Permission denied" in refused.err, refused
    program.kill()
    wait_until_unmounted(container)


def test_what_is_not_ours_is_not_unmounted(device: Device, container: Container) -> None:
    before = mounts.parse(container.check("cat /proc/self/mountinfo"))
    for path in ("/proc/acpi", "/sys/firmware", "/dev/shm", "/dev/pts", "/source", "/etc/hosts", "/opt/mfcp", "/proc", "/"):
        assert container.run(f"fusermount3 -u -z {path}").code != 0
        for number in {mount.device for mount in before}:
            assert container.check(f"{CLIENT} unmount {path} {number}").startswith("not mounted: ")
    assert mounts.parse(container.check("cat /proc/self/mountinfo")) == before


def test_the_mount_of_another_container_is_not_unmounted(device: Device, container: Container) -> None:
    other = device.container([TEST_PROGRAMS])
    container.check(f"{BINDFS} /source {FOLDER}")
    (mount,) = fuse_mounts(container)
    for number in (mount.device, "null"):
        assert other.check(f"{CLIENT} unmount {FOLDER} {number}").strip() == "Invalid argument"
    assert fuse_mounts(container) == [mount]
    container.check(f"fusermount3 -u {FOLDER}")


def test_what_covers_ours_stays(device: Device, node: Node) -> None:
    container = device.container_with_user_namespace(
        [TEST_PROGRAMS, Bind(source(node), "/source")], ["--cap-add=SYS_ADMIN", "--security-opt=seccomp=unconfined"]
    )
    container.check(f"{USER} {BINDFS} /source {FOLDER}")
    (mount,) = fuse_mounts(container)
    container.check(f"mount -t tmpfs covers {FOLDER}")
    assert container.check(f"{USER} {CLIENT} unmount {FOLDER} {mount.device}").strip() == "Device or resource busy"
    container.check("pkill -KILL bindfs")
    time.sleep(1)
    assert "covers" in container.check("cat /proc/self/mountinfo")
    container.check(f"umount {FOLDER}")
    wait_until_unmounted(container)


@pytest.mark.parametrize("times", [200, pytest.param(10_000, marks=pytest.mark.long)])
def test_many_mounts_and_unmounts(device: Device, node: Node, container: Container, times: int) -> None:
    container.check(f"{CLIENT} flood 1 {FOLDER}")
    wait_until_unmounted(container)
    memory = node.driver.memory()
    answer = container.check(f"{USER} {CLIENT} many {times} {FOLDER}", 30 + times / 10)
    assert answer.split() == [str(times)]
    wait_until("nothing is recorded", lambda: device.records() == [])
    assert node.driver.memory() - memory < 4 << 20
    wait_until_unmounted(container)


def test_mounts_on_top_of_one_another_are_taken_off_from_the_top(device: Device, container: Container) -> None:
    """Those beneath the last one cannot be taken off before it; they do not wait for the next look at them then."""
    answers = container.check(f"{CLIENT} stack 12 {FOLDER}").split()
    assert answers == ["mounted"] * 12
    with within(5, "all are taken off"):
        wait_until_unmounted(container)
    wait_until("nothing is recorded", lambda: device.records() == [])


@pytest.fixture
def quiet_name(module_node: Node, device_name: str) -> str:
    """Give the node another fuse device."""
    name = f"quiet-{device_name}"
    (module_node.driver.fuse_dir / "sockets" / name).mkdir()
    module_node.driver.restart()
    return name


def test_a_flood_at_one_device_leaves_the_others_their_time(quiet_name: str, node: Node, container: Container) -> None:
    """Another device's mounts take their time while programs mount and leave, and hold connections that say nothing, all the time."""
    quiet = Device(node, node.pod(), quiet_name)
    other = quiet.container([TEST_PROGRAMS])
    other.check(f"mkdir {FOLDER}")
    alone = _seconds(other)
    holder = container.start(f"{CLIENT} hold 60 {FOLDER}")
    holder.wait_until_it_says("holds")
    floods = [container.start(f"{CLIENT} flood 8 {FOLDER}") for _ in range(2)]
    attacked = _seconds(other)
    print(f"a mount: {alone * 1000:.1f} ms alone, {attacked * 1000:.1f} ms beside a flood")
    assert attacked < 10 * max(alone, 0.01) * SLOWER
    for flood in floods:
        flood.wait(60)
    holder.kill()
    wait_until("nothing is mounted", lambda: not fuse_mounts(container), 30)


def _seconds(container: Container) -> float:
    """Return the seconds of a mount, of many the one in the middle."""
    return float(container.check(f"{CLIENT} latency 40 {FOLDER}", 60))
