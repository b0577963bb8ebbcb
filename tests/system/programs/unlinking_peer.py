#!/usr/bin/python3 -ISB
"""Behave as the Go plugin's fusermount3 and fuse-starter do, under whose names it is called: remove the socket after use, unmount nothing.

A process that is left behind keeps a mount's fd open. So the mount stays when its program has ended, as with the Go plugin's driver.
"""

import os
import socket
import sys


def receive_fd(path: str) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as driver:
        driver.connect(path)
        _, fds, _, _ = socket.recv_fds(driver, 500, 1)
    os.unlink(path)
    if os.major(os.fstat(fds[0]).st_rdev) == 10 and os.fork() == 0:  # not the /dev/null of a stand-in for a driver
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        for number in range(3):
            os.dup2(null, number)
        os.set_inheritable(fds[0], True)
        os.execlp("sleep", "sleep", "inf")
    return fds[0]


if os.path.basename(sys.argv[0]) == "fuse-starter":
    _, _, socket_path, _, *program = sys.argv
    os.dup2(receive_fd(socket_path), 3)
    os.execvp(program[0], program)
elif "-V" in sys.argv:
    print("fusermount3 version: 3.14.0")
elif "-u" in sys.argv:
    sys.exit(1)
else:
    with socket.socket(fileno=int(os.environ["_FUSE_COMMFD"])) as library:
        socket.send_fds(library, [b"\0"], [receive_fd(os.environ["FUSERMOUNT3PROXY_FDPASSING_SOCKPATH"])])
