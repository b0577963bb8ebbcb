"""Test what the frozen fuse-starter hands on to its program."""

import os
import re
import signal
from pathlib import Path

import pytest
from harness.events import wait_until
from harness.image import FD_CONTENT, VERSION, Asked, Image, both_forms, program_of
from harness.pod import PLACE

pytestmark = pytest.mark.usefixtures("built")


def starter(form: str, stand_in: Asked, *program: str | bytes) -> list[str | bytes]:
    return [program_of(form, "fuse-starter"), "--fd-passing-socket-path", str(stand_in.path), "--", *program]


ENVIRONMENTS = [
    {},
    {"PATH": "/usr/bin:/bin", "HOME": "/", "EMPTY": "", "LINES": "a\nb", "EQUALS": "=a=b"},
    {"LD_LIBRARY_PATH": "/nowhere:/else", "LD_BIND_NOW": "1"},
    {"PYTHONHOME": "/nowhere", "PYTHONPATH": "/nowhere", "PYTHONUTF8": "0", "LC_ALL": "xx_YY", "LANG": "C", "TMPDIR": "/tmp"},
    {"\udcff\udcfe": "\udcff", "\u20ac": "\u20ac", "_": "x"},
]


@both_forms
@pytest.mark.parametrize("env", ENVIRONMENTS, ids=ascii)
def test_program_gets_the_environment_unchanged(machine: Image, stand_in: Asked, form: str, env: dict[str, str]) -> None:
    done = machine.run(starter(form, stand_in, "/usr/bin/env", "-0"), env)
    assert (done.returncode, done.stderr) == (0, b"")
    assert sorted(done.stdout.split(b"\0")[:-1]) == sorted(os.fsencode(f"{name}={value}") for name, value in env.items())


def test_program_gets_what_steers_the_dynamic_loader(machine: Image, stand_in: Asked) -> None:
    env = {"LD_PRELOAD": "libm.so.6", "LD_LIBRARY_PATH_ORIG": "/mine", "GLIBC_TUNABLES": "glibc.malloc.check=0", "LD_LIBRARY_PATH": ""}
    done = machine.run(starter("tree", stand_in, "/usr/bin/env", "-0"), env)
    assert sorted(done.stdout.split(b"\0")[:-1]) == sorted(f"{name}={value}".encode() for name, value in env.items())


@both_forms
def test_program_gets_its_arguments_unchanged(machine: Image, stand_in: Asked, form: str) -> None:
    arguments = [b"", b" ", b"-x", b"--", b"\xff\xfe", "\u20ac".encode(), b"a\nb", b"--init"]
    done = machine.run(starter(form, stand_in, "/bin/sh", "-c", 'printf "%s\\0" "$0" "$@"', "name", *arguments))
    assert done.stdout.split(b"\0")[:-1] == [b"name", *arguments]


@both_forms
def test_program_gets_fd_3_and_no_other(machine: Image, stand_in: Asked, form: str) -> None:
    done = machine.run(starter(form, stand_in, "/bin/sh", "-c", "echo /proc/$$/fd/*; cat <&3"))
    fds, content = done.stdout.split(b"\n", 1)
    numbers = {int(name.rpartition(b"/")[2]) for name in fds.split()}
    # dash opens the folder to expand the star.
    assert {0, 1, 2, 3} <= numbers <= {0, 1, 2, 3, 4}
    assert content == FD_CONTENT


@both_forms
def test_program_gets_default_signals(machine: Image, stand_in: Asked, form: str) -> None:
    """Python ignores SIGPIPE and SIGXFSZ. A program that inherited this would not die of a closed pipe."""
    status = machine.run(starter(form, stand_in, "/bin/cat", "/proc/self/status")).stdout.decode()
    assert [re.search(rf"{name}:\s*(\w+)", status)[1].lstrip("0") for name in ("SigIgn", "SigBlk", "SigCgt")] == ["", "", ""]


@both_forms
def test_program_gets_the_signals_that_were_ignored_and_blocked(machine: Image, stand_in: Asked, form: str) -> None:
    def before() -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])

    status = machine.run(starter(form, stand_in, "/bin/cat", "/proc/self/status"), before=before).stdout.decode()
    masks = [int(re.search(rf"{name}:\s*(\w+)", status)[1], 16) for name in ("SigIgn", "SigBlk")]
    assert masks == [1 << (signal.SIGUSR1 - 1), 1 << (signal.SIGUSR2 - 1)]


@both_forms
@pytest.mark.parametrize("code", [0, 7, 125])
def test_exit_code_is_the_programs(machine: Image, stand_in: Asked, form: str, code: int) -> None:
    assert machine.run(starter(form, stand_in, "/bin/sh", "-c", f"exit {code}")).returncode == code


@both_forms
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_program_and_its_death_is_seen(
    machine: Image, stand_in: Asked, form: str, tmp_path: Path, number: int
) -> None:
    process = machine.start(starter(form, stand_in, "/bin/sh", "-c", "exec sleep 30"), {"TMPDIR": str(tmp_path)})
    with process:
        wait_until("the program runs", lambda: _descends_to(process.pid, "sleep"))
        process.send_signal(number)
        assert process.wait(10) == -number
    assert not list(tmp_path.glob("_MEI*"))


def test_the_tree_becomes_the_program(machine: Image, stand_in: Asked) -> None:
    process = machine.start(starter("tree", stand_in, "/bin/sh", "-c", "echo $$"))
    out, _ = process.communicate(timeout=10)
    assert int(out) == process.pid


@both_forms
@pytest.mark.parametrize(("program", "code"), [("/nowhere/program", 127), ("/etc/passwd", 126)])
def test_program_that_does_not_start(machine: Image, stand_in: Asked, form: str, program: str, code: int) -> None:
    done = machine.run(starter(form, stand_in, program))
    assert (done.returncode, done.stderr.count(b"\n")) == (code, 1)
    assert stand_in.requests == []


def test_init_forwards_and_reaps(machine: Image, stand_in: Asked) -> None:
    command = [program_of("tree", "fuse-starter"), "--fd-passing-socket-path", str(stand_in.path), "--init", "--"]
    env = {"LD_LIBRARY_PATH": "/x"}
    done = machine.run([*command, "/usr/bin/env", "-0"], env)
    assert (done.returncode, done.stdout) == (0, b"LD_LIBRARY_PATH=/x\0")
    assert machine.run([*command, "/bin/sh", "-c", "kill -TERM $PPID; sleep 10"]).returncode == 128 + signal.SIGTERM


def test_a_program_of_fuse_starter_runs_fusermount3(image_with_proc: Image, stand_in: Asked) -> None:
    """The environment of one frozen program does not disturb the other."""
    command = [f"{PLACE}/fuse-starter", "--fd-passing-socket-path", "/fusermount3-proxy/fuse.sock", "--", f"{PLACE}/fusermount3", "-V"]
    done = image_with_proc.run(command, {"LC_ALL": "xx_YY"})
    assert (done.returncode, done.stdout, done.stderr) == (0, VERSION.encode(), b"")


def _descends_to(pid: int, name: str) -> bool:
    """Return whether the process or a descendant runs `name`: the single file's program is a child of its boot loader."""
    if Path(f"/proc/{pid}/comm").read_text().strip() == name:
        return True
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return any(_descends_to(int(child), name) for child in children)
