"""Where the driver keeps its own things when the command line does not say."""

import fcntl
import os
from errno import EROFS

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
    """The folder: /run/mfcp, or .mfcp beside the CSI socket where that cannot be written.

    That is so in a container with a read-only root and no volume at /run, as DaemonSets of the Go plugin are. The CSI
    socket's folder is one on the node, so what lies beside it outlives the container, too.
    """
    return _beside(csi_socket) if _is_read_only(DEFAULT) else DEFAULT


def in_use(csi_socket: str) -> str | None:
    """The folder of a driver that was started here without --run-dir; `csi_socket` is its endpoint, where that is known."""
    folders = (DEFAULT, _beside(csi_socket), _beside(_DAEMON_SETS_SOCKET))
    return next((folder for folder in folders if os.path.exists(f"{folder}/admin.sock")), None)


def _beside(csi_socket: str) -> str:
    return f"{os.path.dirname(os.path.abspath(csi_socket))}/{_BESIDE}"


def _is_read_only(folder: str) -> bool:
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    except OSError as error:
        return error.errno == EROFS  # all else is told when the folder is used
