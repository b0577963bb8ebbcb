"""Run FUSE programs whose processes live in unusual ways: odd_program.py HOW MOUNTPOINT TEXT

It serves one file, /hello, with the line TEXT, until it is unmounted. HOW says what is odd:

    serves              nothing
    forks               a child serves, and the process that mounted ends; /harness/serving has the pid that serves, as always
    first-thread-ends   the first thread ends, another one serves
    never-answers       answers INIT, and then reads each request without an answer

After SIGUSR1 it takes memory until the kernel kills it: send that only in a container with a limit of memory.
"""

import ctypes
import os
import signal
import sys
import threading

from mini_fuse import Server, call_helper, receive_fd


def take_all_memory(*_: object) -> None:
    taken = []
    while True:
        taken.append(b"x" * (1 << 20))  # written to, or the kernel would not count it


def main() -> None:
    how, mountpoint, text = sys.argv[1:]
    signal.signal(signal.SIGUSR1, take_all_memory)
    comm, helper = call_helper("-o", "fsname=odd", "--", mountpoint)
    server = Server(receive_fd(comm), f"{text}\n".encode())
    comm.close()
    if helper.wait() != 0:
        sys.exit(1)
    if how == "forks" and os.fork() != 0:
        os._exit(0)
    with open("/harness/serving", "w", encoding="ascii") as file:
        file.write(str(os.getpid()))
    server.answer_init(server.read()[1])
    if how == "never-answers":
        while True:
            server.read()
    if how == "first-thread-ends":
        threading.Thread(target=server.serve).start()
        libc = ctypes.CDLL(None)
        libc.pthread_exit.argtypes = [ctypes.c_void_p]
        libc.pthread_exit(None)
    server.serve()


if __name__ == "__main__":
    main()
