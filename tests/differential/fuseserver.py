"""Serve a FUSE file system that can do nothing, so that a mount is alive: every request is answered."""

import os
import struct
import threading
from errno import ENOSYS

_INIT = 26
_UNANSWERED = (2, 42, 36)  # FORGET, BATCH_FORGET, INTERRUPT
_INIT_ANSWER = struct.pack("<4I2H2I2H8I", 7, 31, 0, 0, 1, 1, 4096, 1, 0, 0, *[0] * 8)


class Server:
    """Serves one /dev/fuse fd, which it owns, until it is unmounted."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._fd, 1 << 17)
            except OSError:  # ENODEV: unmounted
                return
            _, opcode, unique = struct.unpack_from("<IIQ", request)
            if opcode in _UNANSWERED:
                continue
            answer = _INIT_ANSWER if opcode == _INIT else b""
            try:
                os.write(self._fd, struct.pack("<IiQ", 16 + len(answer), 0 if answer else -ENOSYS, unique) + answer)
            except OSError:
                return

    def close(self) -> None:
        """Close the fd; call it after the unmount."""
        self._thread.join(10)
        assert not self._thread.is_alive(), "the file system is still mounted"
        os.close(self._fd)
