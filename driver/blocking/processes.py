"""Processes that do what may last for ever in the driver's place: the driver's side of starter.py.

A process that waits for an answer to a request that a FUSE program has read cannot be killed, and a process whose threads do not
end does not end either: a pod whose program never answers could keep the driver from ever being stopped or replaced. A
process that waits in the driver's place keeps nobody when the driver ends.

Each process does one thing and ends, so that nothing of one pod's is there when the next one's program is asked.
"""

import asyncio
import errno
import marshal
import os
import signal
import socket
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

from driver.blocking import starter
from driver.model import limits
from driver.observe.internalerror import report_internal_error

T = TypeVar("T", bound=bool | int | tuple[int, ...] | None)

# Seconds until the next spare process is forked. At once, it would take the processor from what the last one is for.
_SPARE_AFTER = 0.02

NO_PROCESS = "no process can be had for it"


class NotAsked(OSError):
    """Says that the work was not done, for a reason that lies with the driver or the node and tells nothing of the FUSE program."""


class Process:
    """One process, which does one thing. Leaving its `with` block lets it go, and kills it where it has not answered."""

    def __init__(self, connection: socket.socket, pidfd: int) -> None:
        self._connection = connection
        self._pidfd = pidfd
        self._answer: asyncio.Future[object] | None = None
        # Settled when nothing is left of it. That may be long after its answer, or after it was killed: closing its
        # copy of a mount can make it wait for the pod's FUSE program once more.
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(pidfd, self._end)

    def do(self, function: Callable[..., T], *arguments: object, fds: Sequence[int] = ()) -> "asyncio.Future[T]":
        """Have `function(*arguments, *fds)` done with copies of those fds. Called once.

        `function` belongs to a module, and the arguments are of marshal's types. The future is settled with what it
        returned or the OSError that it raised; where the process has ended without an answer, with NotAsked (EINTR).
        """
        # By its name, which the process knows too: all modules were there when the starter was forked.
        packet = marshal.dumps((function.__module__, function.__qualname__, arguments))  # type: ignore[arg-type]
        self._answer = asyncio.get_running_loop().create_future()
        try:
            socket.send_fds(self._connection, [packet], fds)
        except OSError as error:
            self._answer.set_exception(NotAsked(errno.EAGAIN, f"{NO_PROCESS}: {error.strerror}"))
        else:
            asyncio.get_running_loop().add_reader(self._connection, self._read)
        return cast("asyncio.Future[T]", self._answer)

    def kill(self) -> None:
        """Make it end, soon, unless it waits where no signal reaches it. Its work may be done all the same."""
        if not self.ended.done():
            try:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        if self._answer is None or not self._answer.done():
            self.kill()

    def _read(self) -> None:
        assert self._answer is not None
        asyncio.get_running_loop().remove_reader(self._connection)
        try:
            value, number, path = _decoded(self._connection.recv(starter.ANSWER_MAX))
        except (ConnectionError, BlockingIOError):
            self._answer.set_exception(NotAsked(errno.EINTR, "the process that was to ask it has ended"))
        else:
            if number:
                self._answer.set_exception(OSError(number, os.strerror(number), path))
            else:
                self._answer.set_result(value)
        if not self._answer.cancelled():
            self._answer.exception()  # seen, where nobody waits any more

    def _end(self) -> None:
        """Forget the process, which has ended. What it said last may not be read yet."""
        if self._answer is not None and not self._answer.done():
            self._read()
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._connection.close()
        self.ended.set_result(None)


class Starter:
    """The process that starts the others. Without it no death is noticed, and the driver must stop."""

    def __init__(self) -> None:
        """Fork it: after all imports and when privileges are dropped, before there are threads and fds of pods."""
        self._requests, self.pidfd = starter.fork_starter()
        self._requests.setblocking(False)
        self._spare: asyncio.Task[Process] | None = None

    def keep_spare(self) -> None:
        """Have a process ready from now on, for who comes next: to fork it takes longer than to notice a program's death."""
        self._spare = asyncio.get_running_loop().create_task(self._start())

    async def process(self) -> Process:
        """Return a new process, or the spare one. Raises NotAsked where none can be made within limits.PROCESS_WAIT."""
        if self._spare is None or not self._spare.done():
            return await self._start()
        spare, self._spare = self._spare, None
        asyncio.get_running_loop().call_later(_SPARE_AFTER, self.keep_spare)
        if spare.exception() is None and not spare.result().ended.done():
            return spare.result()
        return await self._start()

    async def _start(self) -> Process:
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise _no_process(error) from None
        ours.setblocking(False)
        try:
            with theirs:
                socket.send_fds(self._requests, [starter.START], [theirs.fileno()])
            async with asyncio.timeout(limits.PROCESS_WAIT):
                await _readable(ours)
            return _started(ours)
        except TimeoutError:
            ours.close()  # a process that comes later reads the end, and ends
            raise NotAsked(errno.EAGAIN, f"{NO_PROCESS} within {limits.PROCESS_WAIT:g} s") from None
        except OSError as error:
            ours.close()
            raise _no_process(error) from None
        except BaseException:
            ours.close()
            raise

    def report_mistake(self) -> None:
        """Report the mistake of ours that it has ended by, if it was one. Called when it has ended."""
        try:
            _decoded(self._requests.recv(starter.ANSWER_MAX))
        except OSError:
            pass  # it was killed


async def _readable(connection: socket.socket) -> None:
    readable = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().add_reader(connection, readable.set_result, None)
    try:
        await readable
    finally:
        asyncio.get_running_loop().remove_reader(connection)


def _started(connection: socket.socket) -> Process:
    packet, pidfds, _, _ = socket.recv_fds(connection, starter.ANSWER_MAX, 1)
    _, number, _ = _decoded(packet)
    if number or not pidfds:  # without a pidfd, for which this process has no fd left, nobody could kill it
        number = number or errno.EMFILE
        raise OSError(number, os.strerror(number))
    return Process(connection, pidfds[0])


def _decoded(packet: bytes) -> tuple[object, int, object]:
    """Return the result, errno and path of an answer. A mistake of ours is reported. Raises BrokenPipeError where there is no answer."""
    if not packet:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
    result, number, path, mistake = marshal.loads(packet)
    if mistake:
        try:
            raise _MistakeElsewhere(mistake)
        except _MistakeElsewhere:
            report_internal_error("working in a process of its own")
    return result, number, path


class _MistakeElsewhere(Exception):
    """Holds the traceback of a mistake of ours in another process."""


def _no_process(error: OSError) -> NotAsked:
    return NotAsked(error.errno, f"{NO_PROCESS}: {error.strerror}")
