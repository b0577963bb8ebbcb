"""Work that a pod's FUSE program can keep for ever, in processes of its own: the driver's side of workers.py.

Whoever waits for an answer to a request that a FUSE program has read cannot be killed, and a process whose threads do not
end does not end either: a pod whose program never answers could keep the driver from ever being stopped or replaced. A
process that waits in the driver's place is nobody's concern when the driver ends.

A worker is made where work waits for one, and ends where none does. One that is kept for ever is followed by another: no
pod's program can make the work of other pods' volumes wait. Each has memory of its own, more than a mebibyte of it, and a
pod may have any number of volumes: so the calls for one pod's share a few workers. Where a server that many pods use is
gone, all of them hang: so the calls of one kind have a number of workers between them, too.
"""

import asyncio
import errno
import marshal
import os
import signal
import socket
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

from driver import workers
from fusermount3_proxy import limits

T = TypeVar("T", bound=bool | int | tuple[int, ...] | None)


_NO_PROCESS = "no process can be had for it"


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
            raise NotAsked(errno.EAGAIN, f"{_NO_PROCESS}: {error.strerror}") from None
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
        value, number, path = marshal.loads(said) if said else (None, errno.EINTR, None)
        if not number:
            work.set_result(value)
            return
        # Of EINTR that is InterruptedError.
        work.set_exception(OSError(number, os.strerror(number), path))
        work.exception()  # seen, where nobody waits any more


class Bound:
    """How many processes the calls of one kind may have: those of a pod, and those of all."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: Counter[str] = Counter()  # by pods that have any
        self._waiting: deque[tuple[str, asyncio.Future[None]]] = deque()  # those for whom there is no room

    async def take(self, pod: str, limit: float) -> None:
        """Take one; NotAsked where there is none for `limit` seconds."""
        if self._has_room(pod):
            self._taken[pod] += 1
            return
        one: tuple[str, asyncio.Future[None]] = (pod, asyncio.get_running_loop().create_future())
        self._waiting.append(one)
        try:
            async with asyncio.timeout(limit):
                await one[1]
        except BaseException as error:
            if one in self._waiting:
                self._waiting.remove(one)
            else:
                self.give_back(pod)
            if isinstance(error, TimeoutError):
                raise NotAsked(errno.EAGAIN, self._reason(pod)) from None
            raise

    def give_back(self, pod: str) -> None:
        """Give one back. Those who have waited longest and for whom there is room now get theirs.

        That may be two: the pod that has none now may have one of the second half.
        """
        self._taken[pod] -= 1
        if not self._taken[pod]:
            del self._taken[pod]
        for one in list(self._waiting):
            if self._has_room(one[0]) and not one[1].done():
                self._waiting.remove(one)
                self._taken[one[0]] += 1
                one[1].set_result(None)

    def _has_room(self, pod: str) -> bool:
        its = self._taken.get(pod, 0)
        if its >= limits.PROCESSES_OF_A_POD:
            return False
        # The second half is for pods that have none: else a few pods could have all of them, and nobody else's were asked.
        return self._taken.total() < (self._most // 2 if its else self._most)

    def _reason(self, pod: str) -> str:
        if _known_starter().is_waited_for:  # by those who have taken all
            return _NO_PROCESS
        if self._taken.get(pod, 0) >= limits.PROCESSES_OF_A_POD:
            return "other programs of the same pod do not answer"
        return "too many FUSE programs of this node do not answer"


# Where a server that many pods use is gone, all kinds are full but LOOKS: what that asks about has mostly died, and answers.
QUESTIONS = Bound(limits.PROCESSES_THAT_ASK)
RENEWALS = Bound(limits.PROCESSES_THAT_RENEW)
LOOKS = Bound(limits.PROCESSES_THAT_LOOK)
LOOKS_WITHOUT_LOCK = Bound(limits.PROCESSES_THAT_LOOK_WITHOUT_LOCK)


class Caller:
    """Calls of one kind for one volume, one at a time: what its pod's program never answers keeps one process at most."""

    __slots__ = ("_at_work", "_bound")  # each volume has some

    def __init__(self, bound: Bound = QUESTIONS) -> None:
        """`bound` is that of all calls of the kind."""
        self._bound = bound
        self._at_work: asyncio.Future[None] | None = None

    async def call(self, pod: str, limit: float, function: Callable[..., T], *arguments: object) -> T:
        """The result of `function(*arguments)`, done in a process of its own; or the OSError that it raised.

        Raises TimeoutError where a former call keeps its process for `limit` seconds from now, or this one from the start of
        its work. Raises NotAsked where others keep all processes for `limit` seconds from now; where none can be made, which
        may take limits.WORKER_WAIT more; and where it has ended without a result.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + limit
        while self._at_work is not None:
            await asyncio.wait([self._at_work], timeout=end - loop.time())
            if self._at_work is not None and loop.time() >= end:
                raise _timed_out()
        self._at_work = loop.create_future()
        try:
            await self._bound.take(pod, end - loop.time())
            try:
                one = await worker()
            except BaseException:
                self._bound.give_back(pod)
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
            if one.has_ended:  # by whoever killed it: nobody knows how far it came
                raise NotAsked(errno.EIO, "the process that was to ask it has ended")
            return work.result()
        finally:
            one.release()
            if work is None:
                self._end_call(pod)
            else:
                work.add_done_callback(lambda _: self._end_call(pod))

    def _end_call(self, pod: str) -> None:
        self._bound.give_back(pod)
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
                raise NotAsked(errno.EAGAIN, f"{_NO_PROCESS} within {limits.WORKER_WAIT:g} s") from None
            raise

    @property
    def is_waited_for(self) -> bool:
        """Whether anybody waits for a worker."""
        return bool(self._waiting)

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
                each.set_exception(NotAsked(error.errno, f"{_NO_PROCESS}: {error.strerror}"))


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
