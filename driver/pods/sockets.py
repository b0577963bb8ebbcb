"""Makes the two sockets of a volume in a directory that a pod sees, and the file `dev-fuse` beside them.

That directory is the pod's emptyDir. The pod can replace, link and delete everything in it at any moment. So the directory is
opened beneath a trusted folder without following symlinks, and its files are used only through that fd and by single names. The pod
can also lock the directory (driver/blocking/directories.py), so everything here but listen(), are_known_in_place() and close() runs
in its thread.
"""

import os
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from errno import EADDRINUSE, EAGAIN, ELOOP, ENOENT, ENOTDIR, EXDEV
from socket import AF_UNIX, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_SEQPACKET, SOCK_STREAM
from typing import Protocol

from driver.linux import syscalls
from driver.model import limits
from driver.model.paths import DEV_FUSE
from fusermount3_proxy.wire.protocol import V1_SUFFIX

Identity = tuple[int, ...]  # devices and inodes of the directory and of both sockets

_RESOLVE = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS
_TRIES = 3
_BIND_NAME = ".mfcp-bind"  # sun_path (unix(7)) is too short for long names, so sockets are bound under this name and renamed


class NoDirectory(Exception):
    """Reports that there is no directory for the sockets at its path. The text has the path and the reason."""


class SocketFolder(Protocol):
    """Opens the directory in which sockets are made."""

    def open(self, resolve: int = 0) -> int:
        """Open the directory, and return an O_PATH fd. `resolve` has further RESOLVE_* flags. Raises NoDirectory and OSError."""


@dataclass(frozen=True)
class FolderBeneath:
    """Opens the directory at `path` below `root`. `root` is trusted; a pod may change everything below it."""

    root: str
    path: str

    def open(self, resolve: int = 0) -> int:
        """Open the directory, and return an O_PATH fd. `resolve` has further RESOLVE_* flags. Raises NoDirectory and OSError."""
        try:
            root = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                # openat2() stops a pod that replaces a directory on the path by a symlink to somewhere else on the node.
                return syscalls.openat2(root, self.path, os.O_PATH | os.O_DIRECTORY, resolve=_RESOLVE | resolve)
            finally:
                os.close(root)
        except OSError as error:
            if error.errno in (ENOENT, ENOTDIR, ELOOP, EXDEV):
                raise NoDirectory(f"{self.root}/{self.path}: {error.strerror}") from None
            raise


class Sockets(Protocol):
    """The listening sockets that one server serves (server.py)."""

    @property
    def v1(self) -> socket.socket:
        """Return the socket of protocol v1."""

    @property
    def listening(self) -> tuple[socket.socket, ...]:
        """Return all listening sockets."""

    def listen(self) -> None:
        """Let clients connect."""

    def remove(self) -> None:
        """Remove the files of the sockets, unless something else has replaced them. Raises OSError."""

    def close(self) -> None:
        """Close the sockets. If they listen, this can block, because it drops the fds that clients have queued."""


class NameTaken(Exception):
    """Reports that a file that is not a socket has the name of a socket. The text says what to remove."""


@dataclass
class PodSockets:
    """Holds the two sockets of a volume, with their folder, their name, and their inodes and that of the folder."""

    original: socket.socket
    v1: socket.socket
    _folder: SocketFolder
    _name: str
    _identity: Identity

    @staticmethod
    def make(folder: SocketFolder, name: str) -> "PodSockets":
        """Make both sockets in the folder, NAME and NAME.v1, and replace sockets that a former driver left there.

        Raises NoDirectory, NameTaken and OSError. If it raises, it leaves no socket behind.
        """
        directory = folder.open()
        try:
            for _ in range(_TRIES):
                sockets = _bind_both(directory, name)
                try:
                    put_dev_fuse(directory)
                    identity = _identity(directory, name)
                    if identity is not None:
                        return PodSockets(sockets[1], sockets[0], folder, name, identity)
                except BaseException:
                    _remove(directory, name)
                    _close(sockets)
                    raise
                _remove(directory, name)
                _close(sockets)
            raise OSError(EAGAIN, "the pod removes the sockets as fast as they are made")
        finally:
            os.close(directory)

    @property
    def listening(self) -> tuple[socket.socket, ...]:
        """Return both sockets."""
        return self.v1, self.original

    def listen(self) -> None:
        """Let clients connect. Only sockets that are kept may listen: a pod can queue fds in them, and then close() blocks."""
        for sock in (self.v1, self.original):
            sock.listen(limits.CONNECTIONS_IN_QUEUE)

    def are_known_in_place(self) -> bool:
        """Return whether the pod surely sees these sockets. False says nothing: then are_in_place() finds out. Needs no thread.

        RESOLVE_CACHED makes the kernel fail where it would wait for a directory's lock; it takes none of them.
        """
        directory = -1
        try:
            directory = self._folder.open(syscalls.RESOLVE_CACHED)
            return _identity(directory, self._name, _stat_cached) == self._identity
        except (OSError, NoDirectory):
            return False
        finally:
            if directory >= 0:
                os.close(directory)

    def are_in_place(self) -> bool:
        """Return whether the pod still sees these sockets. Raises OSError.

        The pod may have removed them, or kubelet may have mounted an emptyDir with medium Memory over them.
        """
        try:
            directory = self._folder.open()
        except NoDirectory:
            return False
        try:
            return _identity(directory, self._name) == self._identity
        finally:
            os.close(directory)

    def remove(self) -> None:
        """Remove the files of the sockets, unless something else has replaced them. Raises OSError."""
        try:
            directory = self._folder.open()
        except NoDirectory:
            return
        try:
            if _identity(directory, self._name) == self._identity:
                _remove(directory, self._name)
        finally:
            os.close(directory)

    def discard(self) -> None:
        """Remove and close sockets that do not listen. Raises nothing."""
        try:
            self.remove()
        except OSError:
            pass  # nobody answers there, and the next sockets replace them
        self.close()

    def close(self) -> None:
        """Close the sockets. If they listen, this can block, because it drops the fds that clients have queued."""
        _close([self.original, self.v1])


def _bind_both(directory: int, name: str) -> list[socket.socket]:
    made: list[socket.socket] = []
    # The umask belongs to all threads that share it. unshare(2) gives this thread one of its own, so that what other threads make
    # meanwhile is not for everybody.
    syscalls.unshare(syscalls.CLONE_FS)
    umask = os.umask(0)
    try:
        # A client that finds only the original socket assumes that the driver is the Go plugin, so the v1 socket is made first.
        for socket_name, kind in ((name + V1_SUFFIX, SOCK_SEQPACKET), (name, SOCK_STREAM)):
            made.append(_bind(directory, socket_name, kind))
    except BaseException:
        if made:
            _unlink(directory, name + V1_SUFFIX)
        _close(made)
        raise
    finally:
        os.umask(umask)
    return made


def _remove(directory: int, name: str) -> None:
    for socket_name in (name, name + V1_SUFFIX):
        _unlink(directory, socket_name)


def _unlink(directory: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass


def _close(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def _bind(directory: int, name: str, kind: int) -> socket.socket:
    """Make a socket that is bound to a name, in place of one that a former driver left. The umask must be 0."""
    _check_free(directory, name)
    sock = socket.socket(AF_UNIX, kind | SOCK_NONBLOCK | SOCK_CLOEXEC)
    try:
        # The mode is set before the socket has a name. Setting it by name would let a pod put a symlink in its place.
        os.fchmod(sock.fileno(), 0o666)
        _bind_in(directory, sock)
        try:
            os.rename(_BIND_NAME, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            _unlink(directory, _BIND_NAME)
            raise
    except BaseException:
        sock.close()
        raise
    return sock


def _bind_in(directory: int, sock: socket.socket) -> None:
    path = f"/proc/self/fd/{directory}/{_BIND_NAME}"
    try:
        sock.bind(path)
    except OSError as error:
        if error.errno != EADDRINUSE:
            raise
        _check_free(directory, _BIND_NAME)
        _unlink(directory, _BIND_NAME)  # a driver that was killed left it
        sock.bind(path)


def _check_free(directory: int, name: str) -> None:
    """Raise NameTaken if a file that is not a socket has the name. It is the pod's, and the driver does not remove it."""
    try:
        mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise NameTaken(f"the directory for the sockets holds {name!r}, which is no socket: remove it")


def _stat(directory: int, name: str) -> os.stat_result:
    return os.stat(name, dir_fd=directory, follow_symlinks=False)


def _stat_cached(directory: int, name: str) -> os.stat_result:
    fd = syscalls.openat2(directory, name, os.O_PATH | os.O_NOFOLLOW, resolve=_RESOLVE | syscalls.RESOLVE_CACHED)
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def _identity(directory: int, name: str, stat_of: Callable[[int, str], os.stat_result] = _stat) -> Identity | None:
    here = os.fstat(directory)
    try:
        original, v1 = (stat_of(directory, each) for each in (name, name + V1_SUFFIX))
    except FileNotFoundError:
        return None
    return here.st_dev, here.st_ino, original.st_dev, original.st_ino, v1.st_dev, v1.st_ino


def put_dev_fuse(directory: int) -> None:
    """Make an empty, world-writable file beside the sockets, which containers bind to /dev/fuse.

    libfuse runs fusermount3 only if it can open /dev/fuse. It then fails to mount by itself, because the file is not a device.
    A file that the pod has made under that name stays. An empty directory is replaced, because Docker makes one if a container
    binds a path that does not exist yet.
    """
    try:
        fd = _make_dev_fuse(directory)
    except FileExistsError:
        try:
            os.rmdir(DEV_FUSE, dir_fd=directory)  # rmdir(2) follows no symlink, and removes only an empty directory
            fd = _make_dev_fuse(directory)
        except OSError:
            return
    try:
        os.fchmod(fd, 0o666)
    finally:
        os.close(fd)


def _make_dev_fuse(directory: int) -> int:
    return os.open(DEV_FUSE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
