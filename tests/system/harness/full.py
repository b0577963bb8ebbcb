"""Fill a mount namespace with as many mounts as fs.mount-max allows. Run as a program, it fills its own namespace.

python3 full.py FOLDER
"""

import ctypes
import os
import sys
from errno import ENOSPC
from pathlib import Path

_MS_BIND = 4096
_MS_REC = 16384
_MS_PRIVATE = 1 << 18
_LEAVES = 100


def fill(folder: Path) -> None:
    """Fill this process's mount namespace, in `folder`. A lazy unmount of `folder` undoes it."""
    _mount("mfcp-full", folder, "tmpfs", 0)
    _mount(None, folder, None, _MS_PRIVATE)
    leaf, tree = folder / "leaf", folder / "tree"
    leaf.mkdir()
    tree.mkdir()
    _mount("mfcp-full", tree, "tmpfs", 0)
    _mount(None, tree, None, _MS_PRIVATE)
    for number in range(_LEAVES):
        (tree / str(number)).mkdir()
        _mount(leaf, tree / str(number), None, _MS_BIND)
    # Whole trees of mounts are bound while there is room, and then single mounts.
    for source, name in ((tree, "tree"), (leaf, "leaf")):
        number = 0
        while True:
            place = folder / f"{name}{number}"
            place.mkdir()
            try:
                _mount(source, place, None, _MS_BIND | _MS_REC)
            except OSError as error:
                if error.errno != ENOSPC:
                    raise
                break
            number += 1


def _mount(source: Path | str | None, target: Path, fstype: str | None, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    words = [None if word is None else os.fsencode(word) for word in (source, target, fstype)]
    if libc.mount(*words, ctypes.c_ulong(flags), None) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(target))


if __name__ == "__main__":
    fill(Path(sys.argv[1]))
