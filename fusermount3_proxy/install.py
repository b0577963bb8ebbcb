"""install: copy /opt/mfcp to a folder, for images that do not have it.

    install FOLDER

An init container runs it from an image that holds nothing but /opt/mfcp, and FOLDER is a volume, which other containers of
the pod mount at /opt/mfcp.
"""

import posix
import sys
from errno import EEXIST

from fusermount3_proxy import program
from fusermount3_proxy.program import to_bytes, to_text

PLACE = b"/opt/mfcp"  # where every program of the tree lies

USAGE = """\
Usage: install FOLDER

Copies /opt/mfcp to FOLDER, a volume that containers of the pod then mount at /opt/mfcp.
"""

_CHUNK = 1 << 20


def copy(source: bytes, target: bytes) -> None:
    """Copy a folder of folders and files, all of them readable and executable as they are. Raises OSError."""
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
    # Renamed at the end: an init container may run again while others run what it brought.
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
    """Install, and return the exit code."""
    if arguments in (["-h"], ["--help"]):
        program.write(1, USAGE)
        return 0
    if len(arguments) != 1 or arguments[0].startswith("-") or not arguments[0]:
        program.write(2, "install: give one folder; try install --help\n")
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
    """The program's entry."""
    program.die_of_interrupts()
    posix._exit(main(sys.argv[1:]))
