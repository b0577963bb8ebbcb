"""Makes the socket of one allocation, in a folder of the driver's own that containers see read-only."""

import os
import socket
from dataclasses import dataclass

from driver.devices import selinux
from driver.model import limits
from fusermount3_proxy.wire.protocol import DEVICE_SOCKET, V1_SUFFIX

_FILE = os.path.basename(DEVICE_SOCKET) + V1_SUFFIX
_NEW = ".new"  # a container must not find a socket that nobody may connect to yet


@dataclass
class DeviceSocket:
    """A socket of protocol v1 (pods.sockets.Sockets). Nobody but the driver can change what is in its folder."""

    v1: socket.socket

    @staticmethod
    def make(directory: int) -> "DeviceSocket":
        """Make the socket in a folder, in place of one that a former driver has left. Closes the fd of the folder. Raises OSError."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            try:
                os.unlink(_NEW, dir_fd=directory)
            except FileNotFoundError:
                pass  # no driver was killed here
            # A path below kubelet's folder is too long for unix(7).
            sock.bind(f"/proc/self/fd/{directory}/{_NEW}")
            os.chmod(_NEW, 0o666, dir_fd=directory)
            os.rename(_NEW, _FILE, src_dir_fd=directory, dst_dir_fd=directory)
            if selinux.is_on():
                selinux.label(f"/proc/self/fd/{directory}")
                selinux.label(f"/proc/self/fd/{directory}/{_FILE}")
        except BaseException:
            sock.close()
            raise
        finally:
            os.close(directory)
        return DeviceSocket(sock)

    @property
    def listening(self) -> tuple[socket.socket, ...]:
        """Return the socket."""
        return (self.v1,)

    def listen(self) -> None:
        """Let clients connect."""
        self.v1.listen(limits.CONNECTIONS_IN_QUEUE)

    def remove(self) -> None:
        """Leave the file: the next driver replaces it, and until then clients wait for that."""

    def close(self) -> None:
        """Close the socket. This can block, because it drops the fds that clients have queued."""
        self.v1.close()


def own_folder(path: str) -> int:
    """Make a folder of the driver's own where it is missing, and return an fd of it. Raises OSError."""
    os.makedirs(path, exist_ok=True)
    # Containers have bound the folder itself. The one above it keeps the node's users away from all sockets.
    os.chmod(os.path.dirname(path), 0o700)
    os.chmod(path, 0o755)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
