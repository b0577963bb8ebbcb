"""Do what a FUSE library does, for programs of the tests that do it in other orders or not at all."""

import array
import os
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Sequence

_CONTENT = b"Hello World!\n"


def receive_fd(comm: socket.socket) -> int:
    data, control, _, _ = comm.recvmsg(1, socket.CMSG_SPACE(4))
    if not data:
        sys.exit("the helper sent nothing")
    (fd,) = array.array("i", control[0][2])
    return fd


def call_helper(*arguments: str, prefix: Sequence[str] = ()) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    environment = {**os.environ, "_FUSE_COMMFD": str(theirs.fileno())}
    helper = subprocess.Popen([*prefix, "fusermount3", *arguments], env=environment, pass_fds=[theirs.fileno()])
    theirs.close()
    return ours, helper


class Server:
    """Serves a FUSE file system with one file, directly on the fd."""

    def __init__(self, fd: int, content: bytes = _CONTENT) -> None:
        self.fd = fd
        self._content = content

    def read(self) -> tuple[int, int, int, bytes]:
        """Return the next request: opcode, its number, the node id, and what follows the header."""
        packet = os.read(self.fd, 1 << 18)
        _, opcode, unique, node = struct.unpack_from("IIQQ", packet)
        return opcode, unique, node, packet[40:]

    def answer(self, unique: int, payload: bytes = b"", error: int = 0) -> None:
        os.write(self.fd, struct.pack("IiQ", 16 + len(payload), -error, unique) + payload)

    def answer_init(self, unique: int, flags: int = 0) -> None:
        self.answer(unique, struct.pack("IIIIHHIIHHI7I", 7, 31, 65536, flags, 12, 9, 65536, 1, 0, 0, 0, *[0] * 7))

    def serve(self) -> None:
        while True:
            try:
                opcode, unique, node, rest = self.read()
            except OSError:  # ENODEV: unmounted
                return
            match opcode:
                case 1 if rest.rstrip(b"\0") == b"hello":  # LOOKUP
                    self.answer(unique, struct.pack("QQQQII", 2, 0, 1, 1, 0, 0) + self.attributes(2))
                case 1:
                    self.answer(unique, error=2)
                case 2 | 36 | 42:  # FORGET, INTERRUPT, BATCH_FORGET: nobody waits
                    pass
                case 3:  # GETATTR
                    self.answer(unique, struct.pack("QII", 1, 0, 0) + self.attributes(node))
                case 14 | 27:  # OPEN, OPENDIR
                    self.answer(unique, struct.pack("QII", 0, 0, 0))
                case 15:  # READ
                    _, offset, size = struct.unpack_from("QQI", rest)
                    self.answer(unique, self._content[offset : offset + size])
                case 17:  # STATFS: container engines ask for it
                    self.answer(unique, struct.pack("QQQQQIII7I", 1, 0, 0, 2, 0, 4096, 255, 4096, *[0] * 7))
                case 18 | 25 | 29 | 34 | 38:  # RELEASE, FLUSH, RELEASEDIR, ACCESS, DESTROY
                    self.answer(unique)
                case 28:  # READDIR
                    offset = struct.unpack_from("QQ", rest)[1]
                    entry = struct.pack("QQII8s", 2, 1, 5, stat.S_IFREG >> 12, b"hello")
                    self.answer(unique, b"" if offset else entry)
                case _:
                    self.answer(unique, error=38)

    def attributes(self, node: int) -> bytes:
        mode, size = (stat.S_IFDIR | 0o755, 0) if node == 1 else (stat.S_IFREG | 0o644, len(self._content))
        return struct.pack("QQQQQQIIIIIIIIII", node, size, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
