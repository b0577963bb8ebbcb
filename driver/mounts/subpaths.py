"""Rebinds kubelet's `subPath` mounts of a volume, which a new mount at the target does not reach.

    PODS/UID/volume-subpaths/VOLUME/CONTAINER/INDEX        a bind of one directory (or file) of what was mounted at the target

Such a bind shows the file system that was there when its container started, for ever. When its FUSE program has died and another
program has mounted, the same directory of the new file system is bound over it. The running containers see that, since kubelet's
bind and theirs are peers. A container without propagation keeps the dead file system.

Each bind has one layer of ours at most: kubelet unmounts one layer at each attempt, before it calls unpublish.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from errno import EINVAL

from driver.linux import mounttable, syscalls
from driver.model.paths import VolumePaths
from fusermount3_proxy.wire import mountinfo
from fusermount3_proxy.wire.mountinfo import Mount

_DELETED = b"//deleted"  # what the kernel writes behind the root of a bind whose directory is gone


@dataclass(frozen=True)
class SubPath:
    """Describes one bind: its path, the directory of the file system that it shows, and how many layers of ours lie on it."""

    path: bytes
    inner: bytes
    layers: int


def folder(paths: VolumePaths) -> str:
    """Return the folder in which kubelet binds the subPaths of a pod's volume."""
    uid = paths.target.partition("/")[0]
    return f"{paths.root}/{uid}/volume-subpaths/{paths.volume_name}"


def has_any(paths: VolumePaths) -> bool:
    """Return whether kubelet has bound any subPath of the volume."""
    return os.path.isdir(folder(paths))


def stale(mounts: Iterable[Mount], below: bytes, device: str) -> list[SubPath]:
    """Return the binds below a folder that do not show the file system `device`; with "" that is all of them. Does no I/O."""
    by_path: dict[bytes, list[Mount]] = {}
    for mount in mounts:
        if mount.path.startswith(below + b"/"):
            by_path.setdefault(mount.path, []).append(mount)
    found = []
    for path, here in by_path.items():
        stack = mountinfo.stack(here, path)
        if not stack or not stack[0].is_fuse or stack[-1].device == device:
            continue
        inner = stack[0].root
        # A bind of the root itself needs nothing: take_off() and propagation reach it, as they reach containers.
        if inner != b"/" and not inner.endswith(_DELETED):
            found.append(SubPath(path, inner.lstrip(b"/"), len(stack) - 1))
    return found


def rebind(below: str, target: str, device: str) -> int:
    """Bind the file system `device`, which is mounted at `target`, over every bind in the folder that shows a former one.

    Return how many were bound. Raises the OSError of the first that failed, after trying the others. The FUSE program is asked for
    the directories: this blocks as long as it does not answer.
    """
    done, failed = 0, None
    for each in _stale_now(below, device):
        try:
            _rebind(target, device, each)
            done += 1
        except OSError as error:
            failed = failed or error
    if failed is not None:
        raise failed
    return done


def remove_layers(paths: VolumePaths) -> None:
    """Unmount our layers, which show a file system that has ended, so that kubelet finds its own binds. Raises OSError."""
    if has_any(paths):  # the mount table is long, and few volumes have subPaths
        for each in _stale_now(folder(paths), ""):
            _remove_layers(each)


def _stale_now(below: str, device: str) -> list[SubPath]:
    return stale(mounttable.read_mount_table(), os.fsencode(os.path.realpath(below)), device)  # the table has no symlinks


def _rebind(target: str, device: str, each: SubPath) -> None:
    root = os.open(target, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if syscalls.device_of(root) != device:
            return  # that file system has ended; the next one is bound when it is mounted
        # A hostile FUSE program could answer with a symlink to the node's files, and have those bound into its containers.
        resolve = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_XDEV
        inner = syscalls.openat2(root, each.inner, os.O_PATH, resolve=resolve)
        try:
            # Count the layers again: while the program answered, kubelet may have removed some.
            stack = mountinfo.stack(mounttable.read_mount_table(), each.path)
            if not stack or not stack[0].is_fuse:
                return
            _remove_layers(SubPath(each.path, each.inner, len(stack) - 1))
            syscalls.mount(f"/proc/self/fd/{inner}", each.path, None, syscalls.MS_BIND)
        finally:
            os.close(inner)
    finally:
        os.close(root)


def _remove_layers(each: SubPath) -> None:
    for _ in range(each.layers):
        try:
            syscalls.umount(each.path, syscalls.MNT_DETACH)
        except OSError as error:
            if error.errno != EINVAL:  # kubelet was faster
                raise
