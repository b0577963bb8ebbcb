"""Runs a program once, and measures what it took."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

from bench.place import BenchError


@dataclass(frozen=True)
class Run:
    """Says what one run of a program took."""

    milliseconds: float  # from its start to its end, as its parent sees them
    faults: int


class Runner:
    """Starts programs without their output, by vfork(2) and execve(2), the cheapest way that Python has."""

    def __init__(self, errors: str) -> None:
        """`errors` is a file for their standard error."""
        self._errors = errors

    def run(self, command: list[str], environment: Mapping[str, str] | None = None) -> Run:
        """Run a program to its end. Raises BenchError where it fails."""
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, self._errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
        ]
        began = time.perf_counter()
        pid = os.posix_spawn(command[0], command, environment or {}, file_actions=actions)
        _, status, usage = os.wait4(pid, 0)
        took = (time.perf_counter() - began) * 1000
        if status != 0:
            with open(self._errors, errors="replace") as file:
                raise BenchError(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}: {file.read().strip()}")
        return Run(took, usage.ru_minflt + usage.ru_majflt)
