"""Runs the programs of `fusermount3_proxy` the way FUSE libraries and containers do, each in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 30.0  # seconds
SOCKET_VARIABLE = "FUSERMOUNT3PROXY_FDPASSING_SOCKPATH"


@dataclass(frozen=True)
class Ended:
    """Holds how a program ended; a signal is a negative code, as in subprocess."""

    code: int
    stdout: bytes
    stderr: bytes


def command_of(module: str) -> list[str]:
    """Return what starts the program of a module, under the name of the module. Without `site`, as the frozen one."""
    return [sys.executable, "-S", "-c", f"import sys; sys.argv[0] = {module!r}; from fusermount3_proxy.{module} import run; run()"]


def start(
    module: str,
    arguments: Sequence[str | bytes],
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    stdin: int = subprocess.DEVNULL,
    cwd: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program with this environment and nothing of the test's own."""
    return subprocess.Popen(
        [*command_of(module), *arguments],
        env={"PYTHONPATH": str(ROOT), "PATH": os.defpath, **(environment or {})},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=pass_fds,
        cwd=cwd,
    )


def end(process: subprocess.Popen[bytes]) -> Ended:
    """Wait for a program's end."""
    try:
        stdout, stderr = process.communicate(timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return Ended(process.returncode, stdout, stderr)


def run(
    module: str,
    arguments: Sequence[str | bytes],
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    stdin: int = subprocess.DEVNULL,
    cwd: Path | None = None,
) -> Ended:
    """Run a program to its end."""
    return end(start(module, arguments, environment, pass_fds, stdin, cwd))
