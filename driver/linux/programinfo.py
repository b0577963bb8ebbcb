"""Tells which program is at the other end of a connection, for messages. The names and pids are the pod's: they decide nothing."""

from dataclasses import dataclass
from pathlib import Path

_HELPER = "fuserm"  # in the name of the process that libfuse's callers start; the kernel keeps 15 bytes of it
_PROCESSES_OF_HELPER = 2  # of a single-file helper


@dataclass(frozen=True)
class Program:
    """A process as it was when it was found (proc_pid_stat(5)). `inner_pid` is its number in its own container."""

    name: str
    pid: int
    inner_pid: int
    parent: int
    began: int  # in clock ticks since boot; tells it from a later process with the same pid

    def __str__(self) -> str:
        """Return its name, with the pid as long as it runs: a program that goes into the background has another one."""
        now = _find(self.pid)
        if now is None or now.began != self.began:
            return self.name
        return f"{now.name} (pid {now.inner_pid})"  # fuse-starter becomes the program that it starts


def program_behind(pid: int) -> Program | None:
    """Return the FUSE program for which process `pid` asks; None if it has ended.

    The helper asks for its parent. A program like fuse-starter asks for itself.
    """
    found = _find(pid)
    for _ in range(_PROCESSES_OF_HELPER):
        if found is not None and _HELPER in found.name:
            found = _find(found.parent)
    return found


def _find(pid: int) -> Program | None:
    try:
        stat, status = (Path(f"/proc/{pid}/{name}").read_text(errors="replace") for name in ("stat", "status"))
        name, _, fields = stat.partition("(")[2].rpartition(") ")
        (inner_pid,) = (int(line.split()[-1]) for line in status.splitlines() if line.startswith("NSpid:"))
        return Program(name, pid, inner_pid, parent=int(fields.split()[1]), began=int(fields.split()[19]))
    except (OSError, ValueError, IndexError):
        return None
