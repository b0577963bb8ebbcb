"""Start programs as an unprivileged user, below a root of its own. It is a small process, because forking the tests' would be slow.

    launcher.py ROOT UID FD

It receives packets with fds on the socket FD: the request (JSON: `path`, `argv`, `environment`, in Latin-1), standard output,
standard error, the working directory, and sometimes the fd that the program finds as COMM. The answer is the exit code
as subprocess reports it.
"""

import json
import os
import signal
import socket
import sys

COMM = 77  # far above the fds that a program opens itself
LIMIT = 20  # seconds for one program


def serve(requests: socket.socket) -> None:
    """Start programs until the tests close the socket."""
    while True:
        packet, fds, _, _ = socket.recv_fds(requests, 1, 5)
        if not packet:
            return
        for fd in fds:
            os.set_inheritable(fd, False)
        requests.send(b"%d" % run(*fds))


def run(request_fd: int, out: int, err: int, folder: int, comm: int | None = None) -> int:
    """Run one program to its end, or kill it."""
    with open(request_fd, "rb") as file:
        request = json.load(file)
    argv = [word.encode("latin-1") for word in request["argv"]]
    environment = {name.encode("latin-1"): value.encode("latin-1") for name, value in request["environment"].items()}
    actions = [(os.POSIX_SPAWN_DUP2, os.open("/dev/null", os.O_RDWR), 0), (os.POSIX_SPAWN_DUP2, out, 1), (os.POSIX_SPAWN_DUP2, err, 2)]
    if comm is not None:
        actions.append((os.POSIX_SPAWN_DUP2, comm, COMM))
    os.fchdir(folder)
    pid = os.posix_spawn(request["path"], argv, environment, file_actions=actions, setsigdef=[signal.SIGPIPE, signal.SIGXFSZ])
    for fd in [actions[0][1], out, err, folder, *([] if comm is None else [comm])]:
        os.close(fd)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(pid, signal.SIGKILL))
    signal.alarm(LIMIT)
    _, status = os.waitpid(pid, 0)
    signal.alarm(0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    root, uid, fd = sys.argv[1:]
    requests = socket.socket(fileno=int(fd))
    os.set_inheritable(int(fd), False)
    os.chroot(root)
    os.setgroups([])
    os.setgid(int(uid))
    os.setuid(int(uid))
    serve(requests)
