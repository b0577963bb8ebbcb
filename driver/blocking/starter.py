"""Starts the processes that work in the driver's place, and is what they do (processes.py has the driver's side).

Each process does one thing, answers, and ends. The starter forks it, and was itself forked before the driver had anything of
a pod's. A process that was forked from the driver would begin with a copy of every fd that the driver has: it could be the last
to drop what another pod has queued in a connection and block there, and it would keep alive what others think is closed.

None of them has a stream or a folder of the driver's: one that is left behind with a silent FUSE program, when the driver is
killed, would keep the container's output open, and the engine would say that the container still runs.

The driver sends the starter START with one end of a socket pair. The process sends its pidfd through it, receives one packet
(module, function, arguments) with fds, and sends its answer (result, errno, path, traceback of a mistake of ours). So an fd of a
pod's goes to that process alone. All packets are in marshal's form, since all these processes are the same program.
"""

import errno
import marshal
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

import prctl

START = b"\0"
ANSWER_MAX = 8192  # bytes
_PACKET_MAX = 1 << 17  # the arguments: mount options, which come in a packet of half of that, and a path
_TRACEBACK_MAX = ANSWER_MAX // 8  # characters, each of up to four bytes; the last lines say the most
_FD_MAX = 1 << 20


def fork_starter() -> tuple[socket.socket, int]:
    """Fork the starter. Returns the socket to ask it by, and its pidfd."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    driver = os.getpid()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _live(driver, theirs.fileno(), _start_processes)
    theirs.close()
    return ours, os.pidfd_open(pid)


def _live(parent: int, fd: int, life: Callable[[socket.socket], None]) -> NoReturn:
    """Do all that this process, which was forked just now, does: `life` with the socket `fd`. It ends with its parent."""
    try:
        driver = socket.socket(fileno=fd)
        try:
            if _end_with(parent):
                _leave_other_files(fd)
                life(driver)
        except BaseException:
            driver.send(_answer(number=errno.EIO, mistake=traceback.format_exc()))
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
                        _live(starter, fd, _do_one_thing)
                except OSError as error:
                    theirs.send(_answer(number=error.errno or errno.EAGAIN))


def _do_one_thing(driver: socket.socket) -> None:
    """Receive what to do, do it, and answer; or end when the driver closes its end instead."""
    try:
        pidfd = os.pidfd_open(os.getpid())
    except OSError as error:
        driver.send(_answer(number=error.errno or errno.EAGAIN))
        return
    socket.send_fds(driver, [_answer()], [pidfd])
    os.close(pidfd)
    packet, fds, _, _ = socket.recv_fds(driver, _PACKET_MAX, 1)
    if packet:
        driver.send(_result(packet, fds))


def _result(packet: bytes, fds: list[int]) -> bytes:
    module, name, arguments = marshal.loads(packet)
    try:
        return _answer(getattr(sys.modules[module], name)(*arguments, *fds))
    except OSError as error:
        number = error.errno or errno.EIO
        answer = _answer(number=number, path=error.filename)
        # A path inside a pod's file system is of any length.
        return answer if len(answer) <= ANSWER_MAX else _answer(number=number)


def _answer(result: object = None, number: int = 0, path: object = None, mistake: str = "") -> bytes:
    return marshal.dumps((result, number, path, mistake[-_TRACEBACK_MAX:]))  # type: ignore[arg-type]


def _end_with(parent: int) -> bool:
    """Die with the process that has forked this one; False where that has ended already."""
    prctl.set_pdeathsig(signal.SIGKILL)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # a terminal's are for the driver, which ends it
    return os.getppid() == parent


def _leave_other_files(kept: int) -> None:
    """Close every fd but `kept`, put /dev/null in place of the standard streams, and leave the working directory."""
    os.closerange(3, kept)
    os.closerange(kept + 1, _FD_MAX)
    null = os.open("/dev/null", os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)
    os.chdir("/")
