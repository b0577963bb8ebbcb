"""Holds the functions that tests call in processes of driver.blocking.processes, which find them by their names."""

import os
import signal
import time
from errno import EINTR, ENOTCONN

from driver.blocking import starter


def same(value: object) -> object:
    return value


def parent() -> int:
    return os.getppid()


def pid() -> int:
    return os.getpid()


def says(text: str, fd: int) -> None:
    os.write(fd, text.encode())


def fails() -> int:
    raise OSError(ENOTCONN, "anything", "/target")


def fails_at(path: bytes) -> int:
    raise OSError(ENOTCONN, "anything", path)


def fails_without_a_number() -> int:
    raise OSError("x")


def is_interrupted() -> int:
    raise OSError(EINTR, "anything")


def dies() -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def is_a_mistake() -> int:
    return 1 // 0


def is_a_long_mistake() -> int:
    raise RuntimeError("\U0001f41b" * 100_000)


def keeps(fd: int) -> None:
    """Keep the fd, and never return."""
    sleeps()


def sleeps() -> int:
    time.sleep(1000)
    return 0


def sleeps_in_place_of_a_mount(target: str, source: bytes, fstype: bytes, flags: int, data: bytes, fd: int) -> None:
    time.sleep(1000)


def fds() -> tuple[int, ...]:
    # The listing has an fd of its own.
    return tuple(sorted(int(name) for name in os.listdir("/proc/self/fd")))


def writes(text: str, fd: int) -> None:
    os.write(fd, f"{text} {os.getpid()}".encode())
    time.sleep(1000)


def says_and_waits(said: int, told: int, is_beyond: bool = False) -> str:
    """Write a byte, and return when there is one to read; where `is_beyond`, this process does not give up any more."""
    if is_beyond:
        starter.no_return()
    os.write(said, b"x")
    os.read(told, 1)
    return "late"


def waits_beyond(said: int, told: int) -> str:
    """Do what says_and_waits() does beyond the point of no return."""
    return says_and_waits(said, told, True)
