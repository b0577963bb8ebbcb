"""Hears of the last close of a file, and of its removal: one inotify instance for all of them, no thread, no polling."""

import asyncio
import os
import struct
from collections.abc import Callable

from driver import syscalls
from driver.logs import log

_WATCHED = syscalls.IN_CLOSE_WRITE | syscalls.IN_ATTRIB
_EVENT = struct.Struct("iIII")  # struct inotify_event, inotify(7); the watched are files, so no name follows


class FileWatch:
    """Calls back when something happens to a watched file."""

    def __init__(self, instance: int) -> None:
        """Takes over an inotify instance, as syscalls.inotify_init() returns it."""
        self._fd = instance
        self._callbacks: dict[int, Callable[[], None]] = {}
        asyncio.get_running_loop().add_reader(self._fd, self._read)

    def on_last_close(self, path: str, callback: Callable[[], None]) -> int:
        """Call back when the file, opened for writing, is closed for the last time; returns what remove() takes. Raises OSError."""
        return self._add(path, syscalls.IN_CLOSE_WRITE, callback)

    def on_unlink(self, path: str, callback: Callable[[], None]) -> int:
        """The same when it may have been removed: when its link count or another attribute has changed."""
        return self._add(path, syscalls.IN_ATTRIB, callback)

    def _add(self, path: str, event: int, callback: Callable[[], None]) -> int:
        watch = syscalls.inotify_add_watch(self._fd, path, event)
        self._callbacks[watch] = callback
        return watch

    def remove(self, watch: int) -> None:
        """Stop watching. A watch whose file is gone is gone already."""
        if self._callbacks.pop(watch, None) is not None:
            try:
                syscalls.inotify_rm_watch(self._fd, watch)
            except OSError:
                pass

    def close(self) -> None:
        """Stop watching everything."""
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
                for each in list(self._callbacks.values()):
                    _call(each)
            callback = self._callbacks.get(watch)
            if callback is not None and mask & _WATCHED:
                _call(callback)


def _call(callback: Callable[[], None]) -> None:
    try:
        callback()
    except Exception as error:  # whatever it is, it must not cost the other files
        log.error(f"what a file's close or removal calls for failed: {error!r}")
