"""Starts a program in a container again and again, and prints for each start how many milliseconds it ran.

starts.py TIMES PROGRAM [ARGUMENT...]
"""

import subprocess
import sys
import time


def main(times, *program):
    for _ in range(int(times)):
        began = time.perf_counter()
        subprocess.run(program, check=True)
        print((time.perf_counter() - began) * 1000, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
