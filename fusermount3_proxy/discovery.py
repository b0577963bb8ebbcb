"""Finds the driver's socket: a volume's, or the one of the container's fuse device.

go-fuse (gocryptfs, rclone mount2, JuiceFS) starts fusermount3 with only `_FUSE_COMMFD=3` in the environment. So fusermount3
also searches its parent's environment for the variable that the image's author set.
"""

import posix
import sys

from fusermount3_proxy import procfs
from fusermount3_proxy.wire.protocol import DEVICE_SOCKET, V1_SUFFIX

VARIABLE = "FUSERMOUNT3PROXY_FDPASSING_SOCKPATH"
FOLDER = "/fusermount3-proxy"  # the examples and the Go plugin's manifests mount the emptyDir here

_S_IFMT = 0o170000
_S_IFDIR = 0o040000
_S_IFSOCK = 0o140000


class NoSocket(Exception):
    """Reports that there is no socket. The text names the places that were searched, and what to do."""


class SeveralSockets(NoSocket):
    """Reports that there is more than one socket, at `paths`."""

    def __init__(self, text: str, paths: list[str]) -> None:
        super().__init__(text)
        self.paths = paths


def has_device() -> bool:
    """Return whether the container has a fuse device, and no program says that it wants a volume by setting VARIABLE."""
    return _kind(DEVICE_SOCKET + V1_SUFFIX) == _S_IFSOCK and not _variable()


def find_socket(folder: str = FOLDER) -> str:
    """Return the path of the original protocol's socket. With V1_SUFFIX it is the path of protocol v1's socket.

    It is looked for in this order: the value of VARIABLE in the program's environment, that in its parent's environment, the only
    socket in `folder`. A value that is a folder means the only socket in it, and one that is the path of protocol v1's socket means
    the other socket of the pair. Raises NoSocket, SeveralSockets.
    """
    value = _variable()
    if not value:
        return _only_socket(folder, f"{VARIABLE} is not set")
    if value.endswith(V1_SUFFIX) and _kind(value + V1_SUFFIX) == 0:
        return value.removesuffix(V1_SUFFIX)
    if _kind(value) == _S_IFDIR:
        return _only_socket(value.rstrip("/") or "/", f"{VARIABLE} names a folder")
    return value


def _only_socket(folder: str, reason: str) -> str:
    names = sorted({name.removesuffix(V1_SUFFIX) for name in _sockets_in(folder)})
    if not names:
        text = f"{reason} and there is no socket in {folder}; set {VARIABLE} to the path of the volume's socket"
        raise NoSocket(f"{text}, or give this container a fuse device")
    paths = [f"{folder}/{name}" for name in names]
    if len(names) > 1:
        text = f"{reason} and {folder} holds more than one socket ({', '.join(names)}); set {VARIABLE} to the path of one"
        raise SeveralSockets(text, paths)
    return paths[0]


def _variable() -> str:
    return (posix.environ.get(VARIABLE.encode()) or _parents_variable() or b"").decode("utf-8", "surrogateescape")


def _kind(path: str) -> int:
    """Return the file type bits of the mode; 0 if the file cannot be found."""
    try:
        return posix.stat(path).st_mode & _S_IFMT
    except (OSError, ValueError):
        return 0


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
    """Return the pid of the process that started this program."""
    parent = posix.getppid()
    unpacked = posix.environ.get(b"_PYI_APPLICATION_HOME_DIR")
    if unpacked is None or unpacked.decode("utf-8", "surrogateescape") != getattr(sys, "_MEIPASS", None):
        return parent
    # The parent is the boot loader of the single file, which is started by the process that we search.
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
