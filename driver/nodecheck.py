"""Checks whether this node has what the driver needs, and reports what is missing with the remedy: for CSI's Probe, `ready`, `check`."""

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
    "the driver is in a pid namespace of its own, so FUSE programs see 0 as the process id of every request, and some then refuse "
    "writes: give the driver's pod hostPID: true (Docker, Podman: --pid=host)"
)
NO_PEERS = (
    "the driver is in a pid namespace of its own, and cannot find the containers that ask: give the driver's pod hostPID: true (Docker, "
    "Podman: --pid=host)"
)
_PRIVILEGED = "give the driver's container securityContext.privileged: true (Docker, Podman: --privileged)"


@dataclass(frozen=True)
class Check:
    """Names something that the driver needs. `problem` says what is wrong with it and what to do, and is "" if nothing is wrong."""

    name: str
    problem: str


@dataclass(frozen=True)
class Note:
    """Names something that the driver can do without. `text` says what does not work if it is missing."""

    name: str
    is_there: bool
    text: str


def checks(pods_dir: str, run_dir: str) -> Iterator[Check]:
    """Yield the checks of everything that mounting needs, one after another. They leave nothing behind."""
    kernel = _kernel(os.uname().release)
    yield Check("kernel", kernel)
    if kernel:
        return  # calls that an old kernel lacks would make the other checks fail, and their remedies would not help
    yield Check("file system", _fuse())
    lacking = privileges.missing_capabilities()
    yield Check("capabilities", _capabilities(lacking))
    # If capabilities are missing, they are why system calls fail with EPERM, and the check before this one has reported them.
    refused = {name: errno for name, errno in syscalls.refused_calls().items() if errno != EPERM or not lacking}
    yield Check("system calls", _system_calls(refused))
    yield Check("FUSE device", _device(run_dir))
    yield Check("propagation", propagation_problem(pods_dir))
    yield Check("mounts", _room_for_mounts())


def first_problem(pods_dir: str, run_dir: str) -> str:
    """Return in one line why mounting would fail and what to do, and "" if it would work."""
    return next((check.problem for check in checks(pods_dir, run_dir) if check.problem), "")


def propagation_problem(pods_dir: str) -> str:
    """Return why no container would see a mount below `pods_dir` and what to do, and "" if containers would see it."""
    # Without kubelet there are no pods. Volumes of `volume add` are on a shared mount that the driver makes.
    if not os.path.isdir(pods_dir):
        return ""
    mount = mountinfo.holding(mounttable.read_mount_table(), os.fsencode(os.path.realpath(pods_dir)))
    if mount is None or mount.shared:
        return ""
    where = os.fsdecode(mount.path)
    return (
        f"{pods_dir} is on the mount {where}, which is not shared, so no container would see a mount: run "
        f"'mount --make-rshared {where}' on the node, and give the driver's container mountPropagation: Bidirectional"
    )


def device_problem() -> str:
    """Return why no container could mount with a fuse device, and what to do; "" if it could. Call it before privileges are dropped."""
    if lacking := privileges.missing_for_namespaces():
        return _capabilities(lacking)
    return "" if features.sees_host_pids() else NO_PEERS


def notes(run_dir: str) -> Iterator[Note]:
    """Yield what the driver can do without, and whether this node has it."""
    release = os.uname().release
    has_sync_init = _has_sync_init(run_dir)
    if has_sync_init is not None:
        text = "Linux has it since 6.18: FUSE programs that ask for it are mounted without it"
        yield Note("synchronous INIT", has_sync_init, text)
    yield Note(
        "tmpfs in idmapped mounts",
        features.is_at_least(release, _IDMAPPED_TMPFS),
        "Linux has it since 6.3: without it pods with hostUsers: false do not start",
    )
    yield Note(
        "FUSE in idmapped mounts",
        features.is_at_least(release, _IDMAPPED_FUSE),
        "Linux has it since 6.12, for FUSE programs that ask for it: without it containers of pods with hostUsers: false can start "
        "before the FUSE program mounts, but not afterwards",
    )
    yield Note("pids of the node", features.sees_host_pids(), NO_HOST_PIDS)
    problem = device_problem()
    yield Note("fuse devices", not problem, problem)


def _kernel(release: str) -> str:
    if features.is_at_least(release, _KERNEL):
        return ""
    return f"the kernel ({release}) is older than {_KERNEL[0]}.{_KERNEL[1]} and does not have mount_setattr(2): use a newer one"


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
        f"{_PRIVILEGED}, or a seccomp profile that allows these calls"
    )


def _device(run_dir: str) -> str:
    """Make a FUSE device and open it. The device policy of a container's cgroup may forbid either, whatever its capabilities are."""
    if os.path.exists(run_dir) and not os.path.isdir(run_dir):
        return f"{run_dir} (--run-dir) is not a directory: remove it, or give another path"
    step = "prepare a folder for FUSE devices"
    try:
        with _device_folder(run_dir) as devices:
            step = "make and open a FUSE device (c 10:229)"
            devices.discard(devices.open())
    except OSError as error:
        text = f"cannot {step} below {run_dir} (--run-dir): {error.strerror}"
        if error.errno in (ENXIO, ENODEV):
            return f"{text}: run 'modprobe fuse' on the node"
        if error.errno in (EPERM, EACCES, ENOSYS):
            return f"{text}: {_PRIVILEGED}, or only the capabilities and the device (Docker, Podman: --device /dev/fuse)"
        return f"{text}: give a folder on a tmpfs of the node"
    return ""


@contextmanager
def _device_folder(run_dir: str) -> Iterator[DeviceFolder]:
    """Open the driver's folder of devices. If no driver has made it yet, make a folder near it, and remove that at the end."""
    with ExitStack() as stack:
        folder = f"{run_dir}/dev"
        if not os.path.isdir(folder):
            folder = f"{rundir.nearest_existing(run_dir)}/mfcp-check-{secrets.token_hex(8)}"
            os.mkdir(folder, 0o700)
            stack.callback(os.rmdir, folder)
        devices = DeviceFolder(folder)
        stack.callback(devices.close)
        yield devices


def _room_for_mounts() -> str:
    try:
        with open("/proc/sys/fs/mount-max", encoding="ascii") as file:
            allowed = int(file.read())
    except (OSError, ValueError):
        return ""  # the /proc of a container may lack this file
    with open("/proc/self/mountinfo", "rb") as table:
        present = sum(1 for _ in table)
    if present < allowed * _MOUNTS_FULL:
        return ""
    return f"there are {present} mounts, and at most {allowed} are allowed: unmount some, or run 'sysctl -w fs.mount-max=N'"


def _has_sync_init(run_dir: str) -> bool | None:
    """Return whether the kernel has synchronous INIT, or None if it cannot be asked because no FUSE device can be made."""
    try:
        with _device_folder(run_dir) as devices:
            opened = devices.open()
            try:
                fcntl.ioctl(opened.fd, _FUSE_DEV_IOC_SYNC_INIT)
                return True
            except OSError:  # ENOTTY from the kernel, or the error of a seccomp filter
                return False
            finally:
                devices.discard(opened)
    except OSError:
        return None
