"""Where the driver keeps its own things when the command line does not say."""

import os
from errno import EROFS

DEFAULT = "/run/mfcp"
_BESIDE = ".mfcp"


def default(csi_socket: str) -> str:
    """The folder: /run/mfcp, or .mfcp beside the CSI socket where that cannot be written.

    That is so in a container with a read-only root and no volume at /run, as DaemonSets of the Go plugin are. The CSI
    socket's folder is one on the node, so what lies beside it outlives the container, too.
    """
    return beside(csi_socket) if _is_read_only(DEFAULT) else DEFAULT


def beside(csi_socket: str) -> str:
    """The second choice."""
    return f"{os.path.dirname(os.path.abspath(csi_socket))}/{_BESIDE}"


def _is_read_only(folder: str) -> bool:
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    except OSError as error:
        return error.errno == EROFS  # all else is told when the folder is used
