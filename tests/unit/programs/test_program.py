import subprocess
import sys
from pathlib import Path

import pytest
from pod_programs import DEADLINE, ROOT

# Opens fds between the kept ones, below them and above them. A list of all numbers up to the limit does not fit into the memory.
_CLOSES = """
import os, posix, resource, sys
from fusermount3_proxy import program

def listdir(path):
    raise FileNotFoundError(path)

if sys.argv[1] == "without":
    posix.listdir = listdir
posix.sysconf = lambda name: 1 << 30
for fd in (5, 6, 7, 9, 900):
    os.dup2(2, fd)
resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))
program.close_others({2, 6, 9})
left = []
for fd in range(1000):
    try:
        os.fstat(fd)
    except OSError:
        continue
    left.append(fd)
sys.exit(f"left: {left}")
"""


@pytest.mark.parametrize("proc", ["with", "without"])
def test_closes_every_fd_but_some_whatever_the_limit(proc: str) -> None:
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{_CLOSES}", proc]
    done = subprocess.run(command, cwd=Path("/"), capture_output=True, text=True, timeout=DEADLINE)
    assert done.stderr == "left: [2, 6, 9]\n"
