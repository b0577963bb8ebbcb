"""Puts as many fds in flight as the kernel lets this user (ETOOMANYREFS, unix(7)), says so, and keeps them until it is killed."""

import array
import os
import socket
import time
from errno import ETOOMANYREFS

_PER_MESSAGE = 250
_MESSAGES = 5  # which a socket keeps in its queue

fds = array.array("i", [os.open("/dev/null", os.O_RDONLY)] * _PER_MESSAGE)
pairs = []
try:
    while True:
        pairs.append(socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
        for _ in range(_MESSAGES):
            pairs[-1][0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
except OSError as error:
    if error.errno != ETOOMANYREFS:
        raise
print("full", flush=True)
time.sleep(600)
