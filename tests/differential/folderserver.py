"""Serve a FUSE file system that is a folder tree without an end: each folder has the folder `d` and the empty file `f`."""

import os
import select
import stat
import struct
import threading
from errno import EACCES, ENOENT, ENOSYS

_LOOKUP, _FORGET, _GETATTR, _OPEN, _STATFS, _RELEASE, _INIT, _OPENDIR, _READDIR, _RELEASEDIR, _ACCESS, _INTERRUPT, _BATCH_FORGET = (
    *(1, 2, 3, 14, 17, 18, 26, 27, 28, 29, 34, 36, 42),
)
_UNANSWERED = (_FORGET, _BATCH_FORGET, _INTERRUPT)
_INIT_ANSWER = struct.pack("<4I2H2I2H8I", 7, 31, 0, 0, 1, 1, 4096, 1, 0, 0, *[0] * 8)
_ROOT = 1


class FolderServer:
    """Serves one /dev/fuse fd, which it owns, until it is unmounted or killed.

    All files belong to `uid`, and nobody else may write. Where `is_remote`, they show another owner, as those of sshfs do. `root` is the
    root's kind.
    """

    def __init__(self, fd: int, uid: int, root: int = stat.S_IFDIR, is_remote: bool = False) -> None:
        self._fd = fd
        self._uid = uid
        self._shown = 4711 if is_remote else uid
        self._kinds = {_ROOT: root}  # by the number of the node
        self._wake, self._woken = os.pipe()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        os.set_blocking(self._fd, False)
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            if any(fd == self._wake for fd, _ in poll.poll()):
                break
            try:
                request = os.read(self._fd, 1 << 17)
                length, opcode, unique, node, uid = struct.unpack_from("<IIQQI", request)
                if opcode not in _UNANSWERED:
                    error, answer = self._answer(opcode, node, uid, request[40:length])
                    os.write(self._fd, struct.pack("<IiQ", 16 + len(answer), -error, unique) + answer)
            except BlockingIOError:
                continue
            except FileNotFoundError:  # interrupted
                continue
            except OSError:  # ENODEV: unmounted
                break
        os.close(self._fd)

    def _answer(self, opcode: int, node: int, uid: int, body: bytes) -> tuple[int, bytes]:
        if opcode == _INIT:
            return 0, _INIT_ANSWER
        if opcode == _LOOKUP:
            kind = {b"d\0": stat.S_IFDIR, b"f\0": stat.S_IFREG}.get(body)
            if kind is None or self._kinds[node] != stat.S_IFDIR:
                return ENOENT, b""
            child = node * 2 + (kind == stat.S_IFREG)
            self._kinds[child] = kind
            return 0, struct.pack("<4Q2I", child, 0, 1, 1, 0, 0) + self._attributes(child)
        if opcode == _GETATTR:
            return 0, struct.pack("<Q2I", 1, 0, 0) + self._attributes(node)
        if opcode == _OPEN and uid not in (0, self._uid) and struct.unpack_from("<I", body)[0] & os.O_ACCMODE != os.O_RDONLY:
            return EACCES, b""
        if opcode in (_OPEN, _OPENDIR):
            return 0, struct.pack("<Q2I", 0, 0, 0)
        if opcode == _STATFS:
            return 0, struct.pack("<5Q10I", 0, 0, 0, 0, 0, 4096, 255, 4096, *[0] * 7)
        if opcode == _ACCESS:
            return (EACCES if uid not in (0, self._uid) and body[0] & os.W_OK else 0), b""
        if opcode in (_READDIR, _RELEASE, _RELEASEDIR):
            return 0, b""
        return ENOSYS, b""

    def _attributes(self, node: int) -> bytes:
        mode = self._kinds[node] | (0o755 if self._kinds[node] == stat.S_IFDIR else 0o644)
        # ino, size, blocks, times, nanoseconds, mode, nlink, uid, gid, rdev, blksize, flags
        return struct.pack("<6Q10I", node, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, self._shown, self._shown, 0, 4096, 0)

    def close(self) -> None:
        """End, as a program does that is killed, or that finds its file system unmounted."""
        os.close(self._woken)
        self._thread.join(10)
        assert not self._thread.is_alive()
        os.close(self._wake)
