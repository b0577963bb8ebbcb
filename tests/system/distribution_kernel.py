"""Test what depends on the kernel. tests/kernels runs this module in guests; tests/run does not collect it.

Each test records what it saw under the name of a row of the table in docs/operations.md.
"""

import ctypes
import fcntl
import json
import os
import signal
import subprocess
from collections.abc import Callable
from errno import EINVAL, ENOTTY, EPERM, errorcode
from pathlib import Path

import pytest
from harness.container import Bind, Container
from harness.driver import command
from harness.pod import STARTER, TEST_PROGRAMS, Node, Pod
from harness.programs import REPOSITORY, static_fuse_program
from test_node_check import check, failed, place
from test_recovery import MEMORY, oom_kills_of_the_node
from test_sync_init import Setup
from test_user_namespaces import idmapped, user_namespace

from driver.linux import syscalls
from driver.mounts.device import DeviceFolder

__all__ = ["place", "user_namespace"]  # fixtures

_SYNC_INIT = 0xE503  # FUSE_DEV_IOC_SYNC_INIT, <linux/fuse.h>
_PROFILE = Path("/usr/share/containers/seccomp.json")  # Podman's own

Record = Callable[[str, object], None]

LIBFUSE_GIVES_UP = "fuse: mount failed: Permission denied\n"


def error_of(call: Callable[[], object]) -> int:
    """Return the errno with which a call fails, and 0 if it succeeds."""
    try:
        call()
    except OSError as error:
        assert error.errno
        return error.errno
    return 0


def there_or_missing(errno: int) -> str:
    return f"missing ({errorcode[errno]})" if errno else "there"


def test_each_call_is_there_or_missing(place: Path, record_property: Record) -> None:
    """The calls are made as the driver makes them."""
    refused = syscalls.refused_calls()
    for name in ("open_tree", "openat2", "mount_setattr"):
        record_property(f"`{name}`", there_or_missing(refused.pop(name, 0)))
    assert refused == {}
    folder = os.open(place, os.O_PATH)
    cached = error_of(lambda: os.close(syscalls.openat2(folder, ".", os.O_PATH, resolve=syscalls.RESOLVE_CACHED)))
    record_property("`openat2` with RESOLVE_CACHED", there_or_missing(cached))
    buffer = (ctypes.c_uint32 * 64)()  # struct statx; stx_mask is its first word
    assert ctypes.CDLL(None).statx(folder, b"", syscalls.AT_EMPTY_PATH, syscalls.STATX_MNT_ID_UNIQUE, buffer) == 0
    is_unique = buffer[0] & syscalls.STATX_MNT_ID_UNIQUE
    record_property("`statx` with STATX_MNT_ID_UNIQUE", "there" if is_unique else "missing (the bit is not set)")
    os.close(folder)


def test_a_kernel_below_the_floor_is_refused(place: Path, record_property: Record) -> None:
    code, found, _ = check(place)
    release = os.uname().release
    assert (code, failed(found)) == (1, {"kernel"})
    assert found["kernel"] == f"the kernel ({release}) is older than 5.12 and does not have mount_setattr(2): use a newer one"
    whole = [*command(), "--endpoint", f"unix:{place}/csi.sock", "--nodeid", "n"]
    whole += ["--pods-dir", str(place / "pods"), "--run-dir", str(place / "run")]
    done = subprocess.run(whole, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    assert f"the kernel ({release}) is older than 5.12" in line
    assert not (place / "csi.sock").exists()
    record_property("the driver", "It does not start, and prints that the kernel is older than 5.12. `check` says the same.")


def test_the_driver_runs(node: Node, record_property: Record) -> None:
    done = node.driver.cli("status")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].endswith(": ready")
    record_property("the driver", "It is ready, and the smoke set passes.")


def test_synchronous_init_is_refused_and_the_program_is_mounted(folder: Path, pod: Pod, record_property: Record) -> None:
    devices_folder = folder / "devices"
    devices_folder.mkdir()
    devices = DeviceFolder(str(devices_folder))
    opened = devices.open()
    assert error_of(lambda: fcntl.ioctl(opened.fd, _SYNC_INIT)) == ENOTTY
    devices.discard(opened)
    devices.close()
    devices_folder.rmdir()
    setup = Setup(pod)
    program = setup.start("serves")
    setup.serves(program)
    assert program.out == "has the fd\nno synchronous INIT: Inappropriate ioctl for device\n0 0\nhas INIT\n"
    record_property("synchronous INIT", "missing (ENOTTY): a program that asks for it is mounted without it")


def test_an_idmapped_copy_of_a_volume_that_waits(place: Path, pod: Pod, user_namespace: int, record_property: Record) -> None:
    """The placeholder is a tmpfs. A container runtime makes such a copy for a pod with hostUsers: false."""
    errno = error_of(lambda: os.close(idmapped(pod.publish().target, user_namespace)))
    assert errno in (0, EINVAL)
    happens = ": a container runtime cannot make the copy that a pod with `hostUsers: false` needs" if errno else ""
    record_property("tmpfs in idmapped mounts", there_or_missing(errno) + happens)
    (note,) = [note for note in check(place)[2] if note.startswith("tmpfs in idmapped mounts")]
    assert ("without it pods with hostUsers: false do not start" in note) is bool(errno), note


def test_a_container_that_is_killed_for_its_memory_under_cgroup_v2(pod: Pod, record_property: Record) -> None:
    volume = pod.publish()
    application = pod.application(volume)
    assert application.check("stat -f -c %T /sys/fs/cgroup") == "cgroup2fs\n"
    for life in ("first", "second"):
        program = ["python3", "/programs/odd_program.py", "serves", "/data", life]
        fuse = pod.fuse(volume, binds=[TEST_PROGRAMS], options=MEMORY, command=program)
        application.wait_for("test -e /data/hello")
        assert application.check("cat /data/hello") == f"{life}\n"
        kills = oom_kills_of_the_node()
        fuse.kill("USR1")
        assert fuse.wait().code == 128 + signal.SIGKILL
        assert oom_kills_of_the_node() > kills
        volume.wait_waiting()
        application.wait_for("test ! -e /data/hello")
    record_property("cgroup v2", "A container that is killed for its memory use is replaced.")


# ---- AppArmor


@pytest.fixture
def confined(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let containers have the profile that Podman gives each container."""
    monkeypatch.setattr(node.engine, "security", [])


def is_confined(container: Container) -> None:
    assert container.check("cat /proc/self/attr/current").endswith(" (enforce)\n")


@pytest.mark.usefixtures("confined")
def test_under_apparmor_libfuse_does_not_ask_its_helper(pod: Pod, record_property: Record) -> None:
    """AppArmor forbids mount(2) with EACCES before the kernel looks for CAP_SYS_ADMIN. libfuse asks its helper after EPERM alone."""
    fuse = pod.fuse(pod.publish())
    is_confined(fuse)
    result = fuse.run("bindfs -f /srv /data")
    assert (result.code, result.err) == (1, LIBFUSE_GIVES_UP)
    record_property(
        "AppArmor's profile, and no seccomp filter for mount", f"libfuse does not ask `fusermount3`: `{LIBFUSE_GIVES_UP.strip()}`"
    )


@pytest.mark.usefixtures("confined")
def test_under_apparmor_and_a_seccomp_filter_as_dockers_libfuse_mounts(pod: Pod, tmp_path: Path, record_property: Record) -> None:
    """The filters of Docker and containerd forbid mount(2) with EPERM to containers without CAP_SYS_ADMIN, before AppArmor is asked."""
    profile = json.loads(_PROFILE.read_text())
    for rule in profile["syscalls"]:
        rule["names"] = [name for name in rule["names"] if name != "mount"]
    profile["syscalls"].append({"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM, "args": []})
    file = tmp_path / "seccomp.json"
    file.write_text(json.dumps(profile))
    volume = pod.publish()
    fuse = pod.fuse(volume, options=[f"--security-opt=seccomp={file}"])
    is_confined(fuse)
    application = pod.application(volume)
    fuse.check("mkdir /source && echo content >/source/file")
    program = volume.mounted_by(fuse, "bindfs -f /source /data")
    assert application.check("cat /data/file") == "content\n"
    program.kill("KILL")
    volume.wait_waiting()
    record_property("AppArmor's profile, and a seccomp filter as Docker's", "It mounts, and the application reads.")


@pytest.mark.usefixtures("confined")
def test_under_apparmor_fuse_starter_mounts(pod: Pod, record_property: Record) -> None:
    volume = pod.publish()
    hello = Bind(static_fuse_program(), "/usr/bin/hello", read_only=True)
    fuse, application = pod.fuse(volume, binds=[hello]), pod.application(volume)
    is_confined(fuse)
    is_confined(application)
    program = volume.mounted_by(fuse, f"sh -c 'exec {STARTER} hello -f /dev/fd/3'")
    assert application.check("cat /data/hello") == "Hello World!\n"
    program.kill("KILL")
    volume.wait_waiting()
    record_property("AppArmor's profile, and `fuse-starter`", "It mounts, and the application reads.")
