"""Change names in a directory as fast as possible, until SIGTERM: racer.py HOW DIRECTORY OUTSIDE NAME...

    links       each name becomes a link to the same name in OUTSIDE, and is removed again
    exchange    each name is exchanged with such a link, whatever it is (RENAME_EXCHANGE)
    remove      each name is removed
    directory   DIRECTORY itself is exchanged with a link to OUTSIDE

Prints how often it changed something.
"""

import contextlib
import ctypes
import os
import signal
import sys

_EXCHANGE = 2  # RENAME_EXCHANGE
_AT_FDCWD = -100

is_ended = False


def end(number: int, frame: object) -> None:
    global is_ended
    is_ended = True


def main() -> None:
    how, directory, outside, names = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
    signal.signal(signal.SIGTERM, end)
    libc = ctypes.CDLL(None)
    pairs = []
    for name in names:
        path, other = f"{directory}/{name}", f"{directory}/{name}.swap"
        if how == "exchange":
            os.symlink(f"{outside}/{name}", other)
        pairs.append((path.encode(), other.encode(), f"{outside}/{name}".encode()))
    if how == "directory":
        other = f"{directory}.other"
        os.symlink(outside, other)
        pairs = [(directory.encode(), other.encode(), b"")]
    print("races", flush=True)
    swaps = 0
    while not is_ended:
        for path, other, link in pairs:
            if how == "links":
                libc.symlink(link, path)
                libc.unlink(path)
            elif how == "remove":
                libc.unlink(path)
            else:
                libc.renameat2(_AT_FDCWD, path, _AT_FDCWD, other, _EXCHANGE)
            swaps += 1
    if how == "directory" and os.path.islink(directory):
        libc.renameat2(_AT_FDCWD, pairs[0][0], _AT_FDCWD, pairs[0][1], _EXCHANGE)
    with contextlib.suppress(BrokenPipeError):
        print(swaps)


if __name__ == "__main__":
    main()
