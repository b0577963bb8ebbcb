"""Computes where a volume's target and sockets are on the node: in kubelet's layout, or in the driver's own without Kubernetes.

No function here reads the file system. Each takes names, and returns paths or raises BadPath.

    PODS/UID/volumes/kubernetes.io~csi/VOLUME/mount      the target path, from kubelet
    PODS/UID/volumes/kubernetes.io~empty-dir/NAME        the pod's emptyDir, for the sockets

    ROOT/NAME/mount and ROOT/NAME/sock                   without Kubernetes
"""

import re
from dataclasses import dataclass

from fusermount3_proxy.wire.protocol import V1_SUFFIX

_NAME_MAX = 255  # bytes, <linux/limits.h>
_VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")  # what Docker's volumes may be called
# Of these names, those that a device of the Container Device Interface may have in every version of its specification.
_DEVICE_NAME = re.compile(r"[a-zA-Z](?:[a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?")

STANDALONE_SOCKET = "fuse.sock"
DEV_FUSE = "dev-fuse"  # the file beside the sockets that a container can bind to /dev/fuse


class BadPath(Exception):
    """Reports a name or path that is refused. The text says which one, and why."""


@dataclass(frozen=True, slots=True)
class VolumePaths:
    """Holds the paths of one volume.

    `root` is trusted. `target` and `sockets` are relative to it and have no `.` or `..` in them, but a pod may change the
    directories on the way to `sockets`.
    """

    root: str
    target: str
    sockets: str
    volume_name: str

    @property
    def target_path(self) -> str:
        """Return the absolute target path."""
        return f"{self.root}/{self.target}"

    @property
    def sockets_path(self) -> str:
        """Return the absolute path of the directory for the sockets. Do not open it: a pod may have put a symlink on the way."""
        return f"{self.root}/{self.sockets}"

    @property
    def owner(self) -> str:
        """Return whose volume it is: the pod's UID, or without Kubernetes the volume's own name."""
        return self.target.partition("/")[0]

    @property
    def is_pods(self) -> bool:
        """Return whether these are paths in kubelet's layout, of a pod's volume."""
        return "/volumes/kubernetes.io~csi/" in self.target


def of_pod(target_path: str, empty_dir: str, pods_dir: str) -> VolumePaths:
    """Return the paths of a pod's volume. Raises BadPath.

    The pod's UID is taken from kubelet's target path, and never from the volume context: a pod's author writes the
    context, and could name another pod's folder in it.
    """
    check_empty_dir(empty_dir)
    target_path = target_path.rstrip("/")
    expected = f"{pods_dir}/UID/volumes/kubernetes.io~csi/VOLUME/mount"
    if "\0" in target_path:
        raise BadPath(f"target path {target_path!r} holds a NUL, which no path may have")
    if not target_path.startswith(pods_dir + "/"):
        raise BadPath(f"target path {target_path!r} is not below the pods folder {pods_dir} (--pods-dir); expected {expected}")
    match target_path[len(pods_dir) + 1 :].split("/"):
        case [uid, "volumes", "kubernetes.io~csi", volume, "mount"]:
            check_component("the pod's UID in the target path", uid)
            check_component("the volume's folder in the target path", volume)
        case _:
            raise BadPath(f"target path {target_path!r} is not one of kubelet's; expected {expected}")
    return VolumePaths(
        root=pods_dir,
        target=f"{uid}/volumes/kubernetes.io~csi/{volume}/mount",
        sockets=f"{uid}/volumes/kubernetes.io~empty-dir/{empty_dir}",
        volume_name=volume,
    )


def standalone(name: str, root: str) -> VolumePaths:
    """Return the paths of a volume without Kubernetes. Raises BadPath."""
    if not _VOLUME_NAME.fullmatch(name):
        raise BadPath(f"volume name {name!r} is not allowed: use at most 63 letters, digits, _, . and -, with a letter or digit first")
    return VolumePaths(root=root, target=f"{name}/mount", sockets=f"{name}/sock", volume_name=name)


def check_device_name(name: str) -> None:
    """Raise BadPath if `name` cannot be the name of a fuse device. Its socket's folder has the same name."""
    if not _DEVICE_NAME.fullmatch(name):
        characters = "at most 63 letters, digits, _, . and -, with a letter first and a letter or digit last"
        raise BadPath(f"device name {name!r} is not allowed: use {characters}")


def check_empty_dir(name: str) -> None:
    """Raise BadPath if `name` cannot be the name of an emptyDir."""
    check_component("the emptyDir's name", name)


def check_socket_name(name: str) -> None:
    """Raise BadPath if `name` cannot be the name of the original protocol's socket, or NAME.v1 that of protocol v1's."""
    check_component("the socket's name", name, _NAME_MAX - len(V1_SUFFIX))
    if name.endswith(V1_SUFFIX) or name.startswith(".") or name == DEV_FUSE:
        reserved = f"{DEV_FUSE}, names that end in {V1_SUFFIX}, names that begin with a dot"
        raise BadPath(f"the socket's name, {name!r}, is reserved for the driver ({reserved}): choose another")


def check_component(what: str, name: str, longest: int = _NAME_MAX) -> None:
    """Raise BadPath if `name` is not one path component of at most `longest` bytes. The error calls it `what`."""
    if not name:
        raise BadPath(f"{what} is empty")
    if name in (".", "..") or "/" in name or "\0" in name:
        raise BadPath(f"{what}, {name!r}, is not the name of one file: it must not be . or .., and must not hold / or NUL")
    if len(name.encode("utf-8", "surrogateescape")) > longest:
        raise BadPath(f"{what}, {name[:40]!r}..., is longer than {longest} bytes")
