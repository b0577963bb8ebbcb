"""Runs functions that may never return in processes of their own. This is the driver's side; starter.py is the processes' side.

A thread that waits for a FUSE program to answer a request cannot be killed, and a process does not end before its threads do.
If the driver itself waited, a pod whose program never answers could keep it from being stopped or replaced. A process that
waits in the driver's place does not keep the driver from ending.

Each process does one thing and ends, so it holds nothing of one pod's while it asks another pod's program.
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
from fusermount3_proxy.wire import fdpass

T = TypeVar("T", bound=bool | int | str | tuple[object, ...] | None)

# Seconds until the next spare process is forked. Forking it at once would delay the work of the process that was just taken.
_SPARE_AFTER = 0.02

NO_PROCESS = "no process could be started for it"


class NotAsked(OSError):
    """Reports that no FUSE program was asked, for a reason of the driver's or the node's. It says nothing about the program."""


class Process:
    """Represents a process that does one thing. Leaving its `with` block kills it if it has not answered."""

    def __init__(self, connection: socket.socket, pidfd: int) -> None:
        self._connection = connection
        self._pidfd = pidfd
        self._answer: asyncio.Future[object] | None = None
        self._fds: list[int] = []  # that have come with the answer
        self._is_left = False  # its `with` block has ended
        self._is_given_up = False
        # Settled when the process has ended. That may be long after its answer, or after it was killed: closing its copy of a
        # mount can make it wait for the pod's FUSE program once more.
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(pidfd, self._end)

    def do(self, function: Callable[..., T], *arguments: object, fds: Sequence[int] = ()) -> "asyncio.Future[T]":
        """Call `function(*arguments, *fds)` in the process, with copies of the fds. Call this method once.

        `function` must be one of a module's, and the arguments must be of types that marshal supports. The future that is
        returned gets the function's result or OSError, or NotAsked (EINTR) if the process ended without an answer.
        """
        # The process finds the function by its name, because all modules had been imported when the starter was forked.
        packet = marshal.dumps((function.__module__, function.__qualname__, arguments))  # type: ignore[arg-type]
        self._answer = asyncio.get_running_loop().create_future()
        try:
            socket.send_fds(self._connection, [packet], fds)
            asyncio.get_running_loop().add_reader(self._connection, self._read)
        except OSError as error:
            self.kill()
            self._answer.set_exception(NotAsked(errno.EAGAIN, f"{NO_PROCESS}: {error.strerror}"))
        return cast("asyncio.Future[T]", self._answer)

    def take_fds(self) -> list[int]:
        """Return the fds that have come with the answer, which the caller owns then. Leaving the `with` block closes the others."""
        fds, self._fds = self._fds, []
        return fds

    def kill(self) -> None:
        """Kill the process. It ends at once, unless it waits in the kernel where no signal reaches it. Its work may be done already."""
        if not self.ended.done():
            try:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def give_up(self) -> None:
        """End the process unless it is at a point of no return (starter.no_return()). Then it answers late, and its answer is waited for.

        Leaving the `with` block does not kill it any more. When the answer is there, somebody must call take_fds().
        """
        self._is_given_up = True
        try:
            if not self.ended.done():
                signal.pidfd_send_signal(self._pidfd, starter.GIVE_UP)
                signal.pidfd_send_signal(self._pidfd, signal.SIGCONT)  # one that is stopped gets no other signal but SIGKILL
        except ProcessLookupError:
            pass  # its answer is about to be read

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_given_up:
            return
        self._is_left = True
        fdpass.close_all(self.take_fds())
        if self._answer is None or not self._answer.done():
            self.kill()

    def _read(self) -> None:
        assert self._answer is not None
        asyncio.get_running_loop().remove_reader(self._connection)
        try:
            packet, self._fds, _, _ = socket.recv_fds(self._connection, starter.ANSWER_MAX, starter.FDS_MAX)
            if self._is_left:
                fdpass.close_all(self.take_fds())
            value, number, path = _decode(packet)
        except (ConnectionError, BlockingIOError):
            self._answer.set_exception(NotAsked(errno.EINTR, "the process that should ask it has ended"))
        else:
            if number:
                self._answer.set_exception(OSError(number, os.strerror(number), path))
            else:
                self._answer.set_result(value)
        if not self._answer.cancelled():
            self._answer.exception()  # marks it as retrieved: asyncio would log it if nobody waits for the answer any more

    def _end(self) -> None:
        """Close what belongs to the process, which has ended, after reading its answer if that has not been read yet."""
        if self._answer is not None and not self._answer.done():
            self._read()
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._connection.close()
        self.ended.set_result(None)


class Starter:
    """Represents the process that starts the others. Without it the driver cannot notice a program's death, and must stop."""

    def __init__(self, reduce_privileges: Callable[[], None] | None = None) -> None:
        """Fork the starter. Do this after all imports, and before there are threads or fds of pods.

        `reduce_privileges` is called in the starter; without it, call this after dropping privileges.
        """
        self._requests, self.pid = starter.fork_starter(reduce_privileges)
        self.pidfd = os.pidfd_open(self.pid)
        self._requests.setblocking(False)
        self._spare: asyncio.Task[Process] | None = None

    def keep_spare(self) -> None:
        """Keep one process ready for the next call from now on, because forking one takes longer than checking for a program's death."""
        self._spare = asyncio.get_running_loop().create_task(self._start())

    async def process(self) -> Process:
        """Return the spare process or a new one. Raises NotAsked if none can be started within limits.PROCESS_WAIT."""
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
                await _wait_until_readable(ours)
            return _started(ours)
        except TimeoutError:
            ours.close()  # a process that starts later finds the connection closed, and ends
            raise NotAsked(errno.EAGAIN, f"{NO_PROCESS} within {limits.PROCESS_WAIT:g} s") from None
        except OSError as error:
            ours.close()
            raise _no_process(error) from None
        except BaseException:
            ours.close()
            raise

    def report_end(self) -> None:
        """Report the internal error that has ended the starter, if it was one. Call it when the starter has ended."""
        try:
            _decode(self._requests.recv(starter.ANSWER_MAX))
        except OSError:
            pass  # the starter was killed


async def _wait_until_readable(connection: socket.socket) -> None:
    readable = asyncio.get_running_loop().create_future()

    def settle() -> None:
        if not readable.done():  # as it is where this task was cancelled in the same turn of the event loop
            readable.set_result(None)

    asyncio.get_running_loop().add_reader(connection, settle)
    try:
        await readable
    finally:
        asyncio.get_running_loop().remove_reader(connection)


def _started(connection: socket.socket) -> Process:
    packet, pidfds, _, _ = socket.recv_fds(connection, starter.ANSWER_MAX, 1)
    _, number, _ = _decode(packet)
    if number or not pidfds:
        number = number or errno.EMFILE  # the kernel drops the pidfd if this process has no fd left; nobody could kill it then
        raise OSError(number, os.strerror(number))
    try:
        return Process(connection, pidfds[0])
    except BaseException:
        os.close(pidfds[0])
        raise


def _decode(packet: bytes) -> tuple[object, int, object]:
    """Return the result, errno and path of an answer, and report the internal error in it. Raises BrokenPipeError if it is empty."""
    if not packet:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
    result, number, path, traceback = marshal.loads(packet)
    if traceback:
        try:
            raise _ErrorInProcess(traceback)
        except _ErrorInProcess:
            report_internal_error("working in a process of its own")
    return result, number, path


class _ErrorInProcess(Exception):
    """Holds the traceback of an internal error in another process."""


def _no_process(error: OSError) -> NotAsked:
    return NotAsked(error.errno, f"{NO_PROCESS}: {error.strerror}")
