"""Makes two sockets in a directory that a pod sees, and `dev-fuse` beside them.

The directory of a volume's sockets is the pod's emptyDir, and the pod owns it: it can swap, link and delete everything in it
at any moment. So the way to it is opened beneath a trusted folder without following symlinks, and everything in it is used
through that fd, by single names.
"""

import os
import socket
import stat
from dataclasses import dataclass
from errno import EADDRINUSE, EAGAIN, ELOOP, ENOENT, ENOTDIR, EXDEV
from socket import AF_UNIX, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_SEQPACKET, SOCK_STREAM
from typing import Protocol

from driver.linux import syscalls
from driver.model import limits
from driver.model.paths import DEV_FUSE
from fusermount3_proxy.wire.protocol import V1_SUFFIX

Identity = tuple[int, ...]  # devices and inodes of the directory and of both sockets

_TRIES = 3
_BIND_NAME = ".mfcp-bind"  # sun_path is too short for long names: bound under this one, then renamed


class NoDirectory(Exception):
    """The directory for the sockets is not there, or not one. The text says which."""


class SocketFolder(Protocol):
    """A directory in which sockets are made."""

    def open(self) -> int:
        """Open the directory with O_PATH. Raises NoDirectory and OSError."""


@dataclass(frozen=True)
class FolderBeneath:
    """The directory at `path` below `root`: `root` is trusted, and a pod may change everything below it."""

    root: str
    path: str

    def open(self) -> int:
        """Open the directory with O_PATH. Raises NoDirectory and OSError."""
        try:
            root = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                # openat2 stops a pod that swaps a part of the way for a link to somewhere else on the node.
                return syscalls.openat2(root, self.path, os.O_PATH | os.O_DIRECTORY)
            finally:
                os.close(root)
        except OSError as error:
            if error.errno in (ENOENT, ENOTDIR, ELOOP, EXDEV):
                raise NoDirectory(f"{self.root}/{self.path}: {error.strerror}") from None
            raise


class NameTaken(Exception):
    """Something that is no socket has a socket's name. The text says what to remove."""


@dataclass
class PodSockets:
    """The listening sockets, where they are, and which inodes they and their directory have."""

    original: socket.socket
    v1: socket.socket
    _folder: SocketFolder
    _name: str
    _identity: Identity

    @staticmethod
    def listen(folder: SocketFolder, name: str) -> "PodSockets":
        """Make both sockets in the folder, NAME and NAME.v1, and replace those that a former driver left.

        Raises NoDirectory, NameTaken and OSError, and then leaves no socket behind.
        """
        directory = folder.open()
        try:
            for _ in range(_TRIES):
                sockets = _bind_both(directory, name)
                try:
                    put_dev_fuse(directory)
                    identity = _identity(directory, name)
                    if identity is not None:
                        # Not before: a pod that removes them again and again would queue what blocks whoever closes them,
                        # and those that are not kept are closed here.
                        for sock in sockets:
                            sock.listen(limits.CONNECTIONS_IN_QUEUE)
                        return PodSockets(sockets[1], sockets[0], folder, name, identity)
                except BaseException:
                    _remove(directory, name)
                    _close(sockets)
                    raise
                _remove(directory, name)
                _close(sockets)
            raise OSError(EAGAIN, "the pod removes them as fast as they are made")
        finally:
            os.close(directory)

    def are_in_place(self) -> bool:
        """Whether the pod still sees these sockets: kubelet may have mounted a memory emptyDir, the pod removed them.

        Raises OSError where that cannot be told.
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
        """Remove the sockets' files, where they still are the same ones. Raises OSError."""
        try:
            directory = self._folder.open()
        except NoDirectory:
            return
        try:
            if _identity(directory, self._name) == self._identity:
                _remove(directory, self._name)
        finally:
            os.close(directory)

    def close(self) -> None:
        """Stop listening. May block: what clients have queued is dropped with it."""
        _close([self.original, self.v1])


def _bind_both(directory: int, name: str) -> list[socket.socket]:
    made: list[socket.socket] = []
    umask = os.umask(0)
    try:
        # v1 first: where a client finds the original one alone it takes the driver for the Go plugin's.
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
    """Bind a socket in place of one that was left behind. Needs umask 0."""
    _check_free(directory, name)
    sock = socket.socket(AF_UNIX, kind | SOCK_NONBLOCK | SOCK_CLOEXEC)
    try:
        # The mode is set before there is a name: afterwards the pod could have put a link in its place.
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
        _unlink(directory, _BIND_NAME)  # of a driver that was killed
        sock.bind(path)


def _check_free(directory: int, name: str) -> None:
    """Whether the name is free, or a socket's that was left behind. What is no socket is the pod's and stays."""
    try:
        mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise NameTaken(f"the directory for the sockets holds {name!r}, which is no socket: remove it")


def _identity(directory: int, name: str) -> Identity | None:
    here = os.fstat(directory)
    try:
        original, v1 = (os.stat(each, dir_fd=directory, follow_symlinks=False) for each in (name, name + V1_SUFFIX))
    except FileNotFoundError:
        return None
    return here.st_dev, here.st_ino, original.st_dev, original.st_ino, v1.st_dev, v1.st_ino


def put_dev_fuse(directory: int) -> None:
    """Put an empty, world-writable file beside the sockets, for pods to bind at /dev/fuse.

    libfuse goes on to the helper where it could open /dev/fuse and not mount, and gives up where it could not open it.
    Whatever the pod has there itself stays, but for an empty directory: Docker makes one of what a container is to bind and
    is not there yet.
    """
    try:
        fd = _make_dev_fuse(directory)
    except FileExistsError:
        try:
            os.rmdir(DEV_FUSE, dir_fd=directory)  # which follows no link, and removes nothing that holds anything
            fd = _make_dev_fuse(directory)
        except OSError:
            return
    try:
        os.fchmod(fd, 0o666)
    finally:
        os.close(fd)


def _make_dev_fuse(directory: int) -> int:
    return os.open(DEV_FUSE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
