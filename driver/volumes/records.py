"""Keeps one small file for each volume, from which the next driver restores it.

The mounts themselves stay in the kernel. A record has what neither the kernel nor kubelet reports: what publish was asked for, and
which device node belongs to a mount. It names device numbers, never mount ids or pids, which mean nothing to another process.

A record that cannot be deleted belongs to a target that is gone: the next driver deletes it, and the next volume at that target replaces
it.
"""

import hashlib
import os

from driver.observe.logs import log
from driver.volumes import recordformat
from driver.volumes.recordfiles import RecordFiles
from driver.volumes.recordformat import Record


class Records:
    """Writes and reads the records of volumes."""

    def __init__(self, folder: str) -> None:
        """Make the folder where it is missing. Raises OSError."""
        self._files = RecordFiles(folder)

    def own(self) -> bool:
        """Become the folder's owner, as RecordFiles.own() does."""
        return self._files.own()

    def save(self, record: Record) -> bool:
        """Write a record, as RecordFiles.save() does. Raises OSError."""
        return self._files.save(_key(record.publication.paths.target_path), recordformat.to_json(record))

    def delete(self, target_path: str) -> None:
        """Delete the record of a target, if there is one. Raises OSError."""
        self._files.delete(_key(target_path))

    def load(self) -> list[Record]:
        """Return all records of this boot. A broken record is logged and left out; the other volumes are restored."""
        found = []
        for key, record in self._files.load(recordformat.from_json):
            if key == _key(record.publication.paths.target_path):
                found.append(record)
            else:
                # A copy, or one that somebody has changed: it would never be written or deleted again.
                log.error(f"the record {key}.json is not of the target that it is named after, and is ignored")
        return found


def _key(target_path: str) -> str:
    # A target path is longer than a file's name may be.
    return hashlib.sha256(os.fsencode(target_path)).hexdigest()[:32]
