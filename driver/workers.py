"""The processes that work in the driver's place, and the one that starts them (workerpool.py has the driver's side).

They are forked by the starter, which was forked before the driver had anything of a pod's. One that was forked from the
driver itself would begin with a copy of every fd that the driver has: it could be the last to drop what another pod has
queued in a connection and block there, and it would keep alive what others think is closed.

None of them has a stream or a folder of the driver's: one that is left behind with a silent FUSE program, when the driver is
killed, would keep the container's output open, and the engine would say that the container still runs.

A worker goes from one pod's volume to the next one's. So what it does leaves nothing behind: an fd that it kept, of one
volume, would keep that one's mount busy for as long as another one's program makes it wait.

The driver sends the starter MAKE_ONE with a worker's end of a socket pair, and gets MADE with its pidfd, or an errno. To that
worker it sends (module, function, arguments) with fds, and gets (result, errno, path, traceback of a mistake of ours). Each is
one packet, in marshal's form: all of these processes are the same program.
"""

import errno
import marshal
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

import prctl

MAKE_ONE = b"\0"
MADE = b"\0"  # in marshal's form it would be "nothing", which is no errno
RESULT_MAX = 8192  # bytes
_PACKET_MAX = 1 << 17  # the work's arguments: mount options, which come in a packet of half of that, and a path
_TRACEBACK_MAX = RESULT_MAX // 8  # characters, each of up to four bytes; the last lines say the most
_FD_MAX = 1 << 20


def fork_starter() -> tuple[socket.socket, int]:
    """Fork the starter. Returns the socket to ask it by, and its pidfd."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    driver = os.getpid()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _leave_the_drivers_files()
        _live(driver, theirs.fileno(), _start_workers)
    theirs.close()
    return ours, os.pidfd_open(pid)


def _live(parent: int, fd: int, life: Callable[[socket.socket], None]) -> NoReturn:
    """All that this process, which has been forked just now, does: `life` with the socket `fd`. It ends with its parent."""
    try:
        if _end_with(parent):
            _keep(fd)
            life(socket.socket(fileno=fd))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    finally:
        os._exit(0)


def _start_workers(requests: socket.socket) -> None:
    """The starter's life: it ends when the driver has closed its end, too."""
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd != requests.fileno():  # the pidfd of one that has ended
                poll.unregister(fd)
                os.waitid(os.P_PIDFD, fd, os.WEXITED)
                os.close(fd)
                continue
            packet, fds, _, _ = socket.recv_fds(requests, len(MAKE_ONE), 1)
            if not packet:
                return
            try:
                if not fds:  # this process has none left for it
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                pidfd = _fork(fds[0])
            except OSError as error:
                requests.send(marshal.dumps(error.errno or errno.EAGAIN))
                continue
            finally:
                for each in fds:
                    os.close(each)
            poll.register(pidfd, select.POLLIN)
            socket.send_fds(requests, [MADE], [pidfd])


def _fork(requests: int) -> int:
    """Start a worker; its pidfd."""
    starter = os.getpid()
    pid = os.fork()
    if pid == 0:
        _live(starter, requests, _work)
    try:
        return os.pidfd_open(pid)
    except BaseException:
        # Nobody could kill it.
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def _work(requests: socket.socket) -> None:
    """A worker's life: it ends when the driver has closed its end, too."""
    while True:
        packet, fds, _, _ = socket.recv_fds(requests, _PACKET_MAX, 1)
        if not packet:
            return
        try:
            result = _result(packet, fds)
        finally:
            _keep(requests.fileno())  # those that came, and any that the work has left open
        requests.send(result)


def _result(packet: bytes, fds: list[int]) -> bytes:
    module, name, arguments = marshal.loads(packet)
    try:
        return marshal.dumps((getattr(sys.modules[module], name)(*arguments, *fds), 0, None, ""))
    except OSError as error:
        number = error.errno or errno.EIO
        said = marshal.dumps((None, number, error.filename, ""))
        # A path inside a pod's file system is of any length.
        return said if len(said) <= RESULT_MAX else marshal.dumps((None, number, None, ""))
    except Exception:  # a mistake of ours: the driver logs it, and does not take it for the program's silence
        return marshal.dumps((None, errno.EIO, None, traceback.format_exc()[-_TRACEBACK_MAX:]))


def _end_with(parent: int) -> bool:
    """Die with the process that has forked this one; False where that has ended already."""
    prctl.set_pdeathsig(signal.SIGKILL)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # a terminal's are for the driver, which ends it
    return os.getppid() == parent


def _leave_the_drivers_files() -> None:
    """Replace the driver's standard streams by /dev/null, and its working directory by the root."""
    null = os.open("/dev/null", os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)
    os.chdir("/")


def _keep(kept: int) -> None:
    """Close every fd but this one and the standard streams."""
    os.closerange(3, kept)
    os.closerange(kept + 1, _FD_MAX)
