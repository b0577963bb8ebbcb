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
    assert found.pid == found.inner_pid == chain.process.pid
    assert str(found) == f"{found.name} (pid {chain.process.pid})"
    assert found.name == Path(f"/proc/{chain.process.pid}/comm").read_text().rstrip("\n")


def test_the_pid_is_left_out_when_the_program_has_ended(chain: Chain) -> None:
    found = program_behind(chain.helper)
    chain.end()
    assert found is not None and str(found) == found.name


def test_a_program_that_asks_for_itself() -> None:
    found = program_behind(os.getpid())
    assert found is not None and found.pid == os.getpid()


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
    assert found is not None and found.pid == process.pid
    assert found.name.startswith("a")
