"""What both programs of the pod do alike: talk to the terminal, and read and write text of the system."""

import posix
import sys
from _signal import SIG_DFL, SIGINT, default_int_handler, getsignal
from _signal import signal as set_signal


def to_bytes(text: str) -> bytes:
    """An argument, as the bytes that it was."""
    return text.encode(sys.getfilesystemencoding(), "surrogateescape")


def to_text(raw: bytes) -> str:
    """The opposite of to_bytes()."""
    return raw.decode(sys.getfilesystemencoding(), "surrogateescape")


def write(fd: int, text: str) -> None:
    """Write to a standard stream. Where nobody listens the exit code tells."""
    try:
        posix.write(fd, to_bytes(text))
    except OSError:
        pass


def die_of_interrupts() -> None:
    """Die of SIGINT as a C program does, without a traceback. Ignored, as in a shell's background job, it stays so."""
    if getsignal(SIGINT) is default_int_handler:
        set_signal(SIGINT, SIG_DFL)


def close_others(kept: set[int]) -> None:
    """Close every fd but these."""
    try:
        fds = [int(name) for name in posix.listdir("/proc/self/fd")]
    except OSError:
        # Of ranges: the limit may be a thousand million, which the kernel closes at once.
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
                pass  # not open; or the folder's own fd, which is gone already
