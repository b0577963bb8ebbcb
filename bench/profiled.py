"""Runs the driver from source, and writes which of its functions have its CPU time.

    python -m bench.profiled FILE ARGUMENT...

FILE.PID is written anew every second, since the benchmark kills drivers. A function's share is that of all samples in which it
ran or something that it had called. What a thread of gRPC does is not in it, and what C does is with whoever called it.
"""

import os
import runpy
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from types import FrameType

_EVERY = 0.001  # seconds of CPU


class Profile:
    """Samples of the main thread's stack."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._samples = 0
        self._found: Counter[str] = Counter()
        self._written = time.monotonic()

    def sample(self, number: int, frame: FrameType | None) -> None:
        names = set()
        while frame is not None:
            names.add(f"{Path(frame.f_code.co_filename).name} {frame.f_code.co_qualname}")
            frame = frame.f_back
        self._found.update(names)
        self._samples += 1
        if time.monotonic() > self._written + 1:
            self._written = time.monotonic()
            lines = (f"{count / self._samples:6.1%} {name}\n" for name, count in self._found.most_common())
            self._path.write_text("".join(lines))


def main(path: str, *arguments: str) -> None:
    sys.argv = ["driver", *arguments]
    signal.signal(signal.SIGPROF, Profile(Path(f"{path}.{os.getpid()}")).sample)
    signal.setitimer(signal.ITIMER_PROF, _EVERY, _EVERY)
    runpy.run_module("driver.cli", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
