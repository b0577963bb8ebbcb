"""Asks for mounts with a fuse device, without a FUSE program: device.py SOCKET FOLDER

It reads lines from standard input, and answers each with one line. `cycle N` mounts and unmounts N times and prints the milliseconds of
each mount and unmount. `mount N` makes N further mounts, and keeps them until it ends. `die` ends one of these and prints the milliseconds
until it is in the mount table no more.
"""

import json
import os
import select
import socket
import sys
import time


def call(path, request, fds=()):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(path)
        socket.send_fds(connection, [json.dumps(request).encode()], list(fds))
        answer, got, _, _ = socket.recv_fds(connection, 1 << 16, 1)
    if b'"error"' in answer:
        sys.exit(answer.decode())
    return got


def mount(path, place):
    os.makedirs(place, exist_ok=True)
    fd = os.open(place, os.O_PATH)
    (fuse,) = call(path, {"op": "mount", "mountpoint": place, "options": "fsname=bench", "fds": ["mountpoint"]}, [fd])
    os.close(fd)
    return fuse


def cycle(path, place):
    began = time.perf_counter()
    fuse = mount(path, place)
    call(path, {"op": "unmount", "mountpoint": place})
    os.close(fuse)
    return (time.perf_counter() - began) * 1000


def die(kept):
    name, fuse = kept.popitem()
    with open("/proc/self/mountinfo") as table:
        poll = select.poll()
        poll.register(table, select.POLLPRI)
        table.read()
        began = time.perf_counter()
        os.close(fuse)
        while f" {name} " in (table.seek(0), table.read())[1]:
            poll.poll(10000)
        return (time.perf_counter() - began) * 1000


def main(path, folder):
    kept = {}
    for line in sys.stdin:
        word, _, number = line.strip().partition(" ")
        if word == "cycle":
            print(*(f"{cycle(path, f'{folder}/cycle'):.4f}" for _ in range(int(number))), flush=True)
        elif word == "mount":
            for _ in range(int(number)):
                place = f"{folder}/{len(kept)}"
                kept[place] = mount(path, place)
            print("done", flush=True)
        else:
            print(f"{die(kept):.4f}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
