"""Finding the driver's socket. go-fuse (gocryptfs, rclone mount2, JuiceFS) starts its helper with an environment of
`_FUSE_COMMFD=3` alone, so what the image's author set has to be found elsewhere.
"""

import posix
import sys

from fusermount3_proxy import procfs
from fusermount3_proxy.wire.protocol import V1_SUFFIX

VARIABLE = "FUSERMOUNT3PROXY_FDPASSING_SOCKPATH"
FOLDER = "/fusermount3-proxy"  # where the examples and the Go plugin's manifests mount the emptyDir

_S_IFMT = 0o170000
_S_IFSOCK = 0o140000


class NoSocket(Exception):
    """There is no socket, or no way to tell which. The text says where was looked and what to do."""


def find_socket(folder: str = FOLDER) -> str:
    """The path of the original protocol's socket (ours is the same with V1_SUFFIX).

    The program's environment, then its parent's, then the one socket in `folder`. Raises NoSocket.
    """
    value = posix.environ.get(VARIABLE.encode()) or _parents_variable()
    if value:
        return value.decode("utf-8", "surrogateescape")
    names = sorted({name.removesuffix(V1_SUFFIX) for name in _sockets_in(folder)})
    if not names:
        raise NoSocket(f"{VARIABLE} is not set and there is no socket in {folder}; set it to the path of the volume's socket")
    if len(names) > 1:
        raise NoSocket(f"{VARIABLE} is not set and {folder} holds more than one socket ({', '.join(names)}); set it to the path of one")
    return f"{folder}/{names[0]}"


def _parents_variable() -> bytes | None:
    prefix = VARIABLE.encode() + b"="
    try:
        environment = procfs.read(f"/proc/{_parent()}/environ")
    except OSError:
        return None
    for entry in environment.split(b"\0"):
        if entry.startswith(prefix):
            return entry[len(prefix) :]
    return None


def _parent() -> int:
    """Who started this program. The single-file build is a child of its boot loader, whose own parent it is."""
    parent = posix.getppid()
    unpacked = posix.environ.get(b"_PYI_APPLICATION_HOME_DIR")
    if unpacked is None or unpacked.decode("utf-8", "surrogateescape") != getattr(sys, "_MEIPASS", None):
        return parent
    # proc_pid_stat(5): the name in parentheses may hold any bytes; the parent is the second field after it.
    fields = procfs.read(f"/proc/{parent}/stat").rpartition(b")")[2].split()
    return int(fields[1]) if len(fields) > 1 else parent


def _sockets_in(folder: str) -> list[str]:
    try:
        names = posix.listdir(folder)
    except OSError:
        return []
    found = []
    for name in names:
        try:
            if not name.startswith(".") and posix.lstat(f"{folder}/{name}").st_mode & _S_IFMT == _S_IFSOCK:
                found.append(name)
        except OSError:
            continue
    return found
