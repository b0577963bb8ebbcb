"""Finds the driver's own folder on the node if the command line does not name it, and locks it."""

import fcntl
import os

DEFAULT = "/run/mfcp"
_BESIDE_SOCKET = ".mfcp"
_FUSE = "/var/lib/mfcp"
_DAEMON_SETS_SOCKET = "/csi/csi.sock"  # in the containers of this project's manifests and of the Go plugin's


class RunDirLock:
    """Represents the lock on a run folder. It works across mount namespaces, and is held until the driver's process ends."""

    def __init__(self, folder: str) -> None:
        """Open the folder, which must exist. Raises OSError."""
        self._fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def acquire(self) -> bool:
        """Take the lock, and return whether this driver has it now. Another driver may have it. Does not wait. Raises OSError."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False


def default(csi_socket: str) -> str:
    """Return the run folder for a new driver: /run/mfcp, or .mfcp beside the CSI socket if /run/mfcp is read-only.

    It is read-only in a container with a read-only root and without a volume at /run, as in DaemonSets of the Go plugin. The
    CSI socket is always in a folder of the node, so a folder beside it outlives the container as well.
    """
    return _beside(csi_socket) if _is_read_only(DEFAULT) else DEFAULT


def fuse_dir(given: str | None, csi_socket: str, kubelet_registration_path: str | None) -> tuple[str, str]:
    """Return the folder of what containers with a fuse device bind, and the same folder as kubelet and container engines see it.

    It must be on a file system that outlives a reboot and allows executing, which /run often does not. The folder of the CSI socket is one
    where kubelet has it; a driver in a container sees it at another path than kubelet, which the registration path tells.
    """
    if given is not None:
        return os.path.normpath(given), os.path.normpath(given)
    folder = os.path.dirname(csi_socket)
    if folder == DEFAULT:
        return _FUSE, _FUSE
    return f"{folder}/fuse", f"{os.path.dirname(kubelet_registration_path or csi_socket)}/fuse"


def of_running_driver(csi_socket: str) -> str | None:
    """Return the folder of a driver that runs here and was started without --run-dir, or None if there is no such driver.

    `csi_socket` is the driver's endpoint. The endpoint of the DaemonSets is tried as well.
    """
    folders = (DEFAULT, _beside(csi_socket), _beside(_DAEMON_SETS_SOCKET))
    return next((folder for folder in folders if os.path.exists(f"{folder}/admin.sock")), None)


def nearest_existing(folder: str) -> str:
    """Return the folder itself, or the nearest folder above it that exists."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def _beside(csi_socket: str) -> str:
    return f"{os.path.dirname(os.path.abspath(csi_socket))}/{_BESIDE_SOCKET}"


def _is_read_only(folder: str) -> bool:
    # `check` asks this too, and must leave nothing behind, so the folder is not made here.
    return bool(os.statvfs(nearest_existing(folder)).f_flag & os.ST_RDONLY)
