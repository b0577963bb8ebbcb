"""Tells which program is at the other end of a connection, for messages. The names are the pod's: they decide nothing.

Everything here runs in the event loop. A pod decides how long some files in /proc are, and /proc/PID/status with all the groups that a
process may have takes 20 ms. So only files are read whose length the pod does not decide.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

_HELPER = "fuserm"  # in the name of the process that libfuse's callers start; the kernel keeps 15 bytes of it
_CONTAINER = re.compile("[0-9a-f]{64}")
_PROCESSES_OF_HELPER = 2  # of a single-file helper


@dataclass(frozen=True)
class Program:
    """A process as it was when it was found (proc_pid_stat(5)). `pids` has its number in each pid namespace, the innermost last."""

    name: str
    pids: tuple[int, ...]
    parent: int
    began: int  # in clock ticks since boot; tells it from a later process with the same pid

    def __str__(self) -> str:
        """Return its name, with its pid in its container as long as it runs: a program that goes into the background has another one."""
        now = _find(self.pids[0])
        if now is None or now.began != self.began:
            return self.name
        return f"{now.name} (pid {now.pids[-1]} in its container)"  # fuse-starter becomes the program that it starts


def program_behind(pid: int) -> Program | None:
    """Return the FUSE program for which process `pid` asks; None if it has ended.

    The helper asks for its parent. A program like fuse-starter asks for itself.
    """
    found = _find(pid)
    for _ in range(_PROCESSES_OF_HELPER):
        if found is not None and _HELPER in found.name:
            parent = _find(found.parent)
            # The parent of a container's first process is the engine's, in another pid namespace, and not for a pod to know.
            if parent is None or len(parent.pids) != len(found.pids):
                return found
            found = parent
    return found


def engines_container(pid: int) -> str:
    """Return the id that a container engine has given to the container of process `pid`; "" where it is in none, or that is not known.

    Engines name a container's control group after it (cgroups(7)), and the container cannot leave that.
    """
    try:
        groups = Path(f"/proc/{pid}/cgroup").read_text(errors="replace")
    except OSError:
        return ""
    found = _CONTAINER.search(groups)
    return "" if found is None else found[0]


def _find(pid: int) -> Program | None:
    try:
        process = os.pidfd_open(pid)
        try:
            info = Path(f"/proc/self/fdinfo/{process}").read_text("ascii")  # proc_pid_fdinfo(5)
        finally:
            os.close(process)
        (pids,) = (line.removeprefix("NSpid:").split() for line in info.splitlines() if line.startswith("NSpid:"))
        # Of the thread, because the one of the process adds up the times of all its threads.
        stat = Path(f"/proc/{pid}/task/{pid}/stat").read_text(errors="replace")
        name, _, fields = stat.partition("(")[2].rpartition(") ")
        return Program(name, tuple(map(int, pids)), parent=int(fields.split()[1]), began=int(fields.split()[19]))
    except (OSError, ValueError, IndexError):
        return None
