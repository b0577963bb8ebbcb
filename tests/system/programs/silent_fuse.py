"""Run many FUSE servers in one process, which answer INIT and nothing after it: silent_fuse.py FD...

It prints a line when all of them serve.
"""

import sys
import threading

from mini_fuse import Server


def serve(fd: int) -> None:
    """Read all requests."""
    server = Server(fd)
    server.answer_init(server.read()[1])
    while True:
        server.read()


if __name__ == "__main__":
    threads = [threading.Thread(target=serve, args=[int(fd)]) for fd in sys.argv[1:]]
    for thread in threads:
        thread.start()
    print("serves", flush=True)
