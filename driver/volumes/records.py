"""What survives the driver's process: one small file for each volume, so that the next driver takes it up again.

The mounts themselves stay in the kernel. A record says what kernel and kubelet do not: what publish was asked for, and
which device node belongs to the mount. It names device numbers, never mount ids or pids, which mean nothing to another
process. The files lie on a tmpfs and end with the boot, as the mounts do, so nothing is synced; where the folder is on a
disk, the boot's id tells that a record is of an earlier one.

A folder that cannot be written, as on a disk that has failed or is full, keeps no volume from being served: what is
recorded is taken up, and what changes is recorded when it can be. A record that cannot be deleted is of a target that is
gone: the next driver deletes it, and the next volume at that target replaces it.
"""

import fcntl
import hashlib
import json
import os
from errno import EBUSY, ENOSPC

from driver.observe.logs import log
from driver.volumes import recordformat
from driver.volumes.recordformat import Record

_SUFFIX = ".json"
_NEW_SUFFIX = ".new"
_PART = 1 << 16  # bytes of a record that are read at once, mostly all of them


class Records:
    """The folder of the records."""

    def __init__(self, folder: str) -> None:
        """Make the folder. Raises OSError where there is none, and none can be made."""
        self._folder = folder
        self._lock = _open_folder(folder)
        self._is_owned = False
        if not os.access(folder, os.W_OK):  # a read-only file system: root may write to all others
            log.error(f"{folder} (--state-dir) cannot be written; a restart of the driver will not know what has changed")
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            self._boot_id = file.read().strip()

    def own(self) -> bool:
        """Whether the folder is this driver's, from now on until its process ends. It is not while another driver has it.

        Without it nothing is read, written or deleted; each call asks again, since that one may have ended.
        """
        if not self._is_owned:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._is_owned = True
            except BlockingIOError:
                pass
        return self._is_owned

    def save(self, record: Record) -> bool:
        """Write a record, whole or not at all. Raises OSError, also where another driver has the folder.

        False where somebody had removed the folder: it is made again, and the record is the only one in it.
        """
        try:
            self._save(record)
            return True
        except FileNotFoundError:
            lock = _open_folder(self._folder)
            os.close(self._lock)
            self._lock, self._is_owned = lock, False
            self._save(record)
            return False

    def _save(self, record: Record) -> None:
        if not self.own():
            raise OSError(EBUSY, "another driver has it", self._folder)
        content = json.dumps({"bootId": self._boot_id, **recordformat.to_json(record)}).encode("ascii")
        path = self._path(record.publication.paths.target_path)
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
            _unlink(new)  # what room there is, others need
            raise

    def delete(self, target_path: str) -> None:
        """Delete the record of a target, if there is one. Raises OSError."""
        if not self.own():
            return
        path = self._path(target_path)
        try:
            os.unlink(path)
        except OSError:
            if os.path.lexists(path):  # where nothing can be deleted, that is said of what is not there, too
                raise

    def load(self) -> list[Record]:
        """All records of this boot. A broken one is left out, told in the log, and costs no other volume."""
        found: list[Record] = []
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
                    _unlink(path)  # half written by a driver that was killed
                if not name.endswith(_SUFFIX):
                    continue
                content = json.loads(_read(path).decode("ascii"))
                if content["bootId"] != self._boot_id:
                    _unlink(path)
                    continue
                record = recordformat.from_json(content)
                if path != self._path(record.publication.paths.target_path):
                    # A copy, or one that somebody has changed: it would never be written or deleted again.
                    raise ValueError("its target is not the one that it is named after")
                found.append(record)
            except Exception as error:  # whatever it is, it must not cost the others
                log.error(f"the record {path} cannot be read ({error!r}); its volume is known again when kubelet publishes it")
        return found

    def _path(self, target_path: str) -> str:
        # A target path is longer than a file's name may be.
        return f"{self._folder}/{hashlib.sha256(os.fsencode(target_path)).hexdigest()[:32]}{_SUFFIX}"


def _open_folder(path: str) -> int:
    """An fd of the folder, to lock; it is made where it is missing. Raises OSError."""
    os.makedirs(path, mode=0o700, exist_ok=True)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _unlink(path: str) -> None:
    """Remove what counts for nothing, where that can be done."""
    try:
        os.unlink(path)
    except OSError:
        pass


def _read(path: str) -> bytes:
    """A whole file; open() would make three objects for each of many records."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, _PART):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)
