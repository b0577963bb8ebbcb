"""Work that a pod's FUSE program can keep for ever, in a process of its own.

Whoever waits for an answer to a request that a FUSE program has read cannot be killed, and a process whose threads do not
end does not end either: a pod whose program never answers could keep the driver from ever being stopped or replaced. A
process that waits in the driver's place is nobody's concern when the driver ends.

Such processes are forked by another one, the starter, which was forked before the driver had anything of a pod's. One that
was forked from the driver itself would begin with a copy of every fd that the driver has: it could be the last to drop what
another pod has queued in a connection and block there, and it would keep alive what others think is closed.
"""

import errno
import marshal
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar, cast

import prctl

T = TypeVar("T", bound=bool | int | tuple[int, ...] | None)

_PACKET_MAX = 1 << 16  # a job's arguments: paths and mount options
_RESULT_MAX = 4096  # bytes; more than a pipe takes would need somebody who reads
_FD_MAX = 1 << 20
_STARTED = b"\0"  # the starter's answer; otherwise it is an errno
_END_LAST = b"\1"  # in place of a job: end the one before


class Job:
    """A process that does one thing. `reader` becomes readable when it has a result, and ends with the process."""

    def __init__(self, pidfd: int, reader: int) -> None:
        self.reader = reader
        self._pidfd = pidfd
        self._said = b""

    def read(self) -> bool:
        """Take what there is to read; whether the process has ended. Blocks where there is nothing."""
        part = os.read(self.reader, _RESULT_MAX)
        self._said += part
        return not part

    def result(self) -> object:
        """What the work returned. Raises the OSError that it raised, and InterruptedError where the process was killed."""
        if not self._said:
            raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
        value, number, path = marshal.loads(self._said)
        if number:
            raise OSError(number, os.strerror(number), path)
        return cast(object, value)

    def kill(self) -> None:
        """Make it end, soon, unless it waits where no signal reaches it."""
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def close(self) -> None:
        """Forget it."""
        os.close(self.reader)
        os.close(self._pidfd)


class _Starter:
    """The driver's end of the process that starts others."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        driver = os.getpid()
        pid = os.fork()
        if pid == 0:
            ours.close()
            _serve(driver, theirs)
        theirs.close()
        self.pidfd = os.pidfd_open(pid)
        self._socket = ours
        self._lock = threading.Lock()

    def start(self, function: Callable[..., T], arguments: tuple[object, ...], fds: Sequence[int]) -> Job:
        # By its name, which the starter has too: all modules were there when it was forked.
        packet = marshal.dumps((function.__module__, function.__qualname__, arguments))  # type: ignore[arg-type]
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            with self._lock:
                socket.send_fds(self._socket, [packet], [writer, *fds])
                answer, received, _, _ = socket.recv_fds(self._socket, _RESULT_MAX, 1)
            if not answer:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
            if not received:
                if answer != _STARTED:
                    number = marshal.loads(answer)
                    raise OSError(number, os.strerror(number))
                # There is no fd left here for its pidfd, and nobody could end it.
                self._socket.send(_END_LAST)
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return Job(received[0], reader)
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)


_starter: _Starter | None = None


def begin() -> int:
    """Fork the starter: after all imports and when privileges are dropped, before threads and fds of pods.

    Returns its pidfd, which is readable when it has ended: without it no death is noticed, and the driver must stop.
    """
    global _starter
    _starter = _Starter()
    return _starter.pidfd


def start(function: Callable[..., T], *arguments: object, fds: Sequence[int] = ()) -> Job:
    """Have `function(*arguments, *fds)` done in a process of its own, which has those fds and the standard streams alone.

    `function` belongs to a module, and the arguments are of marshal's types. Raises OSError where no process can be made.
    """
    assert _starter is not None, "begin() comes first"
    return _starter.start(function, arguments, fds)


def call(limit: float, function: Callable[..., T], *arguments: object) -> T:
    """The result of `function(*arguments)`, done in a process of its own; or the OSError that it raised.

    Returns when that process has ended, which is killed after `limit` seconds, and that may be never: to be called in a
    thread of bounded.Threads, which does not keep the driver from ending. Raises OSError where no process can be made, and
    TimeoutError.
    """
    job = start(function, *arguments)
    try:
        poll = select.poll()
        poll.register(job.reader, select.POLLIN)
        if not poll.poll(limit * 1000):
            job.kill()
        while not job.read():
            pass
        try:
            return cast(T, job.result())
        except InterruptedError:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None
    finally:
        job.close()


# ---- the starter's side


def _serve(driver: int, requests: socket.socket) -> NoReturn:
    """The starter's whole life: it ends with the driver."""
    try:
        if _end_with(driver):
            _keep({requests.fileno()})
            _take_requests(requests)
    finally:
        os._exit(0)


def _take_requests(requests: socket.socket) -> None:
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    running: set[int] = set()
    pidfd = -1
    while True:
        for fd, _ in poll.poll():
            if fd != requests.fileno():  # the pidfd of one that has ended
                running.discard(fd)
                poll.unregister(fd)
                os.waitid(os.P_PIDFD, fd, os.WEXITED)
                os.close(fd)
                continue
            packet, fds, _, _ = socket.recv_fds(requests, _PACKET_MAX, 4)
            if not packet:
                return
            if packet == _END_LAST:
                if pidfd in running:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                continue
            try:
                pidfd = _fork(packet, fds)
            except OSError as error:
                requests.send(marshal.dumps(error.errno or errno.EAGAIN))
                continue
            finally:
                for each in fds:
                    os.close(each)
            poll.register(pidfd, select.POLLIN)
            running.add(pidfd)
            socket.send_fds(requests, [_STARTED], [pidfd])


def _fork(packet: bytes, fds: list[int]) -> int:
    """Start a job; its pidfd."""
    starter = os.getpid()
    pid = os.fork()
    if pid == 0:
        _run(starter, packet, fds)
    try:
        return os.pidfd_open(pid)
    except BaseException:
        # Nobody could end it.
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def _run(starter: int, packet: bytes, fds: list[int]) -> NoReturn:
    """A job's whole life."""
    try:
        if _end_with(starter):
            _keep(set(fds))
            os.write(fds[0], _told(packet, fds[1:]))
    finally:
        os._exit(0)


def _told(packet: bytes, fds: list[int]) -> bytes:
    module, name, arguments = marshal.loads(packet)
    try:
        return marshal.dumps((getattr(sys.modules[module], name)(*arguments, *fds), 0, None))
    except OSError as error:
        return marshal.dumps((None, error.errno or errno.EIO, error.filename))


def _end_with(parent: int) -> bool:
    """Die with the process that has forked this one; False where that has ended already."""
    prctl.set_pdeathsig(signal.SIGKILL)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # a terminal's are for the driver, which ends it
    return os.getppid() == parent


def _keep(kept: set[int]) -> None:
    """Close every fd but these and the standard streams."""
    low = 3
    for fd in sorted(kept):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, _FD_MAX)
