"""Work that a pod's FUSE program can keep for ever, in processes of its own: the driver's side of workers.py.

Whoever waits for an answer to a request that a FUSE program has read cannot be killed, and a process whose threads do not
end does not end either: a pod whose program never answers could keep the driver from ever being stopped or replaced. A
process that waits in the driver's place is nobody's concern when the driver ends.

A worker is made where work waits for one, and ends where none does. One that is kept for ever is followed by another: no
pod's program can make the work of other pods' volumes wait. Each has memory of its own, more than a mebibyte of it, and a
pod may have any number of volumes: so the calls for one pod's share a few workers.
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
from fusermount3_proxy import limits

T = TypeVar("T", bound=bool | int | tuple[int, ...] | None)


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
        It says when the worker can be used again, and so it is not to be cancelled. Raises OSError.
        """
        # By its name, which the worker has too: all modules were there when its starter was forked.
        packet = marshal.dumps((function.__module__, function.__qualname__, arguments))  # type: ignore[arg-type]
        try:
            socket.send_fds(self._requests, [packet], fds)
        except OSError:
            self._is_lost = True
            raise
        work: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(self._requests, self._read, work)
        self._work = work
        return cast("asyncio.Future[T]", work)

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
        value, number, path = marshal.loads(said) if said else (None, errno.EINTR, None)
        if not number:
            work.set_result(value)
            return
        # Of EINTR that is InterruptedError.
        work.set_exception(OSError(number, os.strerror(number), path))
        work.exception()  # seen, where nobody waits any more


class Busy(TimeoutError):
    """Nobody was asked: the pod's other programs do not answer, and keep all processes that work for it."""

    def __init__(self) -> None:
        super().__init__(errno.ETIMEDOUT, "other programs of the same pod do not answer")


class _Share:
    """The processes that one pod's calls of a kind may have."""

    __slots__ = ("free", "users")

    def __init__(self) -> None:
        self.free = asyncio.Semaphore(limits.PROCESSES_OF_A_POD)
        self.users = 0  # who have a part of it, or wait for one


_shares: dict[str, _Share] = {}  # those that have users


async def _take_part(name: str, limit: float) -> None:
    share = _shares.setdefault(name, _Share())
    share.users += 1
    try:
        async with asyncio.timeout(limit):
            await share.free.acquire()
    except BaseException as error:
        _forget(name, share)
        if isinstance(error, TimeoutError):
            raise Busy from None
        raise


def _give_back(name: str) -> None:
    share = _shares[name]
    share.free.release()
    _forget(name, share)


def _forget(name: str, share: _Share) -> None:
    share.users -= 1
    if not share.users:
        del _shares[name]


class Caller:
    """Calls of one kind for one volume, one at a time: what its pod's program never answers keeps one process at most."""

    __slots__ = ("_at_work",)  # each volume has some

    def __init__(self) -> None:
        self._at_work: asyncio.Future[None] | None = None

    async def call(self, share: str, limit: float, function: Callable[..., T], *arguments: object) -> T:
        """The result of `function(*arguments)`, done in a process of its own; or the OSError that it raised.

        All calls with the same `share` have limits.PROCESSES_OF_A_POD between them. Raises TimeoutError where a former call
        keeps its process for `limit` seconds from now, or this one from the start of its work; Busy where others of the
        share keep theirs for `limit` seconds from now; and OSError where no process can be made, or it has ended without a
        result.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + limit
        while self._at_work is not None:
            await asyncio.wait([self._at_work], timeout=end - loop.time())
            if self._at_work is not None and loop.time() >= end:
                raise _timed_out()
        self._at_work = loop.create_future()
        try:
            await _take_part(share, end - loop.time())
            try:
                one = await worker()
            except BaseException:
                _give_back(share)
                raise
        except BaseException:
            self._end()
            raise
        work: asyncio.Future[T] | None = None
        try:
            work = one.do(function, *arguments)
            await asyncio.wait([work], timeout=limit)  # which does not cancel it
            if not work.done():
                raise _timed_out()
            return work.result()
        except InterruptedError:
            raise OSError(errno.EIO, "its process has ended") from None
        finally:
            one.release()
            if work is None:
                self._end_call(share)
            else:
                work.add_done_callback(lambda _: self._end_call(share))

    def _end_call(self, share: str) -> None:
        _give_back(share)
        self._end()

    def _end(self) -> None:
        at_work, self._at_work = self._at_work, None
        if at_work is not None:
            at_work.set_result(None)


def _timed_out() -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


class _Starter:
    """The driver's end of the process that starts workers."""

    def __init__(self) -> None:
        self._socket, self.pidfd = workers.fork_starter()
        self._waiting: deque[asyncio.Future[Worker]] = deque()
        self._is_making = False

    async def worker(self) -> Worker:
        """A worker: one that somebody gives back, or a new one, whichever is first. Raises OSError, TimeoutError."""
        waiting: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        self._make()
        try:
            async with asyncio.timeout(limits.WORKER_WAIT):
                return await waiting
        except (asyncio.CancelledError, TimeoutError):
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                waiting.result().release()
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
                each.set_exception(OSError(error.errno, error.strerror))


_starter: _Starter | None = None


def begin() -> int:
    """Fork the starter: after all imports and when privileges are dropped, before threads and fds of pods.

    Returns its pidfd, which is readable when it has ended: without it no death is noticed, and the driver must stop.
    """
    global _starter
    _starter = _Starter()
    return _starter.pidfd


async def worker() -> Worker:
    """A process to have work done in. Raises OSError where none can be made."""
    return await _known_starter().worker()


def _known_starter() -> _Starter:
    assert _starter is not None, "begin() comes first"
    return _starter
