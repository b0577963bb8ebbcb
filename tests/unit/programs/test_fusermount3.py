"""Tests fusermount3 in a process of its own, with stand-ins for the FUSE library and the driver."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from open_fds import same_file
from pod_programs import SOCKET_VARIABLE, Ended, command_of, end, run, start
from standin_driver import DEADLINE, Recorder, Silent, StandIn, answer, listen, receive, sends

OK = b'{"volumeName": "data"}'
DONE = b"{}"


@pytest.fixture
def mountpoint(tmp_path: Path) -> Path:
    folder = tmp_path.resolve() / "mnt"
    folder.mkdir()
    return folder


class Library:
    """Stands in for a FUSE library: makes the comm socket and runs the helper."""

    def __init__(self, kind: int) -> None:
        self.ours, self.helpers = socket.socketpair(socket.AF_UNIX, kind)
        self.ours.settimeout(DEADLINE)

    def run(self, arguments: Sequence[str | bytes], path: Path, cwd: Path | None = None) -> Ended:
        """Run the helper as libfuse does."""
        number = self.helpers.fileno()
        ended = run("fusermount3", arguments, {"_FUSE_COMMFD": str(number), SOCKET_VARIABLE: str(path)}, [number], cwd=cwd)
        self.helpers.close()
        return ended

    def close(self) -> None:
        self.ours.close()
        self.helpers.close()


@pytest.fixture(params=[socket.SOCK_STREAM, socket.SOCK_SEQPACKET], ids=["STREAM", "SEQPACKET"])
def any_library(request: pytest.FixtureRequest) -> Iterator[Library]:
    library = Library(request.param)
    yield library
    library.close()


@pytest.fixture
def library() -> Iterator[Library]:
    library = Library(socket.SOCK_STREAM)
    yield library
    library.close()


def failed(line: str) -> Ended:
    return Ended(1, b"", f"fusermount3: {line}\n".encode("utf-8", "surrogateescape"))


# ---- mounting


@pytest.mark.parametrize(
    "arguments", [["--auto-unmount"], ["--auto-unmount", "-u"], ["-z", "--auto-unmount"], ["--auto-unmount", "-o", "ro"]]
)
def test_auto_unmount_alone_waits_for_the_end_of_the_socket(library: Library, path: Path, mountpoint: Path, arguments: list[str]) -> None:
    """No FUSE file system is mounted at the path, and no request is sent to the driver."""
    helper = library.helpers.fileno()
    environment = {"_FUSE_COMMFD": str(helper), SOCKET_VARIABLE: str(path)}
    with StandIn(path, v1=Recorder(OK)) as driver:
        process = start("fusermount3", [*arguments, "--", str(mountpoint)], environment, [helper])
        library.helpers.close()
        library.ours.send(b"any data, which is ignored")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        library.ours.close()
        assert end(process) == Ended(0, b"", b"")
        assert driver.connections == 0


@pytest.mark.parametrize("protocol", ["v1", "original"])
def test_the_library_gets_one_byte_and_the_fd(any_library: Library, path: Path, fuse: int, mountpoint: Path, protocol: str) -> None:
    behaviour = Recorder(OK, fuse) if protocol == "v1" else sends(OK, fuse)
    with StandIn(path, **{protocol: behaviour}):
        # Some libraries take any text as failure.
        assert any_library.run(["-o", "ro", "--", str(mountpoint)], path) == Ended(0, b"", b"")
    data, fds = receive(any_library.ours)
    assert data == b"\0"
    (fd,) = fds
    assert same_file(fd, fuse)
    os.close(fd)
    # No data follows, and no process holds the other end.
    assert any_library.ours.recv(100) == b""


def test_mountpoint_and_options_reach_the_driver_byte_for_byte(library: Library, path: Path, fuse: int, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path.resolve()) + b"/m\xff\n,\\"
    os.mkdir(folder)
    (tmp_path / "link").symlink_to(".")
    driver = Recorder(OK, fuse)
    with StandIn(path, v1=driver):
        assert library.run([b"link/m\xff\n,\\", b"-o", b"fsname=\xc3\xa9\xff,ro"], path, cwd=tmp_path).code == 0
    (request,) = map(json.loads, driver.requests)
    assert request["mountpoint"].encode("latin-1") == folder
    assert request["options"].encode("latin-1") == b"fsname=\xc3\xa9\xff,ro"


def test_ignored_options_are_reported_and_the_volume_is_mounted(library: Library, path: Path, fuse: int, mountpoint: Path) -> None:
    with StandIn(path, v1=Recorder(OK, fuse)):
        ended = library.run(["-o", "suid,dev,rw", str(mountpoint)], path)
    assert ended == Ended(0, b"", b"fusermount3: unsafe option suid ignored\nfusermount3: unsafe option dev ignored\n")


def test_the_warning_of_large_read_names_the_kernel(library: Library, path: Path, fuse: int, mountpoint: Path) -> None:
    major, minor = os.uname().release.split(".")[:2]
    with StandIn(path, v1=Recorder(OK, fuse)):
        ended = library.run(["-o", "large_read", str(mountpoint)], path)
    line = f"fusermount3: note: 'large_read' mount option is deprecated for {major}.{minor} kernels\n"
    assert ended == Ended(0, b"", line.encode())


def test_a_warning_comes_before_a_later_error(library: Library, path: Path, mountpoint: Path) -> None:
    ended = library.run(["-o", "suid,bogus", str(mountpoint)], path)
    assert ended == Ended(1, b"", b"fusermount3: unsafe option suid ignored\nfusermount3: unknown option 'bogus'\n")


def test_the_drivers_refusal_is_printed(library: Library, path: Path, mountpoint: Path) -> None:
    with StandIn(path, v1=Recorder(b'{"error":"mount failed: Device or resource busy","errno":16}')):
        assert library.run([str(mountpoint)], path) == failed("mount failed: Device or resource busy")
    library.ours.setblocking(False)
    assert library.ours.recv(100) == b""


@pytest.mark.parametrize("text", ["\\ud800", "\\udcff", "\\u0000", "\\ud83d\\ude00", "a\\nb"])
def test_the_drivers_refusal_may_hold_any_character(library: Library, path: Path, mountpoint: Path, text: str) -> None:
    with StandIn(path, v1=Recorder(f'{{"error":"{text}","errno":1}}'.encode())):
        ended = library.run([str(mountpoint)], path)
    assert ended.code == 1
    assert ended.stderr.startswith(b"fusermount3: ")
    assert b"Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "bogus", "M"], "unknown option 'bogus'"),
        (["-o", "ro,", "-o", ",", "M"], "unknown option ''"),
        (["-o", "blkdev", "M"], "option blkdev is privileged"),
        (["M/missing"], "failed to access mountpoint M/missing: No such file or directory"),
        # fusermount3, too, checks the mountpoint before the options.
        (["-o", "bogus", "M/missing"], "failed to access mountpoint M/missing: No such file or directory"),
        (["M/missing/m"], "bad mount point M/missing/m: No such file or directory"),
        (["M/file/m"], "failed to access mountpoint M/file/m: Not a directory"),
        (["M/file/x/m"], "bad mount point M/file/x/m: Not a directory"),
        ([""], "invalid mountpoint ''"),
        ([], "missing mountpoint argument"),
        (["M", "M"], "extra arguments after the mountpoint"),
        (["-z", "M"], "-z can only be used with -u"),
        (["-x"], "invalid option -- 'x'"),
        (["--bogus"], "unrecognized option '--bogus'"),
    ],
)
def test_a_mistake_is_fusermount3s_line_and_no_request_is_sent(
    library: Library, path: Path, mountpoint: Path, arguments: list[str], message: str
) -> None:
    (mountpoint / "file").touch()
    put = str(mountpoint)
    with StandIn(path, v1=Recorder(b"")) as driver:
        ended = library.run([put + argument[1:] if argument.startswith("M") else argument for argument in arguments], path)
        assert driver.connections == 0
    assert ended == failed(message.replace(" M", f" {put}"))


def test_options_that_are_too_long_are_refused(library: Library, path: Path, mountpoint: Path) -> None:
    with StandIn(path, v1=Recorder(b"")) as driver:
        ended = library.run(["-o", "fsname=" + "x" * 130000, str(mountpoint)], path)
        assert driver.connections == 0
    assert ended == failed("the text of the options has 130007 bytes, at most 16384 are allowed")


def test_only_the_last_of_many_long_options_counts(library: Library, path: Path, mountpoint: Path, fuse: int) -> None:
    long = [word for _ in range(10) for word in ("-o", "fsname=" + "x" * 130000)]
    with StandIn(path, v1=Recorder(OK, fuse)) as driver:
        assert library.run([*long, "-o", "ro", str(mountpoint)], path) == Ended(0, b"", b"")
        assert driver.connections == 1


def test_a_long_option_that_is_not_known_is_one_line(library: Library, path: Path, mountpoint: Path) -> None:
    assert library.run(["-o", "x" * 130000, str(mountpoint)], path) == failed(f"unknown option '{'x' * 130000}'")


@pytest.mark.parametrize("behaviour", [lambda connection: None, sends(b"{"), sends(OK), sends(b"x" * 70000)])
@pytest.mark.parametrize("protocol", ["v1", "original"])
def test_a_broken_answer_is_one_line(library: Library, path: Path, mountpoint: Path, protocol: str, behaviour: Recorder) -> None:
    def careless(connection: socket.socket) -> None:
        try:
            behaviour(connection)
        except OSError:
            pass  # the client has closed the connection

    with StandIn(path, **{protocol: careless}):
        ended = library.run([str(mountpoint)], path)
    assert (ended.code, ended.stdout) == (1, b"")
    assert ended.stderr.startswith(b"fusermount3: ")
    assert ended.stderr.count(b"\n") == 1


# ---- the comm fd


def run_with_comm(number: str, mountpoint: Path, path: Path, pass_fds: Sequence[int] = ()) -> Ended:
    return run("fusermount3", [str(mountpoint)], {"_FUSE_COMMFD": number, SOCKET_VARIABLE: str(path)}, pass_fds)


def check_refused(ended: Ended, message: str) -> None:
    assert (ended.code, ended.stdout) == (1, b"")
    assert ended.stderr.count(b"\n") == 1
    assert ended.stderr.startswith(f"fusermount3: {message}".encode())


def cannot_send(reason: str) -> Ended:
    # fusermount3 prints this line without its name.
    return Ended(1, b"", f"sending file descriptor: {reason}\n".encode())


def test_without_a_comm_fd_nothing_is_mounted(path: Path, mountpoint: Path) -> None:
    with StandIn(path, v1=Recorder(OK)) as driver:
        assert run("fusermount3", [str(mountpoint)], {SOCKET_VARIABLE: str(path)}) == failed("old style mounting not supported")
        assert driver.connections == 0


@pytest.mark.parametrize(
    ("number", "message"),
    [
        # Text that is no number means 0, which is standard input.
        *(
            (text, "Socket operation on non-socket")
            for text in ("", "x", "x3", "\u0663", "- 3", "+-3", "0", "4294967296", "-" + "9" * 5000)
        ),
        *((text, "Bad file descriptor") for text in ("-1", "99", "99x", " \t\n\v\f\r+99", "0" * 5000 + "99", "9" * 5000, "-4294967197")),
    ],
)
def test_the_comm_fd_is_read_as_atoi_reads_it(path: Path, mountpoint: Path, number: str, message: str) -> None:
    with StandIn(path, v1=Recorder(OK)) as driver:
        assert run_with_comm(number, mountpoint, path) == cannot_send(message)
        assert driver.connections == 0


def test_a_comm_fd_that_is_closed_is_reported(path: Path, mountpoint: Path) -> None:
    with StandIn(path, v1=Recorder(OK)) as driver:
        assert run_with_comm("99", mountpoint, path) == cannot_send("Bad file descriptor")
        assert driver.connections == 0


def test_a_comm_fd_that_is_no_unix_socket_is_reported(path: Path, mountpoint: Path) -> None:
    reader, writer = os.pipe()
    with StandIn(path, v1=Recorder(OK)) as driver, open("/dev/null") as file, socket.socket() as inet:
        for fd, message in (
            (reader, "Socket operation on non-socket"),
            (writer, "Socket operation on non-socket"),
            (file.fileno(), "Socket operation on non-socket"),
            (inet.fileno(), "Invalid argument"),
        ):
            assert run_with_comm(str(fd), mountpoint, path, [fd]) == cannot_send(message)
        assert driver.connections == 0
    os.close(reader)
    os.close(writer)


def test_the_comm_fd_may_be_given_as_an_option(library: Library, path: Path, fuse: int, mountpoint: Path) -> None:
    number = library.helpers.fileno()
    with StandIn(path, v1=Recorder(OK, fuse)):
        arguments = [f"--comm-fd={number}", str(mountpoint)]
        assert run("fusermount3", arguments, {SOCKET_VARIABLE: str(path)}, [number]) == Ended(0, b"", b"")
    assert receive(library.ours)[0] == b"\0"


def test_the_comm_fd_may_be_standard_input(library: Library, path: Path, fuse: int, mountpoint: Path) -> None:
    # socketpair(2) returns 0 to a program whose standard input is closed.
    with StandIn(path, v1=Recorder(OK, fuse)):
        environment = {"_FUSE_COMMFD": "0", SOCKET_VARIABLE: str(path)}
        assert run("fusermount3", [str(mountpoint)], environment, stdin=library.helpers.fileno()) == Ended(0, b"", b"")
    assert receive(library.ours)[0] == b"\0"


def test_a_comm_fd_that_does_not_block_is_used(library: Library, path: Path, fuse: int, mountpoint: Path) -> None:
    library.helpers.setblocking(False)
    with StandIn(path, v1=Recorder(OK, fuse)):
        assert library.run([str(mountpoint)], path) == Ended(0, b"", b"")


def test_a_closed_comm_socket_is_reported_and_the_mount_undone(any_library: Library, path: Path, fuse: int, mountpoint: Path) -> None:
    requests = []

    def behaviour(connection: socket.socket) -> None:
        requests.append(json.loads(connection.recv(1 << 20)))
        if requests[-1]["op"] == "mount":
            answer(connection, OK, fuse)
        else:
            answer(connection, DONE)

    any_library.ours.close()
    with StandIn(path, v1=behaviour):
        assert any_library.run([str(mountpoint)], path) == cannot_send("Broken pipe")
    assert [request["op"] for request in requests] == ["mount", "unmount"]
    assert requests[1]["mountpoint"] == str(mountpoint)
    assert requests[1]["lazy"]


# ---- unmounting


def unmount(path: Path, *arguments: str | bytes, cwd: Path | None = None) -> Ended:
    return run("fusermount3", arguments, {SOCKET_VARIABLE: str(path)}, cwd=cwd)


@pytest.mark.parametrize(
    ("arguments", "lazy"), [(["-u"], False), (["-u", "-z"], True), (["-u", "-q", "-z", "--"], True), (["--unmount", "--lazy"], True)]
)
def test_unmounting_names_the_mountpoint(path: Path, mountpoint: Path, arguments: list[str], lazy: bool) -> None:
    driver = Recorder(DONE)
    with StandIn(path, v1=driver):
        assert unmount(path, *arguments, str(mountpoint)) == Ended(0, b"", b"")
    assert [json.loads(request) for request in driver.requests] == [
        {"op": "unmount", "mountpoint": str(mountpoint), "lazy": lazy, "dev": None, "fds": []}
    ]


def test_unmounting_makes_the_mountpoint_absolute(path: Path, mountpoint: Path) -> None:
    driver = Recorder(DONE)
    with StandIn(path, v1=driver):
        assert unmount(path, "-u", "./mnt/", cwd=mountpoint.parent).code == 0
    assert json.loads(driver.requests[0])["mountpoint"] == str(mountpoint)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (b'{"error":"not mounted","errno":22}', "entry for M not found in /etc/mtab"),
        (b'{"error":"Device or resource busy","errno":16}', "failed to unmount M: Device or resource busy"),
    ],
)
def test_a_refusal_to_unmount_is_fusermount3s_line_or_none_when_quiet(path: Path, mountpoint: Path, reply: bytes, message: str) -> None:
    with StandIn(path, v1=Recorder(reply)):
        assert unmount(path, "-u", str(mountpoint)) == failed(message.replace("M", str(mountpoint), 1))
        assert unmount(path, "-u", "-q", str(mountpoint)) == Ended(1, b"", b"")


def test_unmounting_is_not_in_the_original_protocol(path: Path, mountpoint: Path) -> None:
    with StandIn(path, original=sends(OK)) as driver:
        ended = unmount(path, "-u", str(mountpoint))
        assert unmount(path, "-u", "-q", str(mountpoint)) == Ended(1, b"", b"")
        # To connect would be a request to mount.
        assert driver.connections == 0
    check_refused(ended, f"failed to unmount {mountpoint}: ")
    assert b"original protocol" in ended.stderr


def test_unmounting_where_there_is_no_volume_is_an_entry_that_is_not_found(mountpoint: Path) -> None:
    # fusermount3 prints the same for a directory at which nothing is mounted.
    ended = run("fusermount3", ["-u", str(mountpoint)])
    assert ended == failed(f"entry for {mountpoint} not found in /etc/mtab")
    assert run("fusermount3", ["-u", "-q", str(mountpoint)]) == Ended(1, b"", b"")


@pytest.mark.parametrize("quiet", [[], ["-q"]])
def test_a_mountpoint_that_cannot_be_resolved_is_reported_even_with_q(path: Path, mountpoint: Path, quiet: list[str]) -> None:
    missing = f"{mountpoint}/missing/m"
    assert unmount(path, "-u", *quiet, missing) == failed(f"bad mount point {missing}: No such file or directory")


# ---- the rest of the command line, standard streams, and signals


def test_help_is_printed_on_standard_output_and_fails() -> None:
    for option in ("-h", "--help"):
        ended = run("fusermount3", [option])
        assert (ended.code, ended.stderr) == (1, b"")
        assert ended.stdout.startswith(b"fusermount3: [options] mountpoint\nOptions:\n")


def test_version_can_be_parsed() -> None:
    for option in ("-V", "--version"):
        assert run("fusermount3", [option]) == Ended(0, b"fusermount3 version: 3.14.0\n", b"")


@pytest.mark.parametrize(("arguments", "code"), [(["-V"], 0), (["-h"], 1), (["-x"], 1), ([], 1)])
def test_closed_standard_streams_change_no_exit_code(arguments: list[str], code: int) -> None:
    script = 'exec "$@" <&- >&- 2>&-'
    environment = {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    ended = subprocess.run(["/bin/sh", "-c", script, "sh", *command_of("fusermount3"), *arguments], env=environment, timeout=30)
    assert ended.returncode == code


def test_a_closed_pipe_as_standard_output_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    environment = {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    ended = subprocess.run([*command_of("fusermount3"), "-V"], env=environment, stdout=writer, stderr=subprocess.PIPE, timeout=30)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_without_a_socket_it_reports_what_to_set(library: Library, mountpoint: Path) -> None:
    number = library.helpers.fileno()
    ended = run("fusermount3", [str(mountpoint)], {"_FUSE_COMMFD": str(number)}, [number])
    check_refused(ended, f"{SOCKET_VARIABLE} is not set")


def test_the_socket_is_found_in_the_parents_environment(library: Library, path: Path, fuse: int, mountpoint: Path) -> None:
    # go-fuse starts the helper so: with only _FUSE_COMMFD in the environment, and without --. It reads the fd later.
    number = library.helpers.fileno()
    root = Path(__file__).resolve().parents[3]
    code = f"import sys; sys.path.insert(0, {str(root)!r}); from fusermount3_proxy.fusermount3 import run; run()"
    script = 'env -i "_FUSE_COMMFD=$0" "$@"; exit $?'
    with StandIn(path, v1=Recorder(OK, fuse)):
        ended = subprocess.run(
            ["/bin/sh", "-c", script, str(number), sys.executable, "-S", "-c", code, str(mountpoint), "-o", "ro"],
            env={"PATH": os.defpath, SOCKET_VARIABLE: str(path)},
            pass_fds=[number],
            capture_output=True,
            timeout=30,
        )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")
    assert receive(library.ours)[0] == b"\0"


@pytest.mark.parametrize("environment", [{"LC_ALL": "C"}, {"LC_ALL": "POSIX"}, {"LANG": "C.UTF-8"}, {}])
def test_the_locale_changes_no_byte(path: Path, tmp_path: Path, environment: Mapping[str, str]) -> None:
    folder = os.fsencode(tmp_path.resolve()) + b"/\xc3\xa9\xff"
    driver = Recorder(b'{"error":"not mounted","errno":22}')
    with StandIn(path, v1=driver):
        ended = run("fusermount3", [b"-u", folder], {SOCKET_VARIABLE: str(path), **environment})
    assert json.loads(driver.requests[0])["mountpoint"].encode("latin-1") == folder
    assert ended == Ended(1, b"", b"fusermount3: entry for " + folder + b" not found in /etc/mtab\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_without_output(library: Library, path: Path, mountpoint: Path, number: signal.Signals) -> None:
    silent = Silent()
    with StandIn(path, v1=silent):
        comm = library.helpers.fileno()
        helper = start("fusermount3", [str(mountpoint)], {"_FUSE_COMMFD": str(comm), SOCKET_VARIABLE: str(path)}, [comm])
        try:
            assert silent.asked.wait(DEADLINE)
        finally:
            helper.send_signal(number)
        assert end(helper) == Ended(-number, b"", b"")


def test_a_driver_that_is_away_is_waited_for(library: Library, path: Path, fuse: int, mountpoint: Path) -> None:
    listen(f"{path}.v1", socket.SOCK_SEQPACKET).close()
    comm = library.helpers.fileno()
    helper = start("fusermount3", [str(mountpoint)], {"_FUSE_COMMFD": str(comm), SOCKET_VARIABLE: str(path)}, [comm])
    try:
        assert helper.stderr is not None
        line = helper.stderr.readline()
        # The next driver removes the old socket in this way.
        os.unlink(f"{path}.v1")
        with StandIn(path, v1=Recorder(OK, fuse)):
            assert end(helper) == Ended(0, b"", b"")
    finally:
        helper.kill()
    assert line.startswith(b"fusermount3: waiting up to 10 s for the driver")
