"""Decides where the driver keeps its own files when the command line does not say."""

import fcntl
import os

DEFAULT = "/run/mfcp"
_BESIDE = ".mfcp"
_DAEMON_SETS_SOCKET = "/csi/csi.sock"  # in the containers of this project's manifests and the Go plugin's


class Claim:
    """The lock on a run folder. Every mount namespace sees it, and it is held until the driver's process ends."""

    def __init__(self, folder: str) -> None:
        """Open the folder, which is there. Raises OSError."""
        self._fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def own(self) -> bool:
        """Return whether the folder is this driver's, from now on. It is not while another driver has it."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False


def default(csi_socket: str) -> str:
    """Return the folder for a new driver: /run/mfcp, or .mfcp beside the CSI socket where /run/mfcp is read-only.

    It is read-only in a container with a read-only root and no volume at /run, as in DaemonSets of the Go plugin. The
    folder of the CSI socket is one on the node, so what lies beside the socket outlives the container, too.
    """
    return _beside(csi_socket) if _is_read_only(DEFAULT) else DEFAULT


def in_use(csi_socket: str) -> str | None:
    """Return the folder of a driver that was started here without --run-dir; `csi_socket` is its endpoint, if that is known."""
    folders = (DEFAULT, _beside(csi_socket), _beside(_DAEMON_SETS_SOCKET))
    return next((folder for folder in folders if os.path.exists(f"{folder}/admin.sock")), None)


def nearest(folder: str) -> str:
    """Return the folder itself, or the nearest one above it that exists."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def _beside(csi_socket: str) -> str:
    return f"{os.path.dirname(os.path.abspath(csi_socket))}/{_BESIDE}"


def _is_read_only(folder: str) -> bool:
    # The folder is not made here: `check` asks this too, and must leave nothing behind.
    return bool(os.statvfs(nearest(folder)).f_flag & os.ST_RDONLY)
