"""Implements the program fuse-starter, which gets the /dev/fuse fd, makes it fd 3, and becomes the FUSE program.

    fuse-starter --fd-passing-socket-path SOCKET [--wait SECONDS] [--init] -- PROGRAM [ARGUMENT...]

It is for FUSE programs that can mount at /dev/fd/3. Since it becomes the FUSE program (execve(2)), pid, signals and exit code
are those of the FUSE program. Before that its exit codes are those of env(1): 125 if it fails itself, 126 if the FUSE program
cannot be executed, and 127 if the FUSE program is not found.
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

FUSE_FD = 3  # FUSE programs are given /dev/fd/3

EXIT_FAILED = 125
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127

USAGE = """\
Usage: fuse-starter --fd-passing-socket-path SOCKET [--wait SECONDS] [--init] -- PROGRAM [ARGUMENT...]

Gets the file descriptor of a mounted FUSE volume from the driver and becomes PROGRAM, which finds it as /dev/fd/3.

  --fd-passing-socket-path SOCKET  the volume's socket
  --wait SECONDS                   how long to wait for a socket that is missing or refuses (default 10; 0: do not wait)
  --init                           run PROGRAM as a child, as a container's first process: forward signals, reap children
  --help                           print this
"""


class UsageError(Exception):
    """Reports a command line that is refused. The text gives the reason."""


class Command:
    """Holds what the command line asks for. `wait` is in seconds. If `help` is set, the other attributes do not count."""

    __slots__ = ("help", "init", "program", "socket_path", "wait")

    def __init__(self) -> None:
        self.socket_path = ""
        self.wait = limits.SOCKET_WAIT
        self.init = False
        self.help = False
        self.program: list[str] = []


def parse(arguments: list[str]) -> Command:
    """Parse the arguments after the program's name. Raises UsageError."""
    command = Command()
    rest = list(arguments)
    while rest and rest[0].startswith("-"):
        name, equals, value = rest.pop(0).partition("=")
        if (not name.startswith("--") and len(name) > 2) or name == "-v":
            name = f"-{name}"  # the Go plugin's manifests may have one dash, which Go's flag package accepts
        if name in ("--logtostderr", "--alsologtostderr"):
            continue  # these and --v are for the Go plugin's log, which this program does not have
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
    """Run with the arguments after the program's name. Returns the exit code, if the FUSE program did not replace this process."""
    try:
        command = parse(arguments)
    except UsageError as error:
        report(f"{error}; try fuse-starter --help")
        return EXIT_FAILED
    if command.help:
        program.write(1, USAGE)
        return 0
    environment = program_environment(posix.environ, getattr(sys, "_MEIPASS", None))
    # The FUSE program is searched for before mounting, so that nothing has to be undone.
    candidates = _candidates(command.program[0], environment)
    if error_number := _why_not_executable(candidates):
        return _report_not_executed(command.program[0], error_number)
    try:
        reply, fuse_fd = driver_socket.mount(command.socket_path, MountRequest("", ""), command.wait, report)
    except DriverError as error:
        report(str(error))
        return EXIT_FAILED
    if reply.error is not None:
        report(reply.error)
        return EXIT_FAILED
    if command.init:
        return _run_as_init(candidates, command.program, environment, fuse_fd)
    return _become(candidates, command.program, environment, fuse_fd)


def report(line: str) -> None:
    """Print one line on standard error."""
    program.write(2, f"fuse-starter: {line}\n")


def program_environment(environ: dict[bytes, bytes], bundle: str | None) -> dict[bytes, bytes]:
    """Return the environment without what PyInstaller's boot loader put there. `bundle` is its folder, None without a boot loader."""
    clean = {name: value for name, value in environ.items() if not name.startswith(b"_PYI_")}
    if bundle is not None and clean.get(b"LD_LIBRARY_PATH", b"").split(b":")[0] == bundle.encode("utf-8", "surrogateescape"):
        original = clean.pop(b"LD_LIBRARY_PATH_ORIG", None)
        del clean[b"LD_LIBRARY_PATH"]
        if original is not None:
            clean[b"LD_LIBRARY_PATH"] = original
    return clean


def _candidates(name: str, environment: dict[bytes, bytes]) -> list[bytes]:
    """Return the paths at which execvp(3) would search for the program `name`."""
    raw = to_bytes(name)
    if b"/" in raw:
        return [raw]
    folders = environment.get(b"PATH", b"/bin:/usr/bin").split(b":")
    return [(folder or b".") + b"/" + raw for folder in folders]


def _why_not_executable(candidates: list[bytes]) -> int:
    """Return 0 if one of the candidates can be executed, and otherwise an errno, which is ENOENT only if none exists."""
    reason = ENOENT
    for path in candidates:
        try:
            mode = posix.stat(path).st_mode
        except OSError as error:
            if error.errno not in (ENOENT, ENOTDIR, None):
                reason = error.errno
            continue
        if mode & 0o170000 == 0o100000 and posix.access(path, posix.X_OK):
            return 0
        reason = EACCES
    return reason


def _report_not_executed(name: str, reason: int) -> int:
    """Report that the program was not executed, and return the exit code for it."""
    report(f"{name}: {posix.strerror(reason)}")
    return EXIT_NOT_FOUND if reason in (ENOENT, ENOTDIR) else EXIT_NOT_EXECUTABLE


def _become(candidates: list[bytes], command: list[str], environment: dict[bytes, bytes], fuse_fd: int) -> int:
    """Replace this process by the FUSE program. Returns the exit code if that fails."""
    if fuse_fd == FUSE_FD:
        posix.set_inheritable(FUSE_FD, True)
    else:
        posix.dup2(fuse_fd, FUSE_FD, True)
    program.close_others({*range(FUSE_FD + 1)})
    # Python ignores these two signals, and a signal that is ignored stays ignored after execve(2).
    set_signal(SIGPIPE, SIG_DFL)
    set_signal(SIGXFSZ, SIG_DFL)
    arguments = [to_bytes(argument) for argument in command]
    reason = ENOENT
    for path in candidates:
        try:
            _execute(path, arguments, environment)
        except OSError as error:
            if error.errno not in (ENOENT, ENOTDIR, None):
                reason = error.errno
    return _report_not_executed(command[0], reason)


def _execute(path: bytes, arguments: list[bytes], environment: dict[bytes, bytes]) -> None:
    try:
        posix.execve(path, arguments, environment)
    except OSError as error:
        if error.errno != ENOEXEC:
            raise
    # execvp(3), too, runs a script without #! with the shell.
    posix.execve(b"/bin/sh", [b"/bin/sh", path, *arguments[1:]], environment)


def _run_as_init(candidates: list[bytes], command: list[str], environment: dict[bytes, bytes], fuse_fd: int) -> int:
    """Run the program as a child, forward every signal to it, reap all children, and return the program's exit code."""
    set_signal(SIGCHLD, SIG_DFL)  # a parent may have left it ignored, and then no signal would report that a child has ended
    before = pthread_sigmask(SIG_BLOCK, valid_signals())
    child = posix.fork()
    if child == 0:
        pthread_sigmask(SIG_SETMASK, before)
        posix._exit(_become(candidates, command, environment, fuse_fd))
    # If this process held the fd too, the mount would stay alive after the program's end.
    posix.close(fuse_fd)
    while True:
        number = sigwait(valid_signals())
        if number != SIGCHLD:
            try:
                posix.kill(child, number)
            except OSError:
                pass  # the program has just ended, or runs as another user
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
    """Run the program and end the process."""
    program.restore_sigint()
    if posix.getpid() == 1:
        # The kernel drops signals that a container's first process does not handle, and --wait may be long. execve(2) removes
        # the handlers.
        for number in (SIGINT, SIGTERM):
            set_signal(number, lambda number, _: posix._exit(128 + number))
    posix._exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
