"""Reads and writes in a folder of a container, and prints the milliseconds of each kind of work.

data.py FOLDER MEGABYTES OPERATIONS
"""

import os
import random
import sys
import time

_BLOCK = 1 << 20
_PAGE = 4096


def write(path, megabytes):
    block = os.urandom(_BLOCK)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for _ in range(megabytes):
        os.write(fd, block)
    os.close(fd)


def read(path):
    # Opening a FUSE file drops what the kernel has cached of it, unless the program asks to keep it.
    fd = os.open(path, os.O_RDONLY)
    while os.read(fd, _BLOCK):
        pass
    os.close(fd)


def write_at_random(path, megabytes, operations):
    page, order = os.urandom(_PAGE), random.Random(1)
    fd = os.open(path, os.O_WRONLY)
    for _ in range(operations):
        os.pwrite(fd, page, order.randrange(megabytes * _BLOCK // _PAGE) * _PAGE)
    os.close(fd)


def read_at_random(path, megabytes, operations):
    order = random.Random(2)
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    for _ in range(operations):
        os.pread(fd, _PAGE, order.randrange(megabytes * _BLOCK // _PAGE) * _PAGE)
    os.close(fd)


def metadata(folder, operations):
    names = [f"{folder}/{number}" for number in range(operations // 10)]
    for name in names:
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT, 0o644))
        os.stat(name)
        os.rename(name, f"{name}.new")
    os.listdir(folder)
    for name in names:
        os.unlink(f"{name}.new")


def main(folder, megabytes, operations):
    path, megabytes, operations = f"{folder}/data", int(megabytes), int(operations)
    for work in (
        lambda: write(path, megabytes),
        lambda: read(path),
        lambda: write_at_random(path, megabytes, operations),
        lambda: read_at_random(path, megabytes, operations),
        lambda: metadata(folder, operations),
    ):
        began = time.perf_counter()
        work()
        print((time.perf_counter() - began) * 1000, flush=True)
    os.unlink(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
