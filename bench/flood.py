"""Floods a pod's socket until it is killed: connects as fast as it can, sends nonsense, and closes.

python flood.py SOCKET
"""

import os
import socket
import sys


def main(path: str) -> None:
    folder, name = os.path.split(f"{path}.v1")
    fd = os.open(folder, os.O_PATH)
    address = f"/proc/self/fd/{fd}/{name}"  # the path of a socket holds 107 bytes
    print("begins", flush=True)
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.setblocking(False)
            sock.connect(address)
            sock.send(b"nonsense")
        except (BlockingIOError, ConnectionError):
            pass
        finally:
            sock.close()


if __name__ == "__main__":
    main(sys.argv[1])
