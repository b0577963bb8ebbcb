"""Lists the file descriptors of this process, to find those that a function leaks."""

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

_PATIENCE = 5.0  # seconds


def open_fds() -> dict[int, str]:
    """Return each fd, and what it is open on."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the fd of the listing itself
    return found


@contextmanager
def nothing_leaked() -> Iterator[None]:
    """Check that the block leaves no new fd open. A thread of the block may close its fds a moment later."""
    before = open_fds()
    yield
    until = time.monotonic() + _PATIENCE
    while (leaked := {fd: what for fd, what in open_fds().items() if before.get(fd) != what}) and time.monotonic() < until:
        time.sleep(0.01)
    assert leaked == {}


def same_file(fd: int, other: int) -> bool:
    """Return whether two fds are open on the same file."""
    return os.path.samestat(os.fstat(fd), os.fstat(other))


@contextmanager
def no_more_fds() -> Iterator[None]:
    """Let this process open no more fds in the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)  # the lowest number that is free
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
