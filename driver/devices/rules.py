"""Decides which mountpoints a container may mount on. Here is no input or output.

A mount hides what is beneath it, so most rules are those that libfuse's fusermount3 has for users without privileges. The others keep
containers from hiding what their engine has put in place, and from making the driver's processes wait for ever.
"""

import os
import stat
from collections.abc import Collection
from dataclasses import dataclass
from errno import EACCES, ENOSPC, EPERM, EROFS

from driver.linux.syscalls import FileInfo
from fusermount3_proxy.wire.mountinfo import Mount

# fusermount3's list of file systems that a user may mount on (check_nonroot_fstype() in libfuse's util/fusermount.c), as the mount
# table names them. Others, such as proc, invent their files, and hiding these can deceive privileged programs.
_FILE_SYSTEMS = frozenset(
    (
        *("afs", "aufs", "autofs", "bcachefs", "btrfs", "ceph", "cifs", "ecryptfs", "exfat", "ext2"),
        *("ext3", "ext4", "f2fs", "fuseblk", "gfs2", "gpfs", "hfsplus", "jffs2", "jfs", "lustre"),
        *("msdos", "ncpfs", "nfs", "nfs4", "nilfs2", "ntfs", "ntfs3", "overlay", "panfs", "ramfs"),
        *("reiserfs", "smb3", "squashfs", "tmpfs", "ubifs", "vfat", "wslfs", "xfs", "zfs"),
    )
)

# The engine's own mounts are there, and the programs through which the container asks for mounts.
_FORBIDDEN = (b"/proc", b"/sys", b"/dev", b"/opt/mfcp")

_CAP_DAC_OVERRIDE = 1


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as the node sees him: uid, primary and supplementary groups, and whether no mode bits stop him.

    `uid_inside` is his uid in the user namespace that owns his mount namespace.
    """

    uid: int
    groups: Collection[int]
    is_privileged: bool
    uid_inside: int


@dataclass(frozen=True, slots=True)
class Mountpoint:
    """A mountpoint: what it is, the mount that it is on, and its absolute path as the caller and as its mount namespace see it.

    The two paths differ where the caller has changed its root directory (chroot(2)).
    """

    info: FileInfo
    mount: Mount
    path: bytes
    path_in_namespace: bytes


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a mountpoint is refused, in fusermount3's words where it has some. `is_file_system` asks the caller of check() to add them."""

    errno: int
    text: str
    is_file_system: bool = False


def is_privileged(uid: int, effective: int, owns_namespace: bool) -> bool:
    """Return whether mode bits stop nobody here: the caller is root in his mount namespace's own user namespace.

    `uid` is the caller's in that user namespace, `effective` his effective capabilities, and `owns_namespace` whether his user namespace is
    the one that owns the mount namespace. Without the last condition every user would be, after `unshare -Ur`.
    """
    return uid == 0 and owns_namespace and bool(effective >> _CAP_DAC_OVERRIDE & 1)


def check(mountpoint: Mountpoint, caller: Caller, shown: str, own_devices: Collection[str]) -> Refusal | None:
    """Return why the caller may not mount there; None where he may.

    `shown` is the mountpoint's path for messages. `own_devices` are the device numbers of what the driver has mounted for the container.
    """
    info, mount = mountpoint.info, mountpoint.mount
    if not stat.S_ISDIR(info.mode) and not stat.S_ISREG(info.mode):
        return Refusal(EPERM, f"mountpoint {shown} is not a directory or a regular file")
    if mount.is_fuse:
        # A FUSE server can keep a directory of its own locked for ever, by leaving a mkdir in it unanswered, and move_mount(2) would wait
        # for that lock where no signal reaches it. The connections of this driver's own mounts can be ended.
        if info.device not in own_devices:
            return Refusal(EPERM, f"mounting on {shown} is forbidden: it is on a FUSE file system that this container has not mounted here")
    elif mount.fstype not in _FILE_SYSTEMS:
        return Refusal(EPERM, f"mounting over filesystem type {mount.fstype} is forbidden", is_file_system=True)
    for path in (mountpoint.path, mountpoint.path_in_namespace):
        for forbidden in _FORBIDDEN:
            if path == forbidden or path.startswith(forbidden + b"/"):
                return Refusal(EPERM, f"mounting on {shown} is forbidden: it is {_where(path, forbidden)}")
        if path == b"/":
            return Refusal(EPERM, f"mounting on {shown} is forbidden: it is the root directory")
    if mount.shared:
        return Refusal(EPERM, f"mounting on {shown} is forbidden: the mount would appear outside of the container (shared propagation)")
    return None if caller.is_privileged or _is_own_file_system(mount, caller) else _check_access(info, mount, caller, shown)


def too_many_mounts(most: int) -> Refusal:
    """Return why nothing more is mounted in a container that has `most` mounts, in the words of fusermount3."""
    return Refusal(ENOSPC, f"too many FUSE filesystems mounted; this fuse device allows {most} (--fuse-mounts-max)")


def _where(path: bytes, forbidden: bytes) -> str:
    name = forbidden.decode()
    return name if path == forbidden else f"below {name}"


def _is_own_file_system(mount: Mount, caller: Caller) -> bool:
    """Return whether it is a FUSE file system that the caller has mounted, in which his own program says who may do what.

    Owners and modes mean nothing there: those of sshfs are those of another machine.
    """
    options = mount.super_options.split(",")
    return mount.is_fuse and f"user_id={caller.uid_inside}" in options and "default_permissions" not in options


def _check_access(info: FileInfo, mount: Mount, caller: Caller, shown: str) -> Refusal | None:
    """Check what fusermount3 does for users: that they may write there, and own what is sticky."""
    is_directory = stat.S_ISDIR(info.mode)
    if is_directory and info.mode & stat.S_ISVTX and info.uid != caller.uid:
        return Refusal(EPERM, f"mountpoint {shown} not owned by user")
    if info.uid == caller.uid:
        may_write = info.mode & stat.S_IWUSR
    elif info.gid in caller.groups:
        may_write = info.mode & stat.S_IWGRP
    else:
        may_write = info.mode & stat.S_IWOTH
    errno = EACCES
    if may_write:
        # Files that are given read-only, such as a ConfigMap's, may have mode 0777. A mount there would give the other users of the
        # container the mounter's files in their place. What is the user's own may be read-only, as in a container with a read-only root.
        is_read_only = any("ro" in options.split(",") for options in (mount.options, mount.super_options))
        if info.uid == caller.uid or not is_read_only:
            return None
        errno = EROFS
    text = f"user has no write access to mountpoint {shown}" if is_directory else f"failed to open {shown}: {os.strerror(errno)}"
    return Refusal(errno, text)
