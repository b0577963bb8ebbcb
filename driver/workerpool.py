"""Processes that do what may last for ever in the driver's place: the driver's side of workers.py.

Whoever waits for an answer to a request that a FUSE program has read cannot be killed, and a process whose threads do not
end does not end either: a pod whose program never answers could keep the driver from ever being stopped or replaced. A
process that waits in the driver's place is nobody's concern when the driver ends.

A worker is made where work waits for one, and ends where none does. One that is kept for ever is followed by another: no
pod's program can make the work of other pods' volumes wait.
"""

import asyncio
import errno
import marshal
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

from driver import workers
from driver.internalerror import report_internal_error
from fusermount3_proxy import limits

T = TypeVar("T", bound=bool | int | tuple[int, ...] | None)

NO_PROCESS = "no process can be had for it"


class NotAsked(OSError):
    """The work was not done, for a reason that lies with the driver or the node: it tells nothing of the program in question."""


class Worker:
    """A process that does one thing after another, for one user after another: each calls release() at the end."""

    def __init__(self, pidfd: int, requests: socket.socket) -> None:
        self._pidfd = pidfd
        self._requests = requests
        self._work: asyncio.Future[object] | None = None  # the last thing that it was to do
        self._is_lost = False  # has ended, or has been told to

    def do(self, function: Callable[..., T], *arguments: object, fds: Sequence[int] = ()) -> "asyncio.Future[T]":
        """Have `function(*arguments, *fds)` done, with copies of those fds that are closed afterwards.

        `function` belongs to a module, and the arguments are of marshal's types. The future is settled when it is done,
        with what it returned or the OSError that it raised; or when the process has ended without, with InterruptedError.
        It says when the worker can be used again, and so it is not to be cancelled. Raises NotAsked.
        """
        # By its name, which the worker has too: all modules were there when its starter was forked.
        packet = marshal.dumps((function.__module__, function.__qualname__, arguments))  # type: ignore[arg-type]
        try:
            socket.send_fds(self._requests, [packet], fds)
        except OSError as error:
            self._is_lost = True
            raise NotAsked(errno.EAGAIN, f"{NO_PROCESS}: {error.strerror}") from None
        work: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(self._requests, self._read, work)
        self._work = work
        return cast("asyncio.Future[T]", work)

    @property
    def has_ended(self) -> bool:
        """Whether it is known to have ended, or was told to."""
        return self._is_lost

    def kill(self) -> None:
        """Make it end, soon, unless it waits where no signal reaches it. Its work may be done all the same."""
        self._is_lost = True
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def release(self) -> None:
        """Nobody uses it any more: hand it to somebody who waits for one, or end it; kill it where its work is not done."""
        if self._work is not None and not self._work.done():
            self.kill()
            self._work.add_done_callback(lambda _: self._close())
        elif self._is_lost or not _known_starter().hand_over(self):
            self._close()  # it reads the end, and ends

    def _close(self) -> None:
        self._requests.close()
        os.close(self._pidfd)

    def _read(self, work: "asyncio.Future[object]") -> None:
        asyncio.get_running_loop().remove_reader(self._requests)
        try:
            said = self._requests.recv(workers.RESULT_MAX)
        except ConnectionResetError:  # it ended with work unread
            said = b""
        if not said:
            self._is_lost = True
        value, number, path, mistake = marshal.loads(said) if said else (None, errno.EINTR, None, "")
        if mistake:
            _report(mistake)
        if not number:
            work.set_result(value)
            return
        # Of EINTR that is InterruptedError.
        work.set_exception(OSError(number, os.strerror(number), path))
        work.exception()  # seen, where nobody waits any more


class _MistakeApart(Exception):
    """The traceback of a mistake of ours in a worker."""


def _report(mistake: str) -> None:
    try:
        raise _MistakeApart(mistake)
    except _MistakeApart:
        report_internal_error("working in a process of its own")


class _Starter:
    """The driver's end of the process that starts workers."""

    def __init__(self) -> None:
        self._socket, self.pidfd = workers.fork_starter()
        self._waiting: deque[asyncio.Future[Worker]] = deque()
        self._is_making = False

    async def worker(self) -> Worker:
        """A worker: one that somebody gives back, or a new one, whichever is first. Raises NotAsked."""
        waiting: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        self._make()
        try:
            async with asyncio.timeout(limits.WORKER_WAIT):
                return await waiting
        except (asyncio.CancelledError, TimeoutError) as error:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            elif waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                waiting.result().release()
            if isinstance(error, TimeoutError):
                raise NotAsked(errno.EAGAIN, f"{NO_PROCESS} within {limits.WORKER_WAIT:g} s") from None
            raise

    def hand_over(self, worker: Worker) -> bool:
        """Give a worker to who has waited longest; False where nobody waits."""
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(worker)
                return True
        return False

    def _make(self) -> None:
        """Have a worker made, one at a time, as long as anybody waits."""
        if self._is_making or not self._waiting:
            return
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            self._fail(error)
            return
        try:
            with theirs:
                socket.send_fds(self._socket, [workers.MAKE_ONE], [theirs.fileno()])
        except OSError as error:
            ours.close()
            self._fail(error)
            return
        self._is_making = True
        asyncio.get_running_loop().add_reader(self._socket, self._made, ours)

    def _made(self, ours: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._is_making = False
        try:
            answer, pidfds, _, _ = socket.recv_fds(self._socket, workers.RESULT_MAX, 1)
            if not answer:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
            if answer != workers.MADE:
                number = marshal.loads(answer)
                raise OSError(number, os.strerror(number))
            if not pidfds:  # there is no fd left for it, and nobody could kill it
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        except OSError as error:
            ours.close()  # one that was made ends by that
            self._fail(error)
            return
        Worker(pidfds[0], ours).release()
        self._make()

    def _fail(self, error: OSError) -> None:
        """There is no room for more processes: all who wait look again later, and the next one to come asks again."""
        waiting, self._waiting = self._waiting, deque()
        for each in waiting:
            if not each.done():
                each.set_exception(NotAsked(error.errno, f"{NO_PROCESS}: {error.strerror}"))


_starter: _Starter | None = None


def begin() -> int:
    """Fork the starter: after all imports and when privileges are dropped, before threads and fds of pods.

    Returns its pidfd, which is readable when it has ended: without it no death is noticed, and the driver must stop.
    """
    global _starter
    _starter = _Starter()
    return _starter.pidfd


async def worker() -> Worker:
    """A process to have work done in. Raises NotAsked where none can be had within limits.WORKER_WAIT."""
    return await _known_starter().worker()


def _known_starter() -> _Starter:
    assert _starter is not None, "begin() comes first"
    return _starter
