"""Do what libfuse 3.19 does with a helper that supports --sync-init: sync_init.py HOW MOUNTPOINT [OPTIONS]

The fd comes first, INIT is answered while the helper waits for mount(2), and at last the helper reports the result.
HOW says what kind of program it is:

    serves      answers INIT, prints the result, and serves one file, /hello, until it is unmounted
    usual-init  serves without the ioctl, as on kernels that do not have it: INIT comes after the mount
    is-killed   dies of SIGKILL when it has the fd
    gives-up    changes its mind when it has the fd, and mounts in the usual way
    never       reads INIT and never answers; prints the result
    dies        dies of SIGKILL when it has read INIT
    MS          a number: serves, and is killed together with the helper so many milliseconds after its word that it is ready
"""

import fcntl
import os
import signal
import struct
import sys
import threading
import time

from mini_fuse import Server, call_helper, receive_fd

_SYNC_INIT = 0xE503  # FUSE_DEV_IOC_SYNC_INIT, <linux/fuse.h>


def main() -> None:
    how, mountpoint, options = sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else ""
    usual = ["-o", options, "--", mountpoint]
    comm, helper = call_helper("--sync-init", *usual)
    server = Server(receive_fd(comm))
    print("has the fd", flush=True)
    if how == "is-killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "gives-up":
        comm.close()
        comm, helper = call_helper(*usual)
        server = Server(receive_fd(comm))
        print(helper.wait(), flush=True)
        server.answer_init(server.read()[1])
        server.serve()
        return
    if how != "usual-init":
        try:
            fcntl.ioctl(server.fd, _SYNC_INIT)
        except OSError as error:
            print(f"no synchronous INIT: {error.strerror}", flush=True)
            how = "usual-init"  # before the mount there is nothing to read: EPERM

    def serve() -> None:
        unique = server.read()[1]
        print("has INIT", flush=True)
        if how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "never":
            return
        server.answer_init(unique)
        server.serve()

    thread = threading.Thread(target=serve)
    if how != "usual-init":
        thread.start()
    comm.send(b"\0")
    if how.replace(".", "").isdigit():
        time.sleep(float(how) / 1000)
        helper.kill()
        os.kill(os.getpid(), signal.SIGKILL)
    told = comm.recv(4)
    if len(told) < 4:
        print("the helper has gone", helper.wait(), flush=True)
        os._exit(1)  # the thread waits for INIT
    (result,) = struct.unpack("i", told)
    comm.close()
    print(result, helper.wait(), flush=True)
    if how == "usual-init":
        thread.start()
    if how == "serves" and result != 0:
        os._exit(1)  # the thread would wait for an INIT that never comes
    thread.join()


if __name__ == "__main__":
    main()
