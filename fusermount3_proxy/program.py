"""Holds what the programs share: converting arguments and paths, writing messages, SIGINT, and closing fds."""

import posix
import sys
from _signal import SIG_DFL, SIGINT, default_int_handler, getsignal
from _signal import signal as set_signal


def to_bytes(text: str) -> bytes:
    """Return the bytes from which Python decoded a command-line argument."""
    return text.encode(sys.getfilesystemencoding(), "surrogateescape")


def to_text(raw: bytes) -> str:
    """Return bytes in the form in which Python has arguments; to_bytes() converts them back."""
    return raw.decode(sys.getfilesystemencoding(), "surrogateescape")


def write(fd: int, text: str) -> None:
    """Write to a standard stream. Errors are ignored: if the stream is closed, the exit code still reports the outcome."""
    try:
        posix.write(fd, to_bytes(text))
    except OSError:
        pass


def restore_sigint() -> None:
    """Let SIGINT end the program without a traceback, as it ends a C program.

    If SIGINT is ignored, as in a shell's background job, it stays ignored.
    """
    if getsignal(SIGINT) is default_int_handler:
        set_signal(SIGINT, SIG_DFL)


def close_others(kept: set[int]) -> None:
    """Close every fd of this process except those in `kept`."""
    try:
        fds = [int(name) for name in posix.listdir("/proc/self/fd")]
    except OSError:
        # Without /proc the open fds are unknown. closerange() is quick even if the limit is a thousand million.
        first = 0
        for fd in (*sorted(kept), posix.sysconf("SC_OPEN_MAX")):
            posix.closerange(first, fd)
            first = fd + 1
        return
    for fd in fds:
        if fd not in kept:
            try:
                posix.close(fd)
            except OSError:
                pass  # listdir() has listed its own fd too, and has closed it
