"""fusermount3: libfuse's helper, with the driver doing what needs privileges.

A FUSE library starts it with its own argv and with a Unix socket in `_FUSE_COMMFD`. It asks the driver for the mount,
and passes the /dev/fuse fd on over that socket the way libfuse's fusermount3 does: one byte with the fd attached.
"""

import posix
import sys
from _socket import AF_UNIX, SO_DOMAIN, SOL_SOCKET, socket
from errno import EBADF, EINVAL

from fusermount3_proxy import autounmount, commandline, driver_socket, limits, mountpoint, program, syncinit
from fusermount3_proxy.commandline import Command, CommandLineError
from fusermount3_proxy.discovery import NoSocket, find_socket
from fusermount3_proxy.driver_socket import DriverError, OriginalProtocolOnly
from fusermount3_proxy.program import to_bytes, to_text
from fusermount3_proxy.syncinit import SyncInitError
from fusermount3_proxy.wire import fdpass, options, protocol
from fusermount3_proxy.wire.options import OptionError
from fusermount3_proxy.wire.protocol import MountRequest, UnmountRequest

# Programs compare it to know what the helper can do; 3.14 is the version whose behaviour this one has.
VERSION = "fusermount3 version: 3.14.0\n"


class Failure(Exception):
    """The end, with exit code 1; the text is the line on standard error, without the program's name."""


class CannotSend(Failure):
    """The comm fd is of no use. fusermount3 says this without its name."""


class CannotUnmount(Failure):
    """A failure that -q keeps quiet about."""


def main(arguments: list[str]) -> int:
    """Run with the arguments after the program's name. Returns the exit code."""
    command = Command()
    try:
        command = commandline.parse(arguments, b"POSIXLY_CORRECT" in posix.environ)
        if command.help:
            program.write(1, commandline.USAGE)
            return 1
        if command.version:
            program.write(1, VERSION)
            return 0
        path = _resolve(command.mountpoint)
        if command.unmount and not command.auto_unmount:
            _unmount(command, path)
        else:
            _mount(command, path)
    except (CommandLineError, Failure, DriverError, NoSocket) as error:
        is_quiet = command.unmount and command.quiet and isinstance(error, CannotUnmount | DriverError | NoSocket)
        if isinstance(error, CannotSend):
            program.write(2, f"{error}\n")
        elif not is_quiet:
            say(str(error))
        return 1
    return 0


def say(line: str) -> None:
    """Print one line on standard error, under the name that users of libfuse look for."""
    program.write(2, f"fusermount3: {line}\n")


def _resolve(given: str) -> bytes:
    try:
        return mountpoint.resolve(to_bytes(given))
    except OSError as error:
        raise Failure(f"bad mount point {given}: {error.strerror}") from None
    except ValueError:
        raise Failure(f"invalid mountpoint '{given}'") from None


def _mount(command: Command, path: bytes) -> None:
    comm_fd = command.comm_fd
    if comm_fd is None:
        variable = posix.environ.get(b"_FUSE_COMMFD")
        if variable is None:
            raise Failure("old style mounting not supported")
        comm_fd = variable.decode("utf-8", "replace")
    if command.auto_unmount:
        # The program has mounted by itself, in its own container, and asks for nothing else.
        autounmount.wait_and_unmount(_comm_socket(comm_fd), path)
        return
    _check_mountpoint(path)
    raw_options = to_bytes(command.options)
    try:
        asked = options.parse(to_text(raw_options))
    except OptionError as error:
        for warning in error.warnings:
            say(warning)
        raise Failure(str(error)) from None
    for warning in asked.warnings:
        say(warning)
    # Looked at before anything is mounted, so that nothing has to be undone.
    comm = _comm_socket(comm_fd)

    socket_path = find_socket()
    request = MountRequest(protocol.to_wire(path), protocol.to_wire(raw_options), command.sync_init)
    if command.sync_init:
        _mount_when_told(comm, socket_path, request)
        return
    reply, fuse_fd = driver_socket.mount(socket_path, request, limits.SOCKET_WAIT, say)
    if reply.error is not None:
        raise Failure(reply.error)
    try:
        fdpass.send_with_fds(comm, b"\0", [fuse_fd])
    except OSError as error:
        # Before the fd is closed: until then no other program can have mounted there.
        _undo(socket_path, path)
        posix.close(fuse_fd)
        raise CannotSend(f"sending file descriptor: {error.strerror}") from None


def _mount_when_told(comm: socket, socket_path: str, request: MountRequest) -> None:
    try:
        reply, fuse_fd, prepared = driver_socket.prepare(socket_path, request, limits.SOCKET_WAIT, say)
    except OriginalProtocolOnly as error:
        # Nothing was asked for, and the FUSE library calls again without it.
        raise Failure(f"--sync-init is not supported: {error}") from None
    try:
        if reply.error is not None:
            raise Failure(reply.error)
        syncinit.mount(comm, fuse_fd, prepared)
    except SyncInitError as error:
        raise Failure(str(error)) from None
    except OSError as error:
        raise CannotSend(f"sending file descriptor: {error.strerror}") from None
    finally:
        prepared.close()


def _check_mountpoint(path: bytes) -> None:
    """Refuse what fusermount3 refuses for being absent. The mount appears at the volume, so owners do not matter."""
    try:
        posix.lstat(path)
    except OSError as error:
        if error.errno not in autounmount.GONE:  # a dead mount: the driver takes it off
            raise Failure(f"failed to access mountpoint {to_text(path)}: {error.strerror}") from None


def _comm_socket(number: str) -> socket:
    try:
        comm = socket(fileno=_atoi(number))
        is_unix = comm.getsockopt(SOL_SOCKET, SO_DOMAIN) == AF_UNIX
    except OSError as error:
        raise CannotSend(f"sending file descriptor: {error.strerror}") from None
    except ValueError:
        # A negative number, which the socket module refuses itself.
        raise CannotSend(f"sending file descriptor: {posix.strerror(EBADF)}") from None
    if not is_unix:
        raise CannotSend(f"sending file descriptor: {posix.strerror(EINVAL)}")
    return comm


def _atoi(text: str) -> int:
    """atoi(3) of glibc, by which fusermount3 reads the number: what follows it is ignored, and no number is 0."""
    text = text.lstrip(" \t\n\v\f\r")
    sign = -1 if text[:1] == "-" else 1
    text = text[1:] if text[:1] in ("-", "+") else text
    end = 0
    while end < len(text) and text[end] in "0123456789":
        end += 1
    digits = text[:end].lstrip("0")
    # strtol(3) stops at the ends of a long, and an int keeps the lower half of it.
    value = max(-(1 << 63), min((1 << 63) - 1, sign * int(digits or "0"))) if len(digits) < 20 else (1 << 63) - (sign > 0)
    return (value + (1 << 31)) % (1 << 32) - (1 << 31)


def _undo(socket_path: str, path: bytes) -> None:
    """Unmount what nobody will serve; then it is gone when this program ends. Without it the driver does it soon after."""
    try:
        driver_socket.unmount(socket_path, UnmountRequest(protocol.to_wire(path), lazy=True), 0, say)
    except DriverError:
        pass


def _unmount(command: Command, path: bytes) -> None:
    # A mount at the caller's own path; where the volume is mounted elsewhere, the driver knows it by the path it was
    # asked to mount at.
    try:
        device = mountpoint.fuse_device(path)
    except OSError:
        device = None
    try:
        socket_path = find_socket()
    except NoSocket:
        if device is not None:
            raise
        raise CannotUnmount(f"entry for {to_text(path)} not found in /etc/mtab") from None
    request = UnmountRequest(protocol.to_wire(path), command.lazy, device)
    try:
        # Not a word while it waits: go-fuse takes any for a failure.
        reply = driver_socket.unmount(socket_path, request, limits.SOCKET_WAIT, lambda line: None)
    except OriginalProtocolOnly as error:
        raise CannotUnmount(f"failed to unmount {to_text(path)}: {error}") from None
    if reply.error is None:
        return
    if reply.errno == EINVAL:
        raise CannotUnmount(f"entry for {to_text(path)} not found in /etc/mtab")
    raise CannotUnmount(f"failed to unmount {to_text(path)}: {reply.error}")


def run() -> None:
    """The program's entry: never returns, and leaves without the interpreter's own clean-up."""
    program.die_of_interrupts()
    posix._exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
