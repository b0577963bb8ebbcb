"""Runs in the starter and in the one-shot processes that it forks. processes.py is the driver's side.

Each process does one thing, answers, and ends. It is forked by the starter, and the starter is forked before the driver has
anything of a pod's. A process forked from the driver would begin with a copy of every fd that the driver has. It could then be
the last one to drop fds that a pod has queued in a connection, and block there, and it would keep connections open that the
driver has closed.

These processes keep no stream and no working directory of the driver's. A process that still waits for a silent FUSE program
when the driver is killed would keep the container's output open, and the engine would report that the container still runs.

The driver sends START to the starter, with one end of a socket pair. The new process sends its pidfd through it, receives one
packet (module, function, arguments) with fds, and sends its answer (result, errno, path, traceback of an internal error). So no
other process gets an fd of the pod's. Packets are encoded with marshal, because all these processes are the same program.
"""

import errno
import marshal
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import NoReturn

import prctl

START = b"\0"
GIVE_UP = signal.SIGUSR2  # ends a process that has not called no_return()
ANSWER_MAX = 8192  # bytes
FDS_MAX = 4  # of one call, and of one answer
_PACKET_MAX = 1 << 17  # bytes of one call: a path, and mount options, for which a pod's packet has room for half as many
_TRACEBACK_MAX = ANSWER_MAX // 8  # characters of up to four bytes each; the end of a traceback is the useful part
_FD_MAX = 1 << 20


@dataclass(frozen=True)
class WithFds:
    """What a function returns whose result comes with fds. The process ends with its copies of them."""

    result: object
    fds: list[int]


def fork_starter(reduce_privileges: Callable[[], None] | None = None) -> tuple[socket.socket, int]:
    """Fork the starter. Returns the driver's end of the connection to it, and its pid.

    `reduce_privileges` is called in it first.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    driver = os.getpid()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _run_forked(driver, theirs.fileno(), _start_processes, reduce_privileges)
    theirs.close()
    return ours, pid


def _run_forked(parent: int, fd: int, main: Callable[[socket.socket], None], prepare: Callable[[], None] | None = None) -> NoReturn:
    """Run `main` with the socket `fd`, and end this process, which was just forked. The process is killed when its parent ends.

    `prepare` is called first.
    """
    try:
        driver = socket.socket(fileno=fd)
        try:
            if prepare is not None:
                prepare()  # the kernel forgets what _die_with() asks for when a process changes its capabilities (prctl(2))
            if _die_with(parent):
                _close_other_files(fd)
                main(driver)
        except BaseException as error:
            driver.send(_encode_answer(number=errno.EIO, internal_error=_traceback(error, error.__traceback__)))
    finally:
        os._exit(0)


def _start_processes(driver: socket.socket) -> None:
    """Start a process for each request, until the driver has closed its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps them
    starter = os.getpid()
    while True:
        packet, fds, _, _ = socket.recv_fds(driver, len(START), 1)
        if not packet:
            return
        for fd in fds:
            with socket.socket(fileno=fd) as theirs:
                try:
                    if os.fork() == 0:
                        _run_forked(starter, fd, _do_one_thing)
                except OSError as error:
                    theirs.send(_encode_answer(number=error.errno or errno.EAGAIN))


def _do_one_thing(driver: socket.socket) -> None:
    """Receive one call, make it, and send the answer. Returns without a call if the driver closes the connection."""
    try:
        pidfd = os.pidfd_open(os.getpid())
    except OSError as error:
        driver.send(_encode_answer(number=error.errno or errno.EAGAIN))
        return
    socket.send_fds(driver, [_encode_answer()], [pidfd])
    os.close(pidfd)
    packet, fds, _, _ = socket.recv_fds(driver, _PACKET_MAX, FDS_MAX)
    if packet:
        answer, with_it = _call(packet, fds)
        socket.send_fds(driver, [answer], with_it)


def _call(packet: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    module, name, arguments = marshal.loads(packet)
    try:
        result = getattr(sys.modules[module], name)(*arguments, *fds)
        if isinstance(result, WithFds):
            return _encode_answer(result.result), result.fds
        return _encode_answer(result), []
    except OSError as error:
        number = error.errno or errno.EIO
        answer = _encode_answer(number=number, path=error.filename)
        # A path inside a pod's file system can have any length.
        return (answer if len(answer) <= ANSWER_MAX else _encode_answer(number=number)), []


def no_return() -> None:
    """Let GIVE_UP not end this process any more, because only its answer tells what it has done from now on."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (GIVE_UP,))


def _encode_answer(result: object = None, number: int = 0, path: object = None, internal_error: str = "") -> bytes:
    return marshal.dumps((result, number, path, internal_error[-_TRACEBACK_MAX:]))  # type: ignore[arg-type]


def _traceback(error: BaseException, at: TracebackType | None) -> str:
    """Return the traceback without the source's lines: the traceback module opens the files, by paths that may be a container's here."""
    lines = ["Traceback (most recent call last):"]
    while at is not None:
        code = at.tb_frame.f_code
        lines.append(f'  File "{code.co_filename}", line {at.tb_lineno}, in {code.co_name}')
        at = at.tb_next
    return "\n".join([*lines, f"{type(error).__name__}: {error}", ""])


def _die_with(parent: int) -> bool:
    """Have the kernel kill this process when its parent ends. Returns False if the parent has ended already."""
    prctl.set_pdeathsig(signal.SIGKILL)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # a terminal sends them to all its processes; the driver decides when this one ends
    return os.getppid() == parent


def _close_other_files(kept: int) -> None:
    """Close every fd but `kept`, open /dev/null as the standard streams, and leave the driver's working directory."""
    os.closerange(3, kept)
    os.closerange(kept + 1, _FD_MAX)
    null = os.open("/dev/null", os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)
    os.chdir("/")
