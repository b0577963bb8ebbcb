"""Checks the paths of the Unix sockets at which the driver serves."""

import os
import socket
import stat
from collections.abc import Iterable

from driver.errors import StartError


def socket_path(endpoint: str) -> str:
    """Return the path of a CSI endpoint, unix:PATH or unix://PATH. Raises StartError."""
    scheme, colon, rest = endpoint.partition(":")
    path = rest[2:] if rest.startswith("//") else rest
    if scheme != "unix" or not colon or not path.strip("/"):
        raise StartError(f"--endpoint {endpoint!r} is not unix:PATH")
    if len(os.fsencode(path)) > 107:
        raise StartError(f"--endpoint {endpoint!r}: the path is longer than 107 bytes, the most that a Unix socket may have")
    return path


def refuse_if_served(path: str, option: str) -> None:
    """Raises StartError where another process listens at a path, or something else has it."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise StartError(f"{option}: {path} exists and is no socket; remove it or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except OSError:
            return
    raise StartError(f"{option}: another process serves {path}; stop it first")


def removed(paths: Iterable[str]) -> str:
    """Say which of the sockets at `paths` is gone, by which kubelet reaches the driver, and what to do; "" where none is."""
    gone = [path for path in paths if not os.path.lexists(path)]
    return f"somebody has removed {' and '.join(gone)}, by which kubelet reaches the driver: restart the driver" if gone else ""
