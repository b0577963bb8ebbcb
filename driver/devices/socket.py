"""Makes the socket of one allocation, in a folder of the driver's own that containers see read-only."""

import os
import socket
from dataclasses import dataclass

from driver.model import limits
from fusermount3_proxy.wire.protocol import DEVICE_SOCKET, V1_SUFFIX

_FILE = os.path.basename(DEVICE_SOCKET) + V1_SUFFIX
_NEW = ".new"  # a container must not find a socket that nobody may connect to yet


@dataclass
class DeviceSocket:
    """A socket of protocol v1 (pods.sockets.Sockets). Nobody but the driver can change its folder, so its path leads to it."""

    v1: socket.socket
    folder: str

    @staticmethod
    def make(folder: str) -> "DeviceSocket":
        """Make the folder where it is missing, and the socket in it, in place of one that a former driver has left. Raises OSError."""
        os.makedirs(folder, exist_ok=True)
        os.chmod(folder, 0o755)  # the umask of the driver is 0077
        directory = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            # A path below kubelet's folder is too long for unix(7).
            try:
                os.unlink(_NEW, dir_fd=directory)
            except FileNotFoundError:
                pass  # no driver was killed here
            sock.bind(f"/proc/self/fd/{directory}/{_NEW}")
            os.chmod(_NEW, 0o666, dir_fd=directory)
            os.rename(_NEW, _FILE, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            sock.close()
            raise
        finally:
            os.close(directory)
        return DeviceSocket(sock, folder)

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
