"""Act in a mount and pid namespace of its own for the tests: start programs as any user, and mount and open what the tests ask for.

    agent.py FD

It makes the namespaces, and receives packets on the socket FD: JSON of at most 64 KiB in a memfd, and further fds. `do` says what:

    run     start `path` with `argv`, `environment`, `uid`, `gid`, `groups`; fds: standard output, standard error, the working
            directory, and sometimes the fd that the program finds as launcher.COMM. The answer is the exit code.
    mount   mount(2) `source` at `target`; `fstype`, `flags`, `data` as there; fd: perhaps the one that serves a FUSE file system. The
            answer is 0 or errno.
    umount  umount2(2) `target` with `flags`. The answer is 0 or errno.

Texts are Latin-1. The answer begins with the `number` of the request: where a test was interrupted, it is that of an earlier one.
"""

import ctypes
import json
import os
import signal
import socket
import sys

from launcher import COMM, LIMIT

_CLONE_NEWNS, _CLONE_NEWPID = 0x00020000, 0x20000000
_MS_REC, _MS_PRIVATE = 16384, 1 << 18

_libc = ctypes.CDLL(None, use_errno=True)


def serve(requests: socket.socket) -> None:
    """Answer until the tests close the socket."""
    while True:
        packet, fds, _, _ = socket.recv_fds(requests, 1, 6)
        if not packet:
            return
        for fd in fds:
            os.set_inheritable(fd, False)
        with open(fds[0], "rb") as file:
            request = json.load(file)
        number, do = request.pop("number"), {"run": _run, "mount": _mount, "umount": _umount}[request.pop("do")]
        requests.send(b"%d %d" % (number, do(*fds[1:], **request)))


def _run(
    out: int,
    err: int,
    folder: int,
    comm: int | None = None,
    *,
    path: str,
    argv: list[str],
    environment: dict[str, str],
    uid: int,
    gid: int,
    groups: list[int],
) -> int:
    """Run one program to its end, or kill it."""
    pid = os.fork()
    if pid == 0:
        try:
            os.fchdir(folder)
            null = os.open("/dev/null", os.O_RDWR)
            for fd, at in ((null, 0), (out, 1), (err, 2), *([] if comm is None else [(comm, COMM)])):
                os.dup2(fd, at)
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            os.execve(path, [_raw(word) for word in argv], {_raw(name): _raw(value) for name, value in environment.items()})
        finally:
            os._exit(127)
    for fd in (out, err, folder, *([] if comm is None else [comm])):
        os.close(fd)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(pid, signal.SIGKILL))
    signal.alarm(LIMIT)
    _, status = os.waitpid(pid, 0)
    signal.alarm(0)
    return os.waitstatus_to_exitcode(status)


def _mount(*fuse: int, source: str, target: str, fstype: str | None = None, flags: int = 0, data: str = "") -> int:
    kind = None if fstype is None else fstype.encode()
    if fuse:
        data = f"fd={fuse[0]},{data}"
    done = _libc.mount(_raw(source), _raw(target), kind, ctypes.c_ulong(flags), _raw(data) or None)
    error = ctypes.get_errno() if done else 0
    for fd in fuse:
        os.close(fd)
    return error


def _umount(target: str, flags: int = 0) -> int:
    return ctypes.get_errno() if _libc.umount2(_raw(target), flags) else 0


def _raw(text: str) -> bytes:
    return text.encode("latin-1")


if __name__ == "__main__":
    requests = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(requests.fileno(), False)
    if _libc.unshare(_CLONE_NEWNS | _CLONE_NEWPID) != 0:
        sys.exit(f"no namespaces can be made: {os.strerror(ctypes.get_errno())}")
    first = os.fork()  # the first process in the pid namespace, which ends with it
    if first:
        requests.close()
        os.waitpid(first, 0)
        sys.exit(0)
    errors = _mount(source="none", target="/", flags=_MS_REC | _MS_PRIVATE), _mount(source="proc", target="/proc", fstype="proc")
    requests.send(b"%d" % max(errors))
    serve(requests)
