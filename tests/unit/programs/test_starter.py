"""Tests fuse-starter: its command line, and what the program that it becomes has, with a stand-in driver."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pod_programs import ROOT, Ended, command_of, end, run, start
from standin_driver import DEADLINE, Recorder, Silent, StandIn, listen, sends

from fusermount3_proxy import limits, starter
from fusermount3_proxy.starter import UsageError

OK = b'{"volumeName": "data"}'
SOCKET = "--fd-passing-socket-path"


# ---- the command line


@pytest.mark.parametrize(
    ("arguments", "program", "wait", "init"),
    [
        ([SOCKET, "/s", "--", "sshfs", "h:", "/dev/fd/3"], ["sshfs", "h:", "/dev/fd/3"], limits.SOCKET_WAIT, False),
        ([f"{SOCKET}=/s", "--", "sshfs"], ["sshfs"], limits.SOCKET_WAIT, False),
        ([SOCKET, "/s", "sshfs", "-o", "ro"], ["sshfs", "-o", "ro"], limits.SOCKET_WAIT, False),
        ([SOCKET, "/s", "--", "--odd"], ["--odd"], limits.SOCKET_WAIT, False),
        ([SOCKET, "/s", "--", "sh", "--", "--init"], ["sh", "--", "--init"], limits.SOCKET_WAIT, False),
        (["--wait", "3", SOCKET, "/s", "--", "sh"], ["sh"], 3, False),
        (["--wait=0.5", SOCKET, "/s", "--", "sh"], ["sh"], 0.5, False),
        (["--init", "--wait", "0", SOCKET, "/s", "--", "sh"], ["sh"], 0, True),
        ([SOCKET, "/wrong", SOCKET, "/s", "--", "sh"], ["sh"], limits.SOCKET_WAIT, False),
        # Manifests for the Go plugin may have options with one dash, which Go's flag package accepts, and klog's options.
        (["-fd-passing-socket-path", "/s", "--", "sh"], ["sh"], limits.SOCKET_WAIT, False),
        (["-fd-passing-socket-path=/s", "-v=5", "--logtostderr", "--", "sh"], ["sh"], limits.SOCKET_WAIT, False),
    ],
)
def test_reads_socket_wait_and_program(arguments: list[str], program: list[str], wait: float, init: bool) -> None:
    command = starter.parse(arguments)
    assert (command.socket_path, command.program, command.wait, command.init) == ("/s", program, wait, init)
    assert not command.help


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--fd-passing-socket-path is missing"),
        (["--", "sh"], "--fd-passing-socket-path is missing"),
        ([SOCKET, "", "--", "sh"], "--fd-passing-socket-path is missing"),
        ([SOCKET], "--fd-passing-socket-path needs a value"),
        ([SOCKET, "/s"], "the program is missing"),
        ([SOCKET, "/s", "--"], "the program is missing"),
        ([SOCKET, "/s", "--", ""], "the program is missing"),
        ([SOCKET, "/s", "--wait", "--", "sh"], "--wait -- is not a number of seconds"),
        ([SOCKET, "/s", "--wait"], "--wait needs a value"),
        ([SOCKET, "/s", "--wait", "-1", "--", "sh"], "--wait -1 is not a number of seconds"),
        ([SOCKET, "/s", "--wait", "soon", "--", "sh"], "--wait soon is not a number of seconds"),
        ([SOCKET, "/s", "--wait", "nan", "--", "sh"], "--wait nan is not a number of seconds"),
        ([SOCKET, "/s", "--wait", "inf", "--", "sh"], "--wait inf is not a number of seconds"),
        ([SOCKET, "/s", "--wait=", "--", "sh"], "--wait  is not a number of seconds"),
        ([SOCKET, "/s", "--bogus", "--", "sh"], "unknown option --bogus"),
        ([SOCKET, "/s", "--init=1", "--", "sh"], "unknown option --init=1"),
        ([SOCKET, "/s", "-x", "--", "sh"], "unknown option -x"),
    ],
)
def test_a_mistake_is_reported_with_what_is_missing(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        starter.parse(arguments)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--init", "--help", "--bogus"]])
def test_help_ends_the_parsing(arguments: list[str]) -> None:
    assert starter.parse(arguments).help


# ---- the environment


def test_the_environment_outside_of_a_bundle_is_left_as_it_is() -> None:
    environment = {b"PATH": b"/bin", b"LD_LIBRARY_PATH": b"/mine", b"X": b"\xff"}
    assert starter.program_environment(environment, None) == environment


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({b"_PYI_ARCHIVE_FILE": b"x", b"_PYI_PARENT_PROCESS_LEVEL": b"-1", b"_PYI_LATER": b"", b"A": b"b"}, {b"A": b"b"}),
        ({b"LD_LIBRARY_PATH": b"/opt/mfcp/_internal"}, {}),
        ({b"LD_LIBRARY_PATH": b"/opt/mfcp/_internal:/mine", b"LD_LIBRARY_PATH_ORIG": b"/mine"}, {b"LD_LIBRARY_PATH": b"/mine"}),
        # These are the container's own variables.
        ({b"LD_LIBRARY_PATH": b"/mine"}, {b"LD_LIBRARY_PATH": b"/mine"}),
        ({b"LD_LIBRARY_PATH_ORIG": b"/mine"}, {b"LD_LIBRARY_PATH_ORIG": b"/mine"}),
    ],
)
def test_what_the_bundle_put_into_the_environment_is_taken_out(before: dict[bytes, bytes], after: dict[bytes, bytes]) -> None:
    given = dict(before)
    assert starter.program_environment(given, "/opt/mfcp/_internal") == after
    assert given == before


# ---- running


@pytest.fixture
def driver(path: Path, fuse: int) -> Iterator[StandIn]:
    """Run a driver that mounts."""
    with StandIn(path, v1=Recorder(OK, fuse)) as driver:
        yield driver


def starts(path: Path, *program: str | bytes, options: tuple[str, ...] = ()) -> list[str | bytes]:
    return [*options, SOCKET, str(path), "--", *program]


def python(code: str, *arguments: str) -> tuple[str, ...]:
    """Return the command of a program that is Python code."""
    return (sys.executable, "-I", "-S", "-c", code, *arguments)


INIT = pytest.mark.parametrize("init", [(), ("--init",)], ids=["exec", "init"])


@INIT
@pytest.mark.parametrize("code", [0, 7, 255])
def test_the_exit_code_is_the_programs(path: Path, driver: StandIn, init: tuple[str, ...], code: int) -> None:
    assert run("starter", starts(path, "sh", "-c", f"echo out; echo err >&2; exit {code}", options=init)) == Ended(code, b"out\n", b"err\n")


def test_a_signal_ends_the_program_itself(path: Path, driver: StandIn) -> None:
    assert run("starter", starts(path, "sh", "-c", "kill -TERM $$")) == Ended(-signal.SIGTERM, b"", b"")


def test_init_reports_the_programs_signal_as_shells_do(path: Path, driver: StandIn) -> None:
    assert run("starter", starts(path, "sh", "-c", "kill -KILL $$", options=("--init",))) == Ended(128 + signal.SIGKILL, b"", b"")


@INIT
@pytest.mark.parametrize("protocol", ["v1", "original"])
def test_the_program_has_the_fuse_fd_as_3_and_no_other(path: Path, fuse: int, tmp_path: Path, init: tuple[str, ...], protocol: str) -> None:
    code = """
import os, sys
def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
print(*[fd for fd in range(256) if is_open(fd)], os.path.sameopenfile(3, os.open(sys.argv[1], os.O_RDWR)))
"""
    behaviour = Recorder(OK, fuse) if protocol == "v1" else sends(OK, fuse)
    # An fd that the container's runtime has not closed could keep a connection open for whose end another process waits.
    forgotten = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
    with StandIn(path, **{protocol: behaviour}):
        program = python(code, str(tmp_path / "stands-for-dev-fuse"))
        ended = run("starter", starts(path, *program, options=init), pass_fds=forgotten)
    for fd in forgotten:
        os.close(fd)
    assert ended == Ended(0, b"0 1 2 3 True\n", b"")


def test_an_fd_3_that_was_open_before_is_replaced(path: Path, driver: StandIn, tmp_path: Path) -> None:
    script = 'exec 3</dev/null 4</dev/null; exec "$@"'
    command = [*command_of("starter"), *starts(path, "sh", "-c", "readlink /proc/self/fd/3; test ! -e /proc/$$/fd/4")]
    ended = subprocess.run(["/bin/sh", "-c", script, "sh", *command], env={"PYTHONPATH": str(ROOT)}, capture_output=True, timeout=30)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{tmp_path}/stands-for-dev-fuse\n".encode(), b"")


def test_standard_streams_that_are_closed_stay_closed(path: Path, driver: StandIn, tmp_path: Path) -> None:
    # The fd that comes from the driver then gets a low number, which must not remain as the program's standard input.
    script = 'exec "$@" <&- 2>&-'
    command = [*command_of("starter"), *starts(path, "sh", "-c", "test ! -e /proc/$$/fd/0 && readlink /proc/$$/fd/3")]
    ended = subprocess.run(["/bin/sh", "-c", script, "sh", *command], env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, timeout=30)
    assert (ended.returncode, ended.stdout) == (0, f"{tmp_path}/stands-for-dev-fuse\n".encode())


@INIT
def test_the_program_has_environment_directory_and_arguments(path: Path, driver: StandIn, tmp_path: Path, init: tuple[str, ...]) -> None:
    code = "import os, sys; print(os.environb[b'ODD'], '_PYI_X' in os.environ, os.getcwd(), os.fsencode(sys.argv[1]), sys.argv[2:])"
    ended = run(
        "starter",
        starts(path, *python(code), b"\xff", "", "--init", options=init),
        {"ODD": "a\udcff\nb", "_PYI_X": "1"},
        cwd=tmp_path,
    )
    assert ended == Ended(0, f"b'a\\xff\\nb' False {tmp_path} b'\\xff' ['', '--init']\n".encode(), b"")


@INIT
def test_the_program_has_the_signals_that_it_would_have_without_it(path: Path, driver: StandIn, init: tuple[str, ...]) -> None:
    # Python ignores SIGPIPE, and signals that are ignored or blocked stay so after execve(2).
    program = ("grep", "-E", "^Sig(Ign|Blk)", "/proc/self/status")
    ended = run("starter", starts(path, *program, options=init))
    assert ended.stdout.count(b"\n") == 2
    assert ended.stdout == subprocess.run(program, stdout=subprocess.PIPE, timeout=30).stdout


def test_the_request_has_no_mountpoint_and_no_options(path: Path, fuse: int) -> None:
    recorder = Recorder(OK, fuse)
    with StandIn(path, v1=recorder):
        run("starter", starts(path, "true"))
    assert [json.loads(request) for request in recorder.requests] == [{"op": "mount", "mountpoint": "", "options": "", "fds": []}]


def test_the_program_is_looked_for_in_path(path: Path, driver: StandIn, tmp_path: Path) -> None:
    for folder, mode in (("first", 0o644), ("second", 0o755)):
        (tmp_path / folder).mkdir()
        program = tmp_path / folder / "program"
        program.write_text("#!/bin/sh\necho $0\n")
        program.chmod(mode)
    environment = {"PATH": f"{tmp_path}/missing:{tmp_path}/first:{tmp_path}/second"}
    assert run("starter", starts(path, "program"), environment) == Ended(0, f"{tmp_path}/second/program\n".encode(), b"")
    # A program with a slash is not searched for in PATH.
    assert run("starter", starts(path, "./program"), environment, cwd=tmp_path / "second").stdout == b"./program\n"


# ---- errors


@INIT
def test_a_program_that_is_not_found_is_127_and_nothing_is_mounted(path: Path, driver: StandIn, init: tuple[str, ...]) -> None:
    for program in ("no-such-program", "/no/such/program"):
        ended = run("starter", starts(path, program, options=init))
        assert ended == Ended(127, b"", f"fuse-starter: {program}: No such file or directory\n".encode())
    assert driver.connections == 0


@INIT
def test_a_program_that_cannot_be_executed_is_126_and_nothing_is_mounted(
    path: Path, driver: StandIn, tmp_path: Path, init: tuple[str, ...]
) -> None:
    (tmp_path / "file").touch(mode=0o644)
    for program in (f"{tmp_path}/file", str(tmp_path)):
        ended = run("starter", starts(path, program, options=init))
        assert ended == Ended(126, b"", f"fuse-starter: {program}: Permission denied\n".encode())
    assert driver.connections == 0


@INIT
def test_a_program_that_execve_refuses_is_reported(path: Path, driver: StandIn, tmp_path: Path, init: tuple[str, ...]) -> None:
    program = tmp_path / "program"
    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)
    ended = run("starter", starts(path, str(program), options=init))
    assert ended == Ended(127, b"", f"fuse-starter: {program}: No such file or directory\n".encode())


@INIT
def test_a_script_without_an_interpreter_is_run_by_the_shell(path: Path, driver: StandIn, tmp_path: Path, init: tuple[str, ...]) -> None:
    # execvp(3) does the same.
    program = tmp_path / "program"
    program.write_text('echo "$0" "$@"; exit 7\n')
    program.chmod(0o755)
    ended = run("starter", starts(path, str(program), "a b", "--", options=init))
    assert ended == Ended(7, f"{program} a b --\n".encode(), b"")


def test_a_mistake_on_the_command_line_is_125_and_one_line() -> None:
    for arguments in ([], ["--bogus"], [SOCKET, "/s"], ["--", "sh"], [SOCKET, "/s", "--wait", "x", "--", "sh"]):
        ended = run("starter", arguments)
        assert (ended.code, ended.stdout, ended.stderr.count(b"\n")) == (125, b"", 1)
        assert ended.stderr.startswith(b"fuse-starter: ")
        assert b"--help" in ended.stderr


def test_help_is_printed_on_standard_output() -> None:
    ended = run("starter", ["--help"])
    assert (ended.code, ended.stderr) == (0, b"")
    assert ended.stdout.startswith(b"Usage: fuse-starter ")


def test_without_a_driver_it_is_125_and_one_line(path: Path) -> None:
    began = time.monotonic()
    ended = run("starter", starts(path, "sh", options=("--wait", "0")))
    assert (ended.code, ended.stdout, ended.stderr.count(b"\n")) == (125, b"", 1)
    assert ended.stderr.startswith(f"fuse-starter: no driver answers at {path} ".encode())
    assert time.monotonic() - began < limits.SOCKET_WAIT


def test_a_refusal_is_125_and_its_line(path: Path) -> None:
    with StandIn(path, v1=Recorder(b'{"error":"mount failed: Device or resource busy","errno":16}')):
        assert run("starter", starts(path, "sh")) == Ended(125, b"", b"fuse-starter: mount failed: Device or resource busy\n")
    with StandIn(path, original=lambda connection: None):
        assert run("starter", starts(path, "sh")) == Ended(125, b"", b"fuse-starter: the driver refused; its log says why\n")


@pytest.mark.parametrize("protocol", ["v1", "original"])
def test_waits_as_long_as_asked_for_a_socket_that_appears_late(path: Path, fuse: int, protocol: str) -> None:
    process = start("starter", starts(path, "true", options=("--wait", "60")))
    try:
        assert process.stderr is not None
        assert process.stderr.readline().startswith(b"fuse-starter: waiting up to 60 s for the driver")
        behaviour = Recorder(OK, fuse) if protocol == "v1" else sends(OK, fuse)
        with StandIn(path, **{protocol: behaviour}):
            assert end(process) == Ended(0, b"", b"")
    finally:
        process.kill()


@pytest.mark.parametrize("is_refused", [False, True], ids=["missing", "refuses"])
@pytest.mark.parametrize(("wait", "is_reported"), [("0", False), ("0.4", False), ("1.5", True)])
def test_waits_no_longer_than_asked(path: Path, wait: str, is_reported: bool, is_refused: bool) -> None:
    if is_refused:
        listen(f"{path}.v1", socket.SOCK_SEQPACKET).close()
    began = time.monotonic()
    ended = run("starter", starts(path, "true", options=("--wait", wait)))
    took = time.monotonic() - began
    why = "Connection refused" if is_refused else "No such file or directory"
    *waiting, last = ended.stderr.decode().splitlines()
    assert (ended.code, ended.stdout) == (125, b"")
    assert last.startswith(f"fuse-starter: no driver answers at {path} ({why}; waited {wait} s): ")
    # Waiting is reported if it takes more than a second.
    assert waiting == ([f"fuse-starter: waiting up to {wait} s for the driver at {path} ({why})"] if is_reported else [])
    assert float(wait) <= took < float(wait) + 5


def test_ctrl_c_while_it_waits_has_no_traceback(path: Path) -> None:
    silent = Silent()
    with StandIn(path, v1=silent):
        process = start("starter", starts(path, "sh"))
        try:
            assert silent.asked.wait(DEADLINE)
        finally:
            process.send_signal(signal.SIGINT)
        assert end(process) == Ended(-signal.SIGINT, b"", b"")


# ---- --init


def test_init_forwards_signals(path: Path, driver: StandIn) -> None:
    code = """
import signal, sys
numbers = {signal.SIGHUP, signal.SIGUSR1, signal.SIGINT, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
print("ready", flush=True)
while True:
    number = signal.sigwait(numbers)
    print(signal.Signals(number).name, flush=True)
    if number == signal.SIGTERM:
        sys.exit(5)
"""
    process = start("starter", starts(path, *python(code), options=("--init",)))
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGINT):
            process.send_signal(number)
            assert process.stdout.readline() == f"{number.name}\n".encode()
        process.send_signal(signal.SIGTERM)
        assert end(process) == Ended(5, b"SIGTERM\n", b"")
    finally:
        process.kill()


def test_without_init_a_signal_reaches_the_program_itself(path: Path, driver: StandIn) -> None:
    process = start("starter", starts(path, "sh", "-c", "echo $$; exec sleep 60"))
    try:
        assert process.stdout is not None
        # fuse-starter has become the program.
        assert int(process.stdout.readline()) == process.pid
        process.send_signal(signal.SIGTERM)
        assert end(process).code == -signal.SIGTERM
    finally:
        process.kill()


@INIT
def test_nobody_else_holds_the_fuse_fd(path: Path, tmp_path: Path, init: tuple[str, ...]) -> None:
    # If the parent held the fd, the mount would stay alive after the program's end.
    ours, theirs = socket.socketpair()
    ours.settimeout(DEADLINE)
    with ours, theirs, StandIn(path, v1=Recorder(OK, theirs.fileno())):
        process = start("starter", starts(path, "sh", "-c", "exec 3>&-; echo closed; exec sleep 60", options=init))
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"closed\n"
            theirs.close()
            assert ours.recv(1) == b""
        finally:
            process.send_signal(signal.SIGTERM)
            end(process)


def test_init_reaps_orphans(path: Path, driver: StandIn) -> None:
    # The kernel gives orphans to a container's first process, and here to a process that asks for them.
    starter_code = f"""
import ctypes, os, sys
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
sys.path.insert(0, {str(ROOT)!r})
from fusermount3_proxy import starter
os._exit(starter.main(sys.argv[1:]))
"""
    program_code = """
import os, sys, time
reader, writer = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
        os.write(writer, b"%d\\n" % os.getpid())
    os._exit(0)
os.wait()
orphan = int(os.read(reader, 100))
deadline = time.monotonic() + 10
while os.path.exists(f"/proc/{orphan}"):
    if time.monotonic() > deadline:
        sys.exit("the orphan was not reaped")
    time.sleep(0.01)
sys.exit(3)
"""
    arguments = ["--init", SOCKET, str(path), "--", *python(program_code)]
    ended = subprocess.run([sys.executable, "-S", "-c", starter_code, *arguments], capture_output=True, timeout=30)
    assert (ended.returncode, ended.stderr) == (3, b"")


def test_init_ends_where_its_parent_ignored_sigchld(path: Path, driver: StandIn) -> None:
    # If SIGCHLD stays ignored after execve(2), no signal comes when the program ends.
    code = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    command = [*command_of("starter"), *starts(path, "sh", "-c", "exit 7", options=("--init",))]
    environment = {"PYTHONPATH": str(ROOT), "PATH": os.defpath}
    process = subprocess.Popen([*python(code), *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        stdout, stderr = process.communicate(timeout=10)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, stdout, stderr) == (7, b"", b"")
