"""Reads files of /proc, which do not report their size."""

import posix


def read(path: str) -> bytes:
    """Return the whole content of the file `path`. Raises OSError."""
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        chunks = []
        while chunk := posix.read(fd, 65536):
            chunks.append(chunk)
        return b"".join(chunks)
    finally:
        posix.close(fd)
