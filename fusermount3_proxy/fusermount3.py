"""Implements the program fusermount3, which asks the driver to mount, since mounting needs privileges.

A FUSE library runs it as it would run libfuse's fusermount3, with the number of a Unix socket, the comm socket, in
`_FUSE_COMMFD`. It gets the /dev/fuse fd from the driver, and sends the fd over the comm socket: one byte with the fd attached.
"""

import posix
import sys
from _socket import AF_UNIX, SO_DOMAIN, SOL_SOCKET, socket
from errno import EBADF, EINVAL, ENOTCONN, EROFS

from fusermount3_proxy import autounmount, commandline, driver_socket, limits, mountpoint, program, syncinit
from fusermount3_proxy.commandline import Command, CommandLineError
from fusermount3_proxy.discovery import VARIABLE, NoSocket, SeveralSockets, find_socket, has_device
from fusermount3_proxy.driver_socket import DriverError, OriginalProtocolOnly
from fusermount3_proxy.program import to_bytes, to_text
from fusermount3_proxy.syncinit import SyncInitError
from fusermount3_proxy.wire import fdpass, options, protocol
from fusermount3_proxy.wire.options import OptionError
from fusermount3_proxy.wire.protocol import FindRequest, MountRequest, UnmountRequest

_S_IFMT = 0o170000
_S_IFREG = 0o100000
_S_IFDIR = 0o040000
_S_ISVTX = 0o1000

# FUSE libraries compare the version to know what the helper can do. This program behaves as 3.14 does.
VERSION = "fusermount3 version: 3.14.0\n"


class Failure(Exception):
    """Ends the program with exit code 1. The text is the line on standard error, without the program's name."""


class CannotSend(Failure):
    """Reports that the comm fd cannot be used. The line on standard error has no program's name, as in fusermount3."""


class CannotUnmount(Failure):
    """Reports a failure that -q does not print."""


def main(arguments: list[str]) -> int:
    """Run the program with the arguments after its name. Returns the exit code."""
    command = Command()
    try:
        command = commandline.parse(arguments, b"POSIXLY_CORRECT" in posix.environ)
        if command.help:
            program.write(1, f"{sys.argv[0]}: {commandline.USAGE}")
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
            report(str(error))
        return 1
    return 0


def report(line: str) -> None:
    """Print one line on standard error. It begins with the name by which the program was called, as that of fusermount3 does."""
    program.write(2, f"{sys.argv[0]}: {line}\n")


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
        # The FUSE program has mounted by itself, so the driver is not asked for anything.
        autounmount.wait_and_unmount(_comm_socket(comm_fd), path)
        return
    kind = _kind(path)
    is_for_device = _is_for_device(path)
    if is_for_device:
        if kind == 0:
            kind = _take_off_dead_mount(path)
        _check_access(path, kind)
    raw_options = to_bytes(command.options)
    try:
        asked = options.parse(to_text(raw_options))
    except OptionError as error:
        for warning in error.warnings:
            report(warning)
        raise Failure(str(error)) from None
    for warning in asked.warnings:
        report(warning)
    # The comm fd is checked before mounting, so that nothing has to be undone.
    comm = _comm_socket(comm_fd)
    request = MountRequest(protocol.to_wire(path), protocol.to_wire(raw_options), command.sync_init)
    target = -1
    if is_for_device:
        socket_path = protocol.DEVICE_SOCKET
        request.fds = (protocol.MOUNTPOINT_FD,)
        target = _open_mountpoint(path)
    elif kind == _S_IFREG:
        # The kernel would take the program's file for a damaged root directory, and answer EIO for ever.
        raise Failure("the mountpoint is a file, and a volume is a directory: mount on a directory")
    else:
        socket_path = find_socket()
    if command.sync_init:
        _mount_with_sync_init(comm, socket_path, request, target)
        return
    reply, fuse_fd = driver_socket.mount(socket_path, request, limits.SOCKET_WAIT, report, target)
    if reply.error is not None:
        raise Failure(reply.error)
    try:
        fdpass.send_fd(comm, fuse_fd, limits.IN_FLIGHT_WAIT)
    except OSError as error:
        # Unmount before closing the fd, because until then no other program can have mounted there.
        _undo(socket_path, path)
        posix.close(fuse_fd)
        raise CannotSend(f"sending file descriptor: {error.strerror}") from None


def _mount_with_sync_init(comm: socket, socket_path: str, request: MountRequest, target: int) -> None:
    try:
        reply, fuse_fd, pending = driver_socket.prepare(socket_path, request, limits.SOCKET_WAIT, report, target)
    except OriginalProtocolOnly as error:
        # Nothing is mounted, and the FUSE library runs the helper again without --sync-init.
        raise Failure(f"--sync-init is not supported: {error}") from None
    try:
        if reply.error is not None:
            raise Failure(reply.error)
        syncinit.mount(comm, fuse_fd, pending)
    except SyncInitError as error:
        raise Failure(str(error)) from None
    except OSError as error:
        raise CannotSend(f"sending file descriptor: {error.strerror}") from None
    finally:
        pending.close()


def _kind(path: bytes) -> int:
    """Return the file type bits of the mountpoint's mode; 0 for a dead mount. Raises Failure if it cannot be accessed."""
    try:
        return posix.lstat(path).st_mode & _S_IFMT
    except OSError as error:
        if error.errno not in autounmount.DEAD:  # the driver detaches a dead mount
            raise Failure(f"failed to access mountpoint {to_text(path)}: {error.strerror}") from None
        return 0


def _take_off_dead_mount(path: bytes) -> int:
    """Have the driver take off the mount of a program that has just died, before the mountpoint is opened. Returns what _kind() does."""
    device = mountpoint.fuse_device(path)
    request = UnmountRequest(protocol.to_wire(path), lazy=True, device=device)
    driver_socket.unmount(protocol.DEVICE_SOCKET, request, limits.SOCKET_WAIT, report)
    kind = _kind(path)
    if kind == 0:  # another user's, or one that the driver has not made
        raise Failure(f"failed to access mountpoint {to_text(path)}: {posix.strerror(ENOTCONN)}")
    return kind


def _is_for_device(path: bytes) -> bool:
    """Return whether to mount with the container's fuse device, and not at a volume that waits at `path`."""
    if not has_device():
        return False
    try:
        return not mountpoint.is_waiting_volume(path)
    except OSError:
        return True


def _check_access(path: bytes, kind: int) -> None:
    """Check what fusermount3 checks for users, in its order (check_perm() in util/fusermount.c). Raises Failure.

    The driver makes sure of what matters to others than the user. A dead mount, whose `kind` is 0, can be asked for nothing. On a
    read-only mount only owner and mode count, as the driver sees them: the root file system of a container may be one.
    """
    if kind not in (_S_IFDIR, _S_IFREG, 0):
        raise Failure(f"mountpoint {to_text(path)} is not a directory or a regular file")
    user = posix.getuid()
    if user == 0 or kind == 0:
        return
    if kind == _S_IFREG:
        try:
            posix.close(posix.open(path, posix.O_WRONLY | posix.O_CLOEXEC))
        except OSError as error:
            if error.errno != EROFS:
                raise Failure(f"failed to open {to_text(path)}: {error.strerror}") from None
        return
    try:
        posix.chdir(path)
    except OSError as error:
        raise Failure(f"failed to chdir to mountpoint: {error.strerror}") from None
    info = posix.stat(b".")
    if info.st_mode & _S_ISVTX and info.st_uid != user:
        raise Failure(f"mountpoint {to_text(path)} not owned by user")
    if not posix.access(b".", posix.W_OK) and not posix.statvfs(b".").f_flag & posix.ST_RDONLY:
        raise Failure(f"user has no write access to mountpoint {to_text(path)}")


def _open_mountpoint(path: bytes) -> int:
    """Open the mountpoint for the driver, with this process's own rights. Raises Failure."""
    try:
        return posix.open(path, posix.O_PATH | posix.O_NOFOLLOW | posix.O_CLOEXEC)
    except OSError as error:
        raise Failure(f"failed to access mountpoint {to_text(path)}: {error.strerror}") from None


def _comm_socket(number: str) -> socket:
    try:
        comm = socket(fileno=_atoi(number))
        is_unix = comm.getsockopt(SOL_SOCKET, SO_DOMAIN) == AF_UNIX
    except OSError as error:
        raise CannotSend(f"sending file descriptor: {error.strerror}") from None
    except ValueError:
        # The socket module itself refuses a negative number.
        raise CannotSend(f"sending file descriptor: {posix.strerror(EBADF)}") from None
    if not is_unix:
        raise CannotSend(f"sending file descriptor: {posix.strerror(EINVAL)}")
    return comm


def _atoi(text: str) -> int:
    """Return what glibc's atoi(3) returns, because fusermount3 uses it: text after the number is ignored, and no number is 0."""
    text = text.lstrip(" \t\n\v\f\r")
    sign = -1 if text[:1] == "-" else 1
    text = text[1:] if text[:1] in ("-", "+") else text
    digits = text[: len(text) - len(text.lstrip("0123456789"))].lstrip("0")
    # atoi(3) limits the value to a long, and returns the lower half of it. A number of 20 digits is beyond the limits.
    value = max(-(1 << 63), min((1 << 63) - 1, sign * int(digits[:20] or "0")))
    return (value + (1 << 31)) % (1 << 32) - (1 << 31)


def _undo(socket_path: str, path: bytes) -> None:
    """Unmount what no program serves before this program ends. If this fails, the driver detaches it soon after."""
    try:
        driver_socket.unmount(socket_path, UnmountRequest(protocol.to_wire(path), lazy=True), 0, report)
    except DriverError:
        pass


def _unmount(command: Command, path: bytes) -> None:
    # If no FUSE file system is at this path, the driver finds the mount by the mountpoint of the mount request.
    try:
        device = mountpoint.fuse_device(path)
    except OSError:
        device = None
    request = UnmountRequest(protocol.to_wire(path), command.lazy, device)
    is_with_device = has_device()
    if is_with_device:
        # Nothing is printed while waiting, because go-fuse takes any output for a failure.
        reply = driver_socket.unmount(protocol.DEVICE_SOCKET, request, limits.SOCKET_WAIT, lambda line: None)
        if reply.error is None:
            return
        if reply.errno != EINVAL:
            raise CannotUnmount(f"failed to unmount {to_text(path)}: {reply.error}")
        # It may be a volume's.
    try:
        socket_path = _socket_of_mount(path, device)
    except NoSocket:
        if device is not None and not is_with_device:
            raise
        raise CannotUnmount(f"entry for {to_text(path)} not found in /etc/mtab") from None
    try:
        reply = driver_socket.unmount(socket_path, request, limits.SOCKET_WAIT, lambda line: None)
    except OriginalProtocolOnly as error:
        raise CannotUnmount(f"failed to unmount {to_text(path)}: {error}") from None
    if reply.error is None:
        return
    if reply.errno == EINVAL:
        raise CannotUnmount(f"entry for {to_text(path)} not found in /etc/mtab")
    raise CannotUnmount(f"failed to unmount {to_text(path)}: {reply.error}")


def _socket_of_mount(path: bytes, device: str | None) -> str:
    """Return the socket of the volume that is mounted at `path`. Raises NoSocket if there is none, or more than one."""
    try:
        return find_socket()
    except SeveralSockets as several:
        request = FindRequest(protocol.to_wire(path), device)
        found = _sockets_for(several.paths, request)
        if len(found) == 1:
            return found[0]
        if found:
            text = f"more than one volume is mounted at {to_text(path)} ({', '.join(found)})"
            raise Failure(f"{text}; set {VARIABLE} to the path of one") from None
        raise


def _sockets_for(paths: list[str], request: FindRequest) -> list[str]:
    """Return the sockets of the volumes whose mount is the one of the request. Raises DriverError if no driver answers at any socket."""
    answers = {}
    for path in paths:
        try:
            answers[path] = driver_socket.is_for(path, request, 0)
        except DriverError:
            pass  # a socket that is not the driver's, or one that was left behind
    if not answers:  # the driver may be starting, or being replaced
        answers = {path: driver_socket.is_for(path, request, limits.SOCKET_WAIT) for path in paths}
    return [path for path, is_meant in answers.items() if is_meant]


def run() -> None:
    """Run the program and end the process, without the interpreter's own clean-up, which takes time."""
    program.restore_sigint()
    posix._exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
