"""Reports when a file was closed by its last user, and when it was removed. One inotify instance watches all files."""

import asyncio
import os
import struct
from collections.abc import Callable

from driver.linux import syscalls

_WATCHED = syscalls.IN_CLOSE_WRITE | syscalls.IN_ATTRIB
_EVENT = struct.Struct("iIII")  # struct inotify_event of inotify(7), without a name, because no directory is watched


class FileWatch:
    """Calls a function of the caller's when a watched file is closed or removed."""

    def __init__(self, instance: int) -> None:
        """Take an inotify instance from syscalls.inotify_init(). It belongs to this object from now on, and close() closes it."""
        self._fd = instance
        self._callbacks: dict[int, Callable[[], None]] = {}
        asyncio.get_running_loop().add_reader(self._fd, self._read)

    def on_last_close(self, path: str, callback: Callable[[], None]) -> int:
        """Call `callback` each time the last fd that was opened for writing is closed. Returns the watch, for remove(). Raises OSError."""
        return self._add(path, syscalls.IN_CLOSE_WRITE, callback)

    def on_unlink(self, path: str, callback: Callable[[], None]) -> int:
        """Call `callback` when the link count or another attribute has changed, as it does when the file is removed.

        Returns the watch, for remove(). Raises OSError.
        """
        return self._add(path, syscalls.IN_ATTRIB, callback)

    def _add(self, path: str, event: int, callback: Callable[[], None]) -> int:
        watch = syscalls.inotify_add_watch(self._fd, path, event)
        self._callbacks[watch] = callback
        return watch

    def remove(self, watch: int) -> None:
        """Stop watching a file. It is no error if the kernel has ended the watch already, because the file is gone."""
        if self._callbacks.pop(watch, None) is not None:
            try:
                syscalls.inotify_rm_watch(self._fd, watch)
            except OSError:
                pass

    def close(self) -> None:
        """Stop watching all files, and close the inotify instance."""
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
        self._callbacks.clear()

    def _read(self) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        offset = 0
        while offset < len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, offset)
            offset += _EVENT.size + length
            if mask & syscalls.IN_Q_OVERFLOW:
                # The kernel has dropped events, and does not say whose.
                for callback in list(self._callbacks.values()):
                    _call(callback)
            if mask & _WATCHED and watch in self._callbacks:
                _call(self._callbacks[watch])
            if mask & syscalls.IN_IGNORED:
                # The kernel has ended the watch, because the file was removed and closed by all its users.
                self._callbacks.pop(watch, None)


def _call(callback: Callable[[], None]) -> None:
    # The callbacks of other files must be called even if this one fails.
    try:
        callback()
    except Exception as error:
        context = {"message": "cannot handle the close or the removal of a file", "exception": error}
        asyncio.get_running_loop().call_exception_handler(context)
