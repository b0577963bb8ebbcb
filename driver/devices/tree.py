"""Reads a folder of programs, and makes another folder the same: file by file, so that containers that have bound it go on.

No function here follows a symlink.
"""

import hashlib
import os
import shutil
import stat
from collections.abc import Collection
from dataclasses import dataclass

_MODES = 0o555  # nothing in a tree may be written, and no bit of the source's gives a program another user's rights
_CHUNK = 1 << 20
_NEW_SUFFIX = ".new"

FOLDER = "a folder"  # the kinds of entries; a file's is its hash
_OTHER = "neither a file nor a folder"


class BadTree(Exception):
    """Reports a tree that holds what no tree may hold. The text is part of a sentence, after the tree's path."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Represents a file or a folder. `kind` is FOLDER, or the SHA-256 of the file's content. `mode` has the permission bits alone."""

    kind: str
    mode: int


Tree = dict[str, Entry]  # by the path in the tree; the tree's own folder is ""


def read(folder: str, set_uid: Collection[str] = ()) -> Tree:
    """Return what a tree holds, with the modes that a copy gets: the files `set_uid` get the set-uid bit.

    Raises OSError, and BadTree where it holds a symlink or a device.
    """
    found = _read(folder)
    for path, entry in found.items():
        if entry.kind == _OTHER:
            raise BadTree(f"holds {path}, which is {_OTHER}")
    return {path: Entry(entry.kind, entry.mode & _MODES | (stat.S_ISUID if path in set_uid else 0)) for path, entry in found.items()}


def name_of(tree: Tree) -> str:
    """Return a name that a tree has in common only with trees of the same names, modes and contents."""
    digest = hashlib.sha256()
    for path in sorted(tree):
        digest.update(f"{path}\0{tree[path].kind}\0{tree[path].mode:o}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def make_same(source: str, tree: Tree, target: str) -> bool:
    """Make the folder `target` hold what `tree`, read from `source`, holds, owned by this process's user. Return whether it differed.

    A file that differs is replaced by one that is whole. What is at `target` after a crash at any point, the next call repairs.
    Everything is on the disk when this returns. Raises OSError.
    """
    found = _read(target) if os.path.isdir(target) and not os.path.islink(target) else {}
    if found == tree and _is_own(target, tree):
        return False
    if not found:
        remove(target)
    # Each folder gets its mode at the end: this process need not be one that may write to any folder.
    for path in sorted(path for path, entry in found.items() if entry.kind == FOLDER):
        os.chmod(_at(target, path), 0o755)
    for path in sorted(found, reverse=True):  # what is in a folder comes before the folder
        if path not in tree or (tree[path].kind == FOLDER) != (found[path].kind == FOLDER):
            remove(_at(target, path))
    for path in sorted(tree):
        there = _at(target, path)
        if tree[path].kind == FOLDER:
            os.makedirs(there, mode=0o755, exist_ok=True)
        elif path not in found or found[path].kind != tree[path].kind:
            _copy(_at(source, path), there)
    for path in sorted(tree, reverse=True):
        _finish(_at(target, path), tree[path])
    return True


def remove(path: str) -> None:
    """Remove a file, or a folder with all that is in it, if it is there. Raises OSError."""
    if not os.path.lexists(path):
        return
    if not os.path.isdir(path) or os.path.islink(path):
        os.unlink(path)
        return
    for inner, entry in _read(path).items():
        if entry.kind == FOLDER:
            os.chmod(_at(path, inner), 0o755)
    shutil.rmtree(path)


def sync(folder: str) -> None:
    """Bring a folder's names to the disk. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _read(folder: str, path: str = "") -> Tree:
    there = _at(folder, path)
    info = os.stat(there, follow_symlinks=False)
    mode = stat.S_IMODE(info.st_mode)
    if stat.S_ISREG(info.st_mode):
        return {path: Entry(_digest(there), mode)}
    if not stat.S_ISDIR(info.st_mode):
        return {path: Entry(_OTHER, mode)}
    found = {path: Entry(FOLDER, mode)}
    for name in os.listdir(there):
        found |= _read(folder, f"{path}/{name}" if path else name)
    return found


def _digest(file: str) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _is_own(folder: str, tree: Tree) -> bool:
    wanted = (os.geteuid(), os.getegid())
    infos = (os.stat(_at(folder, path), follow_symlinks=False) for path in tree)
    return all((info.st_uid, info.st_gid) == wanted for info in infos)


def _copy(source: str, target: str) -> None:
    """Copy a file's content under another name, and rename it: a program may be running from the file at `target`."""
    new = f"{target}{_NEW_SUFFIX}"
    with open(source, "rb") as from_file, open(new, "wb") as to_file:
        shutil.copyfileobj(from_file, to_file, _CHUNK)
        to_file.flush()
        os.fsync(to_file.fileno())
    os.rename(new, target)


def _finish(path: str, entry: Entry) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        info = os.fstat(fd)
        if (info.st_uid, info.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(fd, os.geteuid(), os.getegid())
        os.fchmod(fd, entry.mode)
        os.fsync(fd)
    finally:
        os.close(fd)


def _at(folder: str, path: str) -> str:
    return f"{folder}/{path}" if path else folder
