"""Starts a FUSE program in a container again and again, and prints for each start how many milliseconds passed until it had
mounted and until it answered.

    mounts.py MOUNTPOINT TIMES PROGRAM [ARGUMENT...]

The program must stay in the foreground. It is ended by SIGTERM each time, and the last time its mount may stay.
"""

import os
import select
import subprocess
import sys
import time

_WAIT = 20000  # milliseconds


def is_mounted(table, mountpoint):
    table.seek(0)
    found = [line for line in table if line.split()[4] == mountpoint]
    return bool(found) and " - fuse" in found[-1]


def wait_until(table, mountpoint, wanted, process=None):
    poll = select.poll()
    poll.register(table, select.POLLPRI)
    pidfd = os.pidfd_open(process.pid) if process is not None else -1
    if pidfd >= 0:
        poll.register(pidfd, select.POLLIN)
    while is_mounted(table, mountpoint) is not wanted:
        if not poll.poll(_WAIT):
            sys.exit(f"{mountpoint}: {'not mounted' if wanted else 'still mounted'} after {_WAIT} ms")
        if process is not None and process.poll() is not None:
            sys.exit(f"the program ended with {process.returncode} before it had mounted at {mountpoint}")
    if pidfd >= 0:
        os.close(pidfd)


def main(mountpoint, times, *program):
    # Opened anew each time, so that poll() reports no earlier change.
    for number in range(int(times)):
        if number:
            with open("/proc/self/mountinfo") as table:
                wait_until(table, mountpoint, False)
        with open("/proc/self/mountinfo") as table:
            table.read()
            began = time.perf_counter()
            process = subprocess.Popen(program, stdout=subprocess.DEVNULL)
            wait_until(table, mountpoint, True, process)
            mounted = time.perf_counter()
            os.listdir(mountpoint)
            answered = time.perf_counter()
        process.terminate()
        process.wait()
        print((mounted - began) * 1000, (answered - began) * 1000, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
