"""Checks whether this node has what the driver needs, and says what to do where it has not: for Probe, probes and `check`."""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from errno import EACCES, ENODEV, ENOSYS, ENXIO, EPERM

from driver import rundir
from driver.linux import features, mounttable, privileges, syscalls
from driver.mounts.device import DeviceFolder
from fusermount3_proxy.wire import mountinfo

_KERNEL = (5, 12)  # mount_setattr(2)
_IDMAPPED_TMPFS, _IDMAPPED_FUSE = (6, 3), (6, 12)
_MOUNTS_FULL = 0.9  # of fs.mount-max

_FUSE_DEV_IOC_SYNC_INIT = 0xE503  # _IO(229, 3), <linux/fuse.h>

NO_HOST_PIDS = (
    "the driver is in a pid namespace of its own, so FUSE programs see 0 as the process id of every request, and some refuse writes "
    "then: give the driver's pod hostPID: true (Docker, Podman: --pid=host)"
)
_PRIVILEGED = "give the driver's container securityContext.privileged: true (Docker, Podman: --privileged)"


@dataclass(frozen=True)
class Check:
    """Names one thing that the driver needs. `problem` says what is wrong with it and what to do; it is "" where nothing is."""

    name: str
    problem: str


@dataclass(frozen=True)
class Note:
    """Names one thing that the driver can do without. `text` says what its absence means."""

    name: str
    is_there: bool
    text: str


def checks(pods_dir: str, run_dir: str) -> Iterator[Check]:
    """Check everything that mounting needs, one after another. Leaves nothing behind."""
    yield Check("kernel", _kernel(os.uname().release))
    yield Check("file system", _fuse())
    lacking = privileges.missing_capabilities()
    yield Check("capabilities", _capabilities(lacking))
    # Without the capabilities EPERM comes from their absence, which the check before this one reports.
    refused = {name: errno for name, errno in syscalls.refused_calls().items() if errno != EPERM or not lacking}
    yield Check("system calls", _system_calls(refused))
    yield Check("FUSE device", _device(run_dir))
    yield Check("propagation", propagation(pods_dir))
    yield Check("mounts", _room_for_mounts())


def problem(pods_dir: str, run_dir: str) -> str:
    """Say in one line why mounting would fail, and what to do; "" where it would work."""
    return next((check.problem for check in checks(pods_dir, run_dir) if check.problem), "")


def propagation(pods_dir: str) -> str:
    """Say why no container would see a mount below `pods_dir`, and what to do; "" where containers would see it."""
    # Without kubelet there are no pods. Volumes of `volume add` lie on a shared mount that the driver makes.
    if not os.path.isdir(pods_dir):
        return ""
    mount = mountinfo.holding(mounttable.read_mount_table(), os.fsencode(os.path.realpath(pods_dir)))
    if mount is None or mount.shared:
        return ""
    where = os.fsdecode(mount.path)
    return (
        f"{pods_dir} lies on the mount {where}, which is not shared, so that no container would see a mount: run "
        f"'mount --make-rshared {where}' on the node, and give the driver's container mountPropagation: Bidirectional"
    )


def notes(run_dir: str) -> Iterator[Note]:
    """Report what this node has or lacks that the driver can do without."""
    release = os.uname().release
    has_sync_init = _has_sync_init(run_dir)
    if has_sync_init is not None:
        text = "the kernel has it from 6.18 on: FUSE programs that ask for it mount without"
        yield Note("synchronous INIT", has_sync_init, text)
    yield Note(
        "tmpfs in idmapped mounts",
        features.is_at_least(release, _IDMAPPED_TMPFS),
        "the kernel has it from 6.3 on: without it pods with hostUsers: false do not start",
    )
    yield Note(
        "FUSE in idmapped mounts",
        features.is_at_least(release, _IDMAPPED_FUSE),
        "the kernel has it from 6.12 on, and then for FUSE programs that ask for it: where it is missing, containers of pods with "
        "hostUsers: false can start before the FUSE program mounts, and not afterwards",
    )
    yield Note("pids of the node", features.sees_host_pids(), NO_HOST_PIDS)


def _kernel(release: str) -> str:
    if features.is_at_least(release, _KERNEL):
        return ""
    return f"the kernel, {release}, is older than {_KERNEL[0]}.{_KERNEL[1]}, which has mount_setattr(2): use a newer one"


def _fuse() -> str:
    with open("/proc/filesystems", encoding="ascii") as file:
        if any(line.split()[-1:] == ["fuse"] for line in file):
            return ""
    return "the kernel does not have the fuse file system: run 'modprobe fuse' on the node"


def _capabilities(missing: list[str]) -> str:
    return f"{', '.join(missing)} missing: run the driver as root, and {_PRIVILEGED}" if missing else ""


def _system_calls(refused: dict[str, int]) -> str:
    if not refused:
        return ""
    names = ", ".join(f"{name} ({os.strerror(errno)})" for name, errno in refused.items())
    return (
        f"system calls are refused: {names}; the kernel is too old, or a seccomp filter blocks them: "
        f"{_PRIVILEGED}, or a seccomp profile that allows them"
    )


def _device(run_dir: str) -> str:
    """Make a device node and open it. A container's device policy may forbid either, whatever its capabilities are."""
    step = "prepare a folder for device nodes"
    try:
        with _node_folder(run_dir) as nodes:
            step = "make and open a FUSE device (c 10:229)"
            nodes.discard(nodes.open())
    except OSError as error:
        text = f"cannot {step} below {run_dir} (--run-dir): {error.strerror}"
        if error.errno in (ENXIO, ENODEV):
            return f"{text}: run 'modprobe fuse' on the node"
        if error.errno in (EPERM, EACCES, ENOSYS):
            return f"{text}: {_PRIVILEGED}, or the capabilities and the device alone (Docker, Podman: --device /dev/fuse)"
        return f"{text}: give a folder on a tmpfs of the node"
    return ""


@contextmanager
def _node_folder(run_dir: str) -> Iterator[DeviceFolder]:
    """Open the driver's folder of device nodes, or, where there is none, a new one near its place that is removed at the end."""
    with ExitStack() as stack:
        folder = f"{run_dir}/dev"
        if not os.path.isdir(folder):
            folder = f"{rundir.nearest(run_dir)}/mfcp-check-{secrets.token_hex(8)}"
            os.mkdir(folder, 0o700)
            stack.callback(os.rmdir, folder)
        nodes = DeviceFolder(folder)
        stack.callback(nodes.close)
        yield nodes


def _room_for_mounts() -> str:
    try:
        with open("/proc/sys/fs/mount-max", encoding="ascii") as file:
            most = int(file.read())
    except (OSError, ValueError):
        return ""  # a /proc of a container may lack it
    with open("/proc/self/mountinfo", "rb") as table:
        there = sum(1 for _ in table)
    if there < most * _MOUNTS_FULL:
        return ""
    return f"there are {there} mounts, and at most {most} are allowed: find out what they are, or run 'sysctl -w fs.mount-max=N'"


def _has_sync_init(run_dir: str) -> bool | None:
    """Ask the kernel; None where no FUSE device can be made to ask it."""
    try:
        with _node_folder(run_dir) as nodes:
            opened = nodes.open()
            try:
                fcntl.ioctl(opened.fd, _FUSE_DEV_IOC_SYNC_INIT)
                return True
            except OSError:  # ENOTTY, or the error of a seccomp filter
                return False
            finally:
                nodes.discard(opened)
    except OSError:
        return None
