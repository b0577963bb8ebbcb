"""Reading files of /proc, whose length nobody knows before."""

import posix


def read(path: str) -> bytes:
    """The whole content. Raises OSError."""
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        chunks = []
        while chunk := posix.read(fd, 65536):
            chunks.append(chunk)
        return b"".join(chunks)
    finally:
        posix.close(fd)
