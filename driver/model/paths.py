"""Where a volume's things lie on the node: kubelet's layout, and the driver's own without Kubernetes.

Pure: names in, paths or BadPath out.

    PODS/UID/volumes/kubernetes.io~csi/VOLUME/mount      the target path, from kubelet
    PODS/UID/volumes/kubernetes.io~empty-dir/NAME        the pod's emptyDir, for the sockets

    ROOT/NAME/mount and ROOT/NAME/sock                   without Kubernetes
"""

import re
from dataclasses import dataclass

from fusermount3_proxy.wire.protocol import V1_SUFFIX

_NAME_MAX = 255  # bytes, <linux/limits.h>
_VOLUME_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")

STANDALONE_SOCKET = "fuse.sock"
DEV_FUSE = "dev-fuse"  # beside the sockets


class BadPath(Exception):
    """A name or path that is refused; the text says which and why."""


@dataclass(frozen=True, slots=True)
class VolumePaths:
    """One volume's places. `root` is trusted; `target` and `sockets` are relative to it, without `.` and `..`."""

    root: str
    target: str
    sockets: str
    volume_name: str

    @property
    def target_path(self) -> str:
        """The absolute target path."""
        return f"{self.root}/{self.target}"

    @property
    def owner(self) -> str:
        """Whose volume it is: the pod's UID, or the volume's own name."""
        return self.target.partition("/")[0]

    @property
    def is_pods(self) -> bool:
        """Whether kubelet made these places for a pod."""
        return "/volumes/kubernetes.io~csi/" in self.target


def of_pod(target_path: str, empty_dir: str, pods_dir: str) -> VolumePaths:
    """The places of a pod's volume.

    PODS and the pod's UID come from kubelet's target path, never from the volume context: a pod's author writes the
    context, and could name another pod's folder in it. Raises BadPath.
    """
    check_empty_dir(empty_dir)
    target_path = target_path.rstrip("/")
    expected = f"{pods_dir}/UID/volumes/kubernetes.io~csi/VOLUME/mount"
    if "\0" in target_path:
        raise BadPath(f"target path {target_path!r} holds a NUL, which no path may")
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
    """The places of a volume without Kubernetes. Raises BadPath."""
    if not _VOLUME_NAME.fullmatch(name):
        raise BadPath(f"volume name {name!r} is not allowed: a-z, 0-9 and -, at most 63 characters, not - at the start")
    return VolumePaths(root=root, target=f"{name}/mount", sockets=f"{name}/sock", volume_name=name)


def check_empty_dir(name: str) -> None:
    """Whether `name` can name an emptyDir. Raises BadPath."""
    check_component("the emptyDir's name", name)


def check_socket_name(name: str) -> None:
    """Whether `name` can name the original socket, and with its suffix protocol v1's. Raises BadPath."""
    check_component("the socket's name", name, _NAME_MAX - len(V1_SUFFIX))
    if name.endswith(V1_SUFFIX) or name.startswith(".") or name == DEV_FUSE:
        own = f"{DEV_FUSE}, what ends in {V1_SUFFIX}, what begins with a dot"
        raise BadPath(f"the socket's name, {name!r}, is one that the driver keeps for itself ({own}): choose another")


def check_component(what: str, name: str, longest: int = _NAME_MAX) -> None:
    """Whether `name` is one path component. Raises BadPath, naming `what`."""
    if not name:
        raise BadPath(f"{what} is empty")
    if name in (".", "..") or "/" in name or "\0" in name:
        raise BadPath(f"{what}, {name!r}, is not the name of one file: it must not be . or .., nor hold / or NUL")
    if len(name.encode("utf-8", "surrogateescape")) > longest:
        raise BadPath(f"{what}, {name[:40]!r}..., is longer than {longest} bytes")
