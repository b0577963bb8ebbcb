"""Work that a pod's FUSE program can keep for ever, in a process of its own.

Whoever waits for an answer to a request that a FUSE program has read cannot be killed, and a process whose threads do not
end does not end either: a pod whose program never answers could keep the driver from ever being stopped or replaced. A
forked process that waits in the driver's place has nothing of the driver's, and is nobody's concern when the driver ends.
"""

import errno
import marshal
import os
import select
import signal
from collections.abc import Callable
from typing import NoReturn, TypeVar, cast

import prctl

T = TypeVar("T", bound=bool | int | tuple[int, ...])

_FD_MAX = 1 << 20
_RESULT_MAX = 4096  # bytes; more than a pipe would need somebody who reads


def call(limit: float, work: Callable[[], T]) -> T:
    """The result of `work()`, done in a process of its own; or the OSError that it raised.

    Returns when that process has ended, which is killed after `limit` seconds, and that may be never: to be called in a
    thread of bounded.Threads, which does not keep the driver from ending. Raises OSError where no process can be made.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        driver = os.getpid()
        try:
            pid = os.fork()
            if pid == 0:
                _run(driver, writer, work)
        finally:
            os.close(writer)
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        if not poll.poll(limit * 1000):
            os.kill(pid, signal.SIGKILL)
        said = os.read(reader, _RESULT_MAX)
        os.waitpid(pid, 0)
    finally:
        os.close(reader)
    if not said:
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    result, error, path = marshal.loads(said)
    if error:
        raise OSError(error, os.strerror(error), path)
    return cast(T, result)


def enter(driver: int, fd: int) -> bool:
    """The first thing in a process that was forked from the driver: it keeps `fd` and the standard streams alone.

    Returns False where the driver has ended already.
    """
    # Without the driver nobody would end it.
    prctl.set_pdeathsig(signal.SIGKILL)
    if os.getppid() != driver:
        return False
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    # An fd that another volume's program was given would look alive as long as this process has it.
    os.closerange(3, fd)
    os.closerange(fd + 1, _FD_MAX)
    return True


def _run(driver: int, writer: int, work: Callable[[], T]) -> NoReturn:
    """The process's whole life."""
    try:
        if enter(driver, writer):
            os.write(writer, _told(work))
    finally:
        os._exit(0)


def _told(work: Callable[[], T]) -> bytes:
    try:
        return marshal.dumps((work(), 0, None))
    except OSError as error:
        return marshal.dumps((0, error.errno or errno.EIO, error.filename))
