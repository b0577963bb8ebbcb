"""fuse-starter: get the /dev/fuse fd from the driver, make it fd 3, and become the program.

    fuse-starter --fd-passing-socket-path SOCKET [--wait SECONDS] [--init] -- PROGRAM [ARGUMENT...]

For programs that mount at /dev/fd/3. Since it becomes the program (execve(2)), pid, signals and exit code are the
program's own. Exit codes of its own, as of env(1): 125 where it fails itself, 126 where the program cannot be executed,
127 where it is not found.
"""

import posix
import sys
from _signal import SIG_BLOCK, SIG_DFL, SIG_SETMASK, SIGCHLD, SIGINT, SIGPIPE, SIGTERM, SIGXFSZ, pthread_sigmask, sigwait, valid_signals
from _signal import signal as set_signal
from errno import EACCES, ENOENT, ENOEXEC, ENOTDIR

from fusermount3_proxy import driver_socket, limits, program
from fusermount3_proxy.driver_socket import DriverError
from fusermount3_proxy.program import to_bytes
from fusermount3_proxy.wire.protocol import MountRequest

FUSE_FD = 3  # the programs name it /dev/fd/3

EXIT_FAILED = 125
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127

USAGE = """\
Usage: fuse-starter --fd-passing-socket-path SOCKET [--wait SECONDS] [--init] -- PROGRAM [ARGUMENT...]

Gets the file descriptor of a mounted FUSE volume from the driver and becomes PROGRAM, which finds it as /dev/fd/3.

  --fd-passing-socket-path SOCKET  the volume's socket
  --wait SECONDS                   how long to wait for a socket that is missing or refuses (default 10, 0: not at all)
  --init                           stay as its parent, for a container's first process: forward signals, reap children
  --help                           print this
"""


class UsageError(Exception):
    """A command line that is refused; the text says why."""


class Command:
    """What the command line asks for."""

    __slots__ = ("help", "init", "program", "socket_path", "wait")

    def __init__(self) -> None:
        self.socket_path = ""
        self.wait = limits.SOCKET_WAIT
        self.init = False
        self.help = False
        self.program: list[str] = []


def parse(arguments: list[str]) -> Command:
    """Read the arguments after the program's name. Raises UsageError."""
    command = Command()
    rest = list(arguments)
    while rest and rest[0].startswith("-"):
        name, equals, value = rest.pop(0).partition("=")
        if (not name.startswith("--") and len(name) > 2) or name == "-v":
            name = f"-{name}"  # as programs in Go take them
        if name in ("--logtostderr", "--alsologtostderr"):
            continue  # the Go plugin's logging, as --v: there is nothing here to log
        if name == "--" and not equals:
            break
        if name in ("--help", "-h"):
            command.help = True
            return command
        if name == "--init" and not equals:
            command.init = True
            continue
        if name not in ("--fd-passing-socket-path", "--wait", "--v"):
            raise UsageError(f"unknown option {name}{equals}{value}")
        if not equals:
            if not rest:
                raise UsageError(f"{name} needs a value")
            value = rest.pop(0)
        if name == "--wait":
            command.wait = _seconds(value)
        elif name == "--fd-passing-socket-path":
            command.socket_path = value
    command.program = rest
    if not command.socket_path:
        raise UsageError("--fd-passing-socket-path is missing: the path of the volume's socket")
    if not command.program or not command.program[0]:
        raise UsageError("the program is missing: give it and its arguments after --")
    return command


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise UsageError(f"--wait {value} is not a number of seconds")
    return seconds


def main(arguments: list[str]) -> int:
    """Run with the arguments after the program's name. Returns only where the program did not start, or with --init."""
    try:
        command = parse(arguments)
    except UsageError as error:
        say(f"{error} (fuse-starter --help)")
        return EXIT_FAILED
    if command.help:
        program.write(1, USAGE)
        return 0
    environment = program_environment(posix.environ, getattr(sys, "_MEIPASS", None))
    # Looked up before the volume is mounted, so that nothing has to be undone.
    candidates = _candidates(command.program[0], environment)
    if not_executable := _not_executable(candidates):
        return _cannot_execute(command.program[0], not_executable)
    try:
        reply, fuse_fd = driver_socket.mount(command.socket_path, MountRequest("", ""), command.wait, say)
    except DriverError as error:
        say(str(error))
        return EXIT_FAILED
    if reply.error is not None:
        say(reply.error)
        return EXIT_FAILED
    if command.init:
        return _init(candidates, command.program, environment, fuse_fd)
    return _become(candidates, command.program, environment, fuse_fd)


def say(line: str) -> None:
    """Print one line on standard error."""
    program.write(2, f"fuse-starter: {line}\n")


def program_environment(environ: dict[bytes, bytes], bundle: str | None) -> dict[bytes, bytes]:
    """The environment without what PyInstaller's bootloader left in it; `bundle` is its folder, None outside of one."""
    clean = {name: value for name, value in environ.items() if not name.startswith(b"_PYI_")}
    if bundle is not None and clean.get(b"LD_LIBRARY_PATH", b"").split(b":")[0] == bundle.encode("utf-8", "surrogateescape"):
        original = clean.pop(b"LD_LIBRARY_PATH_ORIG", None)
        del clean[b"LD_LIBRARY_PATH"]
        if original is not None:
            clean[b"LD_LIBRARY_PATH"] = original
    return clean


def _candidates(name: str, environment: dict[bytes, bytes]) -> list[bytes]:
    """Where the program may be, as execvp(3) looks for it."""
    raw = to_bytes(name)
    if b"/" in raw:
        return [raw]
    folders = environment.get(b"PATH", b"/bin:/usr/bin").split(b":")
    return [(folder or b".") + b"/" + raw for folder in folders]


def _not_executable(candidates: list[bytes]) -> int:
    """0 where one of them can be executed, otherwise the errno that tells most."""
    told = ENOENT
    for path in candidates:
        try:
            mode = posix.stat(path).st_mode
        except OSError as error:
            if error.errno not in (ENOENT, ENOTDIR, None):
                told = error.errno
            continue
        if mode & 0o170000 == 0o100000 and posix.access(path, posix.X_OK):
            return 0
        told = EACCES
    return told


def _cannot_execute(name: str, error: int) -> int:
    say(f"{name}: {posix.strerror(error)}")
    return EXIT_NOT_FOUND if error in (ENOENT, ENOTDIR) else EXIT_NOT_EXECUTABLE


def _become(candidates: list[bytes], command: list[str], environment: dict[bytes, bytes], fuse_fd: int) -> int:
    if fuse_fd == FUSE_FD:
        posix.set_inheritable(FUSE_FD, True)
    else:
        posix.dup2(fuse_fd, FUSE_FD, True)
    program.close_others({*range(FUSE_FD + 1)})
    # Python ignores these two, and an ignored signal stays ignored across execve(2).
    set_signal(SIGPIPE, SIG_DFL)
    set_signal(SIGXFSZ, SIG_DFL)
    arguments = [to_bytes(argument) for argument in command]
    told = ENOENT
    for path in candidates:
        try:
            _execute(path, arguments, environment)
        except OSError as error:
            if error.errno not in (ENOENT, ENOTDIR, None):
                told = error.errno
    return _cannot_execute(command[0], told)


def _execute(path: bytes, arguments: list[bytes], environment: dict[bytes, bytes]) -> None:
    try:
        posix.execve(path, arguments, environment)
    except OSError as error:
        if error.errno != ENOEXEC:
            raise
    # A script without #!: as execvp(3) does it.
    posix.execve(b"/bin/sh", [b"/bin/sh", path, *arguments[1:]], environment)


def _init(candidates: list[bytes], command: list[str], environment: dict[bytes, bytes], fuse_fd: int) -> int:
    """Run the program as a child: forward every signal to it, reap whatever ends, exit as the program did."""
    set_signal(SIGCHLD, SIG_DFL)  # ignored, as some parents leave it, children would vanish without a word
    before = pthread_sigmask(SIG_BLOCK, valid_signals())
    child = posix.fork()
    if child == 0:
        pthread_sigmask(SIG_SETMASK, before)
        posix._exit(_become(candidates, command, environment, fuse_fd))
    # Held here it would keep the connection alive after the program's death.
    posix.close(fuse_fd)
    while True:
        number = sigwait(valid_signals())
        if number != SIGCHLD:
            try:
                posix.kill(child, number)
            except OSError:
                pass  # it has just ended, or has become another user
            continue
        while True:
            try:
                pid, status = posix.waitpid(-1, posix.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid == child:
                return posix.WEXITSTATUS(status) if posix.WIFEXITED(status) else 128 + posix.WTERMSIG(status)


def run() -> None:
    """The program's entry: never returns."""
    program.die_of_interrupts()
    if posix.getpid() == 1:
        # The kernel drops signals to a container's first process that it does not handle, and a socket may be waited
        # for as long as the user likes. execve(2) takes the handlers off again.
        for number in (SIGINT, SIGTERM):
            set_signal(number, lambda number, _: posix._exit(128 + number))
    posix._exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
