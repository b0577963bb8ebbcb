"""Measures the CPU time of other processes."""

import os
import resource
import time
from collections.abc import Iterable
from pathlib import Path

_CPUCLOCK_SCHED = 2  # linux/posix-timers.h
_TICK = os.sysconf("SC_CLK_TCK")


def of_process(pid: int) -> float:
    """Return the seconds so far of all its threads, also of those that have ended.

    The id of that clock is made as clock_getcpuclockid(3) makes it.
    """
    return time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)


class Others:
    """Measures what the rest of the machine computes: all but this process, its children that end, and `pids`."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = [os.getpid(), *pids]
        self._began, self._before = time.monotonic(), self._seconds()

    def share(self) -> float:
        """Return the share of all processors since this was made."""
        elapsed = (time.monotonic() - self._began) * (os.cpu_count() or 1)
        return max(0.0, self._seconds() - self._before) / elapsed

    def _seconds(self) -> float:
        # proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        ours = sum(map(of_process, self._pids)) + ended.ru_utime + ended.ru_stime
        return (sum(ticks) - ticks[3] - ticks[4]) / _TICK - ours
