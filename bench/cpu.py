"""The CPU time of another process."""

import time

_CPUCLOCK_SCHED = 2  # linux/posix-timers.h


def of_process(pid: int) -> float:
    """Seconds so far, of all its threads, those that have ended too: the clock that clock_getcpuclockid(3) names."""
    return time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)
