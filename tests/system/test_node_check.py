"""Test what `check`, Probe and the driver's start report about a node that lacks something; each lack is a real one."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from harness import mounts
from harness.container import Bind, Engine
from harness.driver import DEFAULT, Driver, command
from harness.events import wait_until
from harness.kubelet import refused
from harness.programs import REPOSITORY, SOURCES

from driver.api.rpc import csi_pb2, csi_pb2_grpc

# These calls are newer than Linux 5.0, so their numbers are the same on every architecture.
OPEN_TREE, OPENAT2, MOUNT_SETATTR = 428, 437, 442
CHECKS = ["kernel", "file system", "capabilities", "system calls", "FUSE device", "propagation", "mounts"]


def without_calls(*numbers: int) -> tuple[str, ...]:
    return (sys.executable, str(SOURCES / "without_calls.py"), ",".join(map(str, numbers)))


@pytest.fixture
def place(folder: Path) -> Iterator[Path]:
    """Make a folder of the test's own, with a pods folder as on a node."""
    path = Path(tempfile.mkdtemp(prefix="check-", dir=folder))
    pods = path / "pods"
    pods.mkdir()
    mounts.mount("--bind", pods, pods)
    mounts.mount("--make-shared", pods)
    yield path
    mounts.unmount_all_below(path)


def check(place: Path, *wrapper: str) -> tuple[int, dict[str, str], list[str]]:
    """Return the exit code, what each check reports ("" where it is ok), and the notes."""
    before = sorted(path for path, _, _ in os.walk(place))
    whole = [*wrapper, *command(), "--pods-dir", place / "pods", "--run-dir", place / "run" / "mfcp", "check"]
    done = subprocess.run(whole, cwd=REPOSITORY, capture_output=True, text=True, timeout=20)
    assert done.stderr == ""
    assert sorted(path for path, _, _ in os.walk(place)) == before
    found, notes = {}, []
    for line in done.stdout.splitlines():
        word, _, rest = line.partition(" ")
        name, _, problem = rest.strip().partition(": ")
        assert word in ("ok", "FAILED", "note")
        assert (word == "FAILED") == bool(problem) or word == "note"
        if word == "note":
            notes.append(rest.strip())
        else:
            found[name] = problem
    assert list(found) == (["kernel"] if found["kernel"] else CHECKS)  # nothing else is checked of an old kernel
    return done.returncode, found, notes


def failed(found: dict[str, str]) -> set[str]:
    return {name for name, problem in found.items() if problem}


def test_a_node_that_lacks_nothing(place: Path) -> None:
    code, found, notes = check(place)
    assert (code, failed(found)) == (0, set())
    assert any(note.startswith("synchronous INIT: ") for note in notes)


@pytest.mark.parametrize("options", ["rw", "ro"])
def test_without_a_run_dir_it_leaves_nothing_behind(place: Path, options: str) -> None:
    """It checks the place where a driver would keep its files, and does not make that folder."""
    script = 'mount -t tmpfs -o "$1" run /run; shift; "$@"; echo "left: $(ls -A /run)"'
    arguments = ("--endpoint", f"unix:{place}/csi.sock", "--pods-dir", str(place / "pods"), "check")
    whole = ["unshare", "--mount", "sh", "-c", script, "sh", options, *command(), *arguments]
    done = subprocess.run(whole, cwd=REPOSITORY, capture_output=True, text=True, timeout=20)
    assert done.stderr == ""
    assert "FAILED  FUSE device" not in done.stdout
    assert done.stdout.endswith("left: \n")
    assert os.listdir(place) == ["pods"]


def test_it_says_the_same_beside_a_running_driver(place: Path) -> None:
    driver = Driver(place)
    driver.run_dir, driver.fuse_dir = place / "run" / "mfcp", place.with_name(f"{place.name}-fuse")
    driver.start()
    try:
        nodes = os.listdir(driver.run_dir / "dev")
        assert check(place)[0] == 0
        assert os.listdir(driver.run_dir / "dev") == nodes
    finally:
        driver.stop()


def test_a_kernel_that_is_too_old(place: Path) -> None:
    code, found, _ = check(place, "setarch", "--uname-2.6")
    assert (code, failed(found)) == (1, {"kernel"})
    assert re.fullmatch(r"the kernel \(2\.6\.\S+\) is older than 5\.12 .*: use a newer one", found["kernel"])


def test_a_pods_folder_that_is_not_shared(place: Path) -> None:
    mounts.mount("--make-private", place / "pods")
    code, found, _ = check(place)
    assert (code, failed(found)) == (1, {"propagation"})
    assert f"mount --make-rshared {place}/pods" in found["propagation"]
    assert "Bidirectional" in found["propagation"]


@pytest.mark.parametrize("name", ["sys_admin", "mknod", "fowner"])
def test_a_capability_that_is_missing(place: Path, name: str) -> None:
    code, found, _ = check(place, "setpriv", f"--bounding-set=-{name}", "--inh-caps=-all")
    assert code == 1
    assert f"CAP_{name.upper()} missing" in found["capabilities"]
    assert "privileged: true" in found["capabilities"]
    if name == "mknod":
        assert "make and open a FUSE device (c 10:229)" in found["FUSE device"]
        assert "Operation not permitted" in found["FUSE device"]


def test_somebody_who_is_not_root(place: Path) -> None:
    # With this capability it can read the driver's program, which may lie in a folder of root's, such as /root.
    reads = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    code, found, _ = check(place, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *reads)
    assert code == 1
    assert failed(found) >= {"capabilities", "FUSE device"}


def test_a_run_dir_without_devices(place: Path) -> None:
    """The driver removes nodev from its own copy of the mount. It cannot do that with a read-only mount."""
    run = place / "run"
    run.mkdir()
    mounts.mount("-t", "tmpfs", "-o", "nodev", "run", run)
    assert check(place)[0] == 0
    mounts.mount("-o", "remount,ro", run)
    code, found, _ = check(place)
    assert (code, failed(found)) == (1, {"FUSE device"})
    assert "Read-only file system" in found["FUSE device"]
    assert str(run) in found["FUSE device"]


CAPABILITIES = "--cap-add=SYS_ADMIN,MKNOD,DAC_OVERRIDE,FOWNER"


@pytest.mark.parametrize(
    ("options", "lacks"),
    [
        ([], {"capabilities", "FUSE device"}),
        ([CAPABILITIES], {"FUSE device"}),  # the device policy of its cgroup forbids it
        ([CAPABILITIES, "--device=/dev/fuse"], set()),
        (["--privileged"], set()),
    ],
    ids=["as any other", "with the capabilities", "with the device too", "privileged"],
)
def test_a_container(engine: Engine, options: list[str], lacks: set[str]) -> None:
    container = engine.start([Bind(DEFAULT.parent, "/driver", read_only=True)], options=options)
    try:
        result = container.run(f"mkdir -p /run/mfcp && /driver/{DEFAULT.name} --pods-dir /none check")
        found = dict(line.partition(" ")[2].strip().partition(": ")[::2] for line in result.out.splitlines())
        assert {name for name in CHECKS if found[name]} == lacks, result.out
        assert result.code == (1 if lacks else 0)
        if lacks == {"FUSE device"}:
            assert "cannot make and open a FUSE device (c 10:229)" in found["FUSE device"]
            assert "--device /dev/fuse" in found["FUSE device"]
        # Where there is no device to check, nothing is reported about it.
        assert ("synchronous INIT" in found) is (not lacks)
    finally:
        engine.stop([container])


@pytest.mark.parametrize(
    ("number", "name", "others"),
    [(OPEN_TREE, "open_tree", {"FUSE device"}), (MOUNT_SETATTR, "mount_setattr", {"FUSE device"}), (OPENAT2, "openat2", set())],
)
def test_a_system_call_that_a_seccomp_filter_keeps_away(place: Path, number: int, name: str, others: set[str]) -> None:
    code, found, _ = check(place, *without_calls(number))
    assert (code, failed(found)) == (1, {"system calls"} | others)
    assert f"{name} (Function not implemented)" in found["system calls"]
    assert "seccomp" in found["system calls"]


@pytest.mark.parametrize(("number", "name"), [(OPEN_TREE, "open_tree"), (MOUNT_SETATTR, "mount_setattr")])
def test_a_driver_that_cannot_start_says_why_in_one_line(place: Path, number: int, name: str) -> None:
    whole = [*without_calls(number), *command(), "--endpoint", f"unix:{place}/csi.sock", "--nodeid", "n"]
    whole += ["--pods-dir", str(place / "pods"), "--run-dir", str(place / "run")]
    done = subprocess.run(whole, cwd=REPOSITORY, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: cannot prepare")
    assert f"{name} (Function not implemented)" in line
    assert "seccomp" in line
    assert not (place / "csi.sock").exists()


PID_NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child")
INIT = ("sh", "-c", '"$@"; exit $?', "init")


@pytest.mark.parametrize(
    ("wrapper", "warns"),
    [((), False), (PID_NAMESPACE, True), ((*PID_NAMESPACE, *INIT), True)],
    ids=["the node's pids", "its own namespace", "its own namespace, with an init process"],
)
def test_a_driver_that_does_not_see_the_nodes_pids_says_so(place: Path, wrapper: tuple[str, ...], warns: bool) -> None:
    driver = Driver(place)
    driver.wrapper = wrapper
    driver.start()
    try:
        assert ("hostPID: true" in driver.log) is warns
    finally:
        driver.end()
    _, _, notes = check(place, *wrapper)
    (note,) = [note for note in notes if note.startswith("pids of the node: ")]
    assert ("hostPID: true" in note) is warns


@contextmanager
def publishing(driver: Driver) -> Iterator[tuple[Callable[[], object], Path]]:
    """Return a call that publishes a pod's volume, and its target."""
    pod = driver.pods_dir / "uid/volumes"
    (pod / "kubernetes.io~empty-dir/sockets").mkdir(parents=True)
    target = pod / "kubernetes.io~csi/data/mount"
    target.parent.mkdir(parents=True)
    request = csi_pb2.NodePublishVolumeRequest(volume_id="csi-1", target_path=str(target))
    request.volume_capability.mount.SetInParent()
    request.volume_context.update({"fdPassingEmptyDirName": "sockets", "fdPassingSocketName": "s"})
    with grpc.insecure_channel(f"unix:{driver.csi_socket}") as channel:
        node = csi_pb2_grpc.NodeStub(channel)
        yield lambda: node.NodePublishVolume(request, timeout=10), target


def test_a_driver_without_openat2_is_not_ready_and_refuses_to_publish(place: Path) -> None:
    """It starts, but its first publish would fail, and Probe reports that before."""
    driver = Driver(place)
    driver.wrapper = without_calls(OPENAT2)
    with pytest.raises(AssertionError, match=r"not ready: system calls are refused: openat2 \(Function not implemented\)"):
        driver.start()
    try:
        wait_until("the admin socket is there", driver.admin_socket.exists)
        for command in ("status", "ready"):
            done = driver.cli(command)
            assert done.returncode == 1
            assert "not ready: system calls are refused: openat2" in done.stdout
        assert "not ready: system calls are refused: openat2" in driver.log
        with publishing(driver) as (publish, target), refused(grpc.StatusCode.INTERNAL) as refusal:
            publish()
        assert "Function not implemented" in refusal.text
        assert not target.exists()
    finally:
        driver.end()


def test_a_driver_whose_mounts_no_container_would_see_refuses_to_publish(place: Path) -> None:
    driver = Driver(place)
    mounts.mount("--make-private", driver.pods_dir)
    with pytest.raises(AssertionError, match=r"not ready: .* is not shared"):
        driver.start()
    try:
        wait_until("the admin socket is there", driver.admin_socket.exists)
        with publishing(driver) as (publish, target):
            with refused(grpc.StatusCode.FAILED_PRECONDITION) as refusal:
                publish()
            assert f"mount --make-rshared {driver.pods_dir}" in refusal.text
            assert "mountPropagation: Bidirectional" in refusal.text
            assert not target.exists()
            # The remedy in the text helps, without a restart of the driver.
            mounts.mount("--make-rshared", driver.pods_dir)
            publish()
            assert target.is_mount()
    finally:
        driver.end()
