"""Test that the program behind a request is found, whatever it is called, and that nothing is said of one that has ended."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from driver.linux.programinfo import program_behind

PARENT = """
import subprocess, sys
subprocess.run([sys.argv[1], "-c", "import os; print(os.getpid(), flush=True); input()"])
"""


class Chain:
    """A Python interpreter whose only child is one with the name of a helper."""

    def __init__(self, name: Path) -> None:
        name.symlink_to(sys.executable)
        environment = os.environ | {"PYTHONHOME": sys.base_prefix}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(name)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        assert self.process.stdout is not None
        self.helper = int(self.process.stdout.readline())

    def end(self) -> None:
        if self.process.returncode is None:
            self.process.communicate(b"\n")


@pytest.fixture(params=["fusermount3", "fusermount", "my-fusermount3"])
def chain(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Chain]:
    chain = Chain(tmp_path / request.param)
    yield chain
    chain.end()


def test_the_program_is_the_parent_of_the_helper(chain: Chain) -> None:
    found = program_behind(chain.helper)
    assert found is not None
    assert found.pids == (chain.process.pid,)
    assert str(found) == f"{found.name} (pid {chain.process.pid} in its container)"
    assert found.name == Path(f"/proc/{chain.process.pid}/comm").read_text().rstrip("\n")


def test_the_pid_is_left_out_when_the_program_has_ended(chain: Chain) -> None:
    found = program_behind(chain.helper)
    chain.end()
    assert found is not None and str(found) == found.name


def test_a_program_that_asks_for_itself() -> None:
    found = program_behind(os.getpid())
    assert found is not None and found.pids[0] == os.getpid()


def test_a_process_that_has_ended(chain: Chain) -> None:
    chain.end()
    assert program_behind(chain.helper) is None


def test_any_bytes_in_a_name() -> None:
    name = b"a\n\tb\xff:\t"
    script = f"open('/proc/self/comm', 'wb').write({name!r}); print(flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    found = program_behind(process.pid)
    process.communicate(b"\n")
    assert found is not None and found.pids[0] == process.pid
    assert found.name.startswith("a")


def test_a_parent_in_another_pid_namespace_is_not_named() -> None:
    """It is the container engine's, and the answer goes to the pod."""
    script = "open('/proc/self/comm', 'w').write('fusermount3'); print(flush=True); input()"
    unshare = ["unshare", "--user", "--pid", "--fork", sys.executable, "-c", script]
    engine = subprocess.Popen(unshare, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert engine.stdout is not None
    engine.stdout.readline()
    first = int(Path(f"/proc/{engine.pid}/task/{engine.pid}/children").read_text())
    found = program_behind(first)
    engine.communicate(b"\n")
    assert found is not None
    assert (found.name, found.pids) == ("fusermount3", (first, 1))
