"""Watches the socket at which kubelet registers device plugins, to notice that kubelet has restarted.

A kubelet that starts removes all sockets in its device-plugins folder and then makes its own there. It forgets all plugins.
"""

import os
from collections.abc import Callable

from driver.linux.filewatch import FileWatch
from driver.observe.logs import log

_NAME = "kubelet.sock"


class KubeletSocket:
    """Finds kubelet's socket, and tells when it is removed. When it comes is not told, because no folder is watched."""

    def __init__(self, folder: str, files: FileWatch, on_removal: Callable[[], None]) -> None:
        """`folder` is kubelet's device-plugins folder. `on_removal` is called when the socket may have been removed."""
        self.path = f"{folder}/{_NAME}"
        self._files = files
        self._on_removal = on_removal
        self._watched: tuple[int, int] | None = None
        self._watch: int | None = None
        self._is_logged = False

    def identity(self) -> tuple[int, int] | None:
        """Return what tells this socket from the next one, None if there is no socket, and watch it from now on.

        The inode number is not enough: the next socket often gets the number of the one that was removed.
        """
        while (identity := self._look()) is not None and identity != self._watched:
            # Another socket may take its place before it is watched, so look again.
            self._watch_it()
            self._watched = identity
        return identity

    def close(self) -> None:
        """Stop watching."""
        if self._watch is not None:
            self._files.remove(self._watch)
            self._watch = None

    def _look(self) -> tuple[int, int] | None:
        try:
            found = os.lstat(self.path)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def _watch_it(self) -> None:
        self.close()
        try:
            self._watch = self._files.on_unlink(self.path, self._on_removal)
        except FileNotFoundError:
            pass
        except OSError as error:
            # registeredplugin.py looks from time to time as well.
            if not self._is_logged:
                self._is_logged = True
                log.warning(f"cannot watch {self.path}: {error}; a restart of kubelet is noticed some seconds later")
