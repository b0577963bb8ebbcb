"""Implements the program install, which copies /opt/mfcp to a folder, for images without /opt/mfcp.

    install FOLDER

An init container runs it from an image that holds only /opt/mfcp. FOLDER is a volume that other containers of the pod mount
at /opt/mfcp.
"""

import posix
import sys
from errno import EEXIST

from fusermount3_proxy import program
from fusermount3_proxy.program import to_bytes, to_text

PLACE = b"/opt/mfcp"  # packaging/programs.py builds the programs for this path

USAGE = """\
Usage: install FOLDER

Copies /opt/mfcp to FOLDER, a volume that containers of the pod then mount at /opt/mfcp.
"""

_CHUNK = 1 << 20


def copy(source: bytes, target: bytes) -> None:
    """Copy a folder with all folders and files in it, and the modes of the files. Raises OSError."""
    try:
        posix.mkdir(target, 0o755)
    except OSError as error:
        if error.errno != EEXIST:
            raise
    for entry in posix.scandir(source):
        if entry.is_dir():
            copy(entry.path, target + b"/" + entry.name)
        else:
            _copy_file(entry.path, target + b"/" + entry.name, entry.stat().st_mode & 0o777)


def _copy_file(source: bytes, target: bytes, mode: int) -> None:
    # The copy is renamed at the end, because an init container can run again while other containers use the old file.
    new = target + b".new"
    read_fd = posix.open(source, posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        write_fd = posix.open(new, posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_CLOEXEC, 0o600)
        try:
            while chunk := posix.read(read_fd, _CHUNK):
                while chunk:
                    chunk = chunk[posix.write(write_fd, chunk) :]
            posix.fchmod(write_fd, mode)
        finally:
            posix.close(write_fd)
    finally:
        posix.close(read_fd)
    posix.rename(new, target)


def main(arguments: list[str]) -> int:
    """Run the program with the arguments after its name. Returns the exit code."""
    if arguments in (["-h"], ["--help"]):
        program.write(1, USAGE)
        return 0
    if len(arguments) != 1 or arguments[0].startswith("-") or not arguments[0]:
        program.write(2, "install: give one folder as the only argument; try install --help\n")
        return 2
    folder = to_bytes(arguments[0])
    try:
        posix.umask(0)
        copy(PLACE, folder)
    except OSError as error:
        where = error.filename if isinstance(error.filename, bytes) else folder
        program.write(2, f"install: {to_text(where)}: {error.strerror}; is it a volume that this user may write to?\n")
        return 1
    program.write(1, f"install: /opt/mfcp is in {arguments[0]}\n")
    return 0


def run() -> None:
    """Run the program and end the process."""
    program.restore_sigint()
    posix._exit(main(sys.argv[1:]))
