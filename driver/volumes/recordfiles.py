"""Keeps small JSON files in one folder, from which the next driver learns what neither the kernel nor kubelet reports.

The files lie on a tmpfs and end with the boot, as the mounts do, so nothing is synced. Where the folder is on a disk, the boot's id tells
records of an earlier boot.

A folder that cannot be written, for example because its disk is full, keeps nothing from being served. What is recorded is restored,
and changes are recorded as soon as that works again.
"""

import fcntl
import json
import os
from collections.abc import Callable
from errno import EBUSY, ENOSPC
from pathlib import Path
from typing import Any, TypeVar

from driver.observe.logs import log

T = TypeVar("T")

_SUFFIX = ".json"
_NEW_SUFFIX = ".new"


class RecordFiles:
    """Writes and reads JSON files in one folder, of which one driver at a time is the owner."""

    def __init__(self, folder: str) -> None:
        """Make the folder where it is missing. Raises OSError."""
        self._folder = folder
        self._lock = _open_folder(folder)
        self._is_owned = False
        if not os.access(folder, os.W_OK):  # only a read-only file system stops root
            log.error(f"{folder} (--state-dir) cannot be written; a restart of the driver will not know what has changed")
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            self._boot_id = file.read().strip()

    def own(self) -> bool:
        """Become the folder's owner, until this process ends, and return whether that worked: another driver may be its owner.

        Only the owner reads, writes and deletes. Each call tries again, since the other driver may have ended.
        """
        if not self._is_owned:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._is_owned = True
            except BlockingIOError:
                pass
        return self._is_owned

    def save(self, key: str, record: dict[str, Any]) -> bool:
        """Write a record, whole or not at all; `key` is a file's name without its suffix. Raises OSError, also where another driver
        has the folder.

        Return False where somebody had removed the folder: it is made again, and this record is the only one in it.
        """
        try:
            self._save(key, record)
            return True
        except FileNotFoundError:
            lock = _open_folder(self._folder)
            os.close(self._lock)
            self._lock, self._is_owned = lock, False
            self._save(key, record)
            return False

    def _save(self, key: str, record: dict[str, Any]) -> None:
        if not self.own():
            raise OSError(EBUSY, "another driver has it", self._folder)
        content = json.dumps({"bootId": self._boot_id, **record}).encode("ascii")
        path = self._path(key)
        new = f"{path}{_NEW_SUFFIX}"
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            try:
                written = os.write(fd, content)
            finally:
                os.close(fd)
            if written != len(content):
                raise OSError(ENOSPC, os.strerror(ENOSPC), path)
            os.rename(new, path)
        except OSError:
            _unlink(new)  # other records need the room
            raise

    def delete(self, key: str) -> None:
        """Delete a record, if it is there. Raises OSError."""
        if not self.own():
            return
        path = self._path(key)
        try:
            os.unlink(path)
        except OSError:
            if os.path.lexists(path):  # a read-only file system refuses to delete what is not there, too
                raise

    def load(self, decode: Callable[[Any], T]) -> list[tuple[str, T]]:
        """Return all records of this boot with their keys, as `decode` returns them; where it raises, the record is logged and left out."""
        found: list[tuple[str, T]] = []
        if not self.own():
            return found
        try:
            names = sorted(os.listdir(self._folder))
        except OSError as error:
            log.error(f"the records cannot be read ({error}); their volumes are known again when kubelet publishes them")
            return found
        for name in names:
            path = f"{self._folder}/{name}"
            try:
                if name.endswith(_NEW_SUFFIX):
                    _unlink(path)  # a killed driver has written half of it
                if not name.endswith(_SUFFIX):
                    continue
                content = json.loads(Path(path).read_text("ascii"))
                if content["bootId"] != self._boot_id:
                    _unlink(path)
                    continue
                found.append((name.removesuffix(_SUFFIX), decode(content)))
            except Exception as error:  # a broken record must not keep the others from being restored
                log.error(f"the record {path} cannot be read ({error!r}); a volume is known again when kubelet publishes it")
        return found

    def _path(self, key: str) -> str:
        return f"{self._folder}/{key}{_SUFFIX}"


def _open_folder(path: str) -> int:
    """Make the folder where it is missing, and return an fd of it, to lock. Raises OSError."""
    os.makedirs(path, mode=0o700, exist_ok=True)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _unlink(path: str) -> None:
    """Remove a file that no driver reads, if that works."""
    try:
        os.unlink(path)
    except OSError:
        pass
