"""Which file descriptors this process has: what a function leaks shows here."""

import os
import resource
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


@contextmanager
def no_more_fds() -> Iterator[None]:
    """In the block this process may not get another fd."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)  # the lowest number that is free
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
