"""Labels what containers bind, so that SELinux lets them use it."""

import os
from errno import ENOTSUP

_LABEL = b"system_u:object_r:container_file_t:s0"  # what engines give the files of a container; at s0 every container may use them
_ATTRIBUTE = "security.selinux"
_FILE_SYSTEMS = "/proc/filesystems"


def is_on() -> bool:
    """Return whether SELinux is on: the kernel registers selinuxfs only then, and every container sees this list."""
    try:
        with open(_FILE_SYSTEMS, encoding="ascii") as file:
            return any(line.split()[-1:] == ["selinuxfs"] for line in file)
    except OSError:
        return False


def label(path: str) -> None:
    """Label a file or folder for containers, and nothing below it. A symlink is not followed. Call it where is_on() alone.

    A file system that was mounted with a label of its own (context=) keeps that. Raises OSError.
    """
    try:
        if os.getxattr(path, _ATTRIBUTE, follow_symlinks=False).rstrip(b"\0") != _LABEL:
            os.setxattr(path, _ATTRIBUTE, _LABEL, follow_symlinks=False)
    except OSError as error:
        if error.errno != ENOTSUP:
            raise
