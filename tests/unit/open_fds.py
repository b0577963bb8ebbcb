"""Which file descriptors this process has: what a function leaks shows here."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


def open_fds() -> dict[int, str]:
    """Each fd and what it is."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the fd of the listing itself
    return found


@contextmanager
def nothing_leaked() -> Iterator[None]:
    """The block ends without an fd that it began without. Threads that open some meanwhile have to end in it."""
    before = open_fds()
    yield
    assert {fd: what for fd, what in open_fds().items() if before.get(fd) != what} == {}


def same_file(fd: int, other: int) -> bool:
    """Whether two fds are of one file."""
    return os.path.samestat(os.fstat(fd), os.fstat(other))
