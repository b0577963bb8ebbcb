"""Makes the sockets of all restored volumes at the driver's start.

One thread makes them all: with a thread for each volume, the start with 1,000 volumes would take 0.1 s longer. Where a pod keeps the
directory of its sockets locked, the thread hangs there, and another one goes on with the other directories.
"""

import asyncio
from collections import deque

from driver.blocking.directories import Directories
from driver.blocking.threads import Threads
from driver.model import limits
from driver.observe.internalerror import report_internal_error
from driver.pods.sockets import PodSockets
from driver.volumes.volume import Volume

_PATIENCE = 0.1  # seconds in one directory after which another thread goes on; making the sockets of a volume takes 0.05 ms


class _Worker:
    """One thread, which makes the sockets in one directory after another."""

    def __init__(self, waiting: "deque[list[Volume]]") -> None:
        """Begin with `waiting`, the volumes of each directory. Other workers take theirs from it, too."""
        self.now: list[Volume] = []  # whose directory the thread works in
        self.threads = Threads(1)
        self._waiting = waiting
        self._made: deque[tuple[Volume, PodSockets | Exception]] = deque()  # what the thread has made
        self.ended = self.threads.finish(self._work)

    def _work(self) -> None:
        while self._waiting:
            try:
                self.now = self._waiting.popleft()
            except IndexError:  # another thread has taken the last ones
                return
            for volume in self.now:
                self._made.append((volume, volume.make_sockets()))

    def serve(self) -> None:
        """Have the volumes serve what the thread has made."""
        while self._made:
            _serve(*self._made.popleft())

    def give_up(self, directories: Directories) -> None:
        """Leave the thread in its directory, where kubelet's next republish finds it."""
        directories.put(self.now[0].publication.paths.sockets_path, self.threads)
        for volume in self.now:
            if not volume.has_sockets:
                _serve(volume, TimeoutError())
        self.ended.add_done_callback(lambda ended: self.threads.finish(self._discard))

    def _discard(self) -> None:
        while self._made:
            _, made = self._made.popleft()
            if isinstance(made, PodSockets):
                made.discard()


def _serve(volume: Volume, made: PodSockets | Exception) -> None:
    try:
        volume.serve(made)
    except Exception:  # one volume's failure must not keep the others from being served
        report_internal_error("making the sockets of a restored volume", volume.log)


async def open_sockets(volumes: list[Volume], directories: Directories) -> None:
    """Make the sockets of the volumes, and serve them; a volume whose directory is locked gets a trouble. Raises nothing."""
    by_directory: dict[str, list[Volume]] = {}
    for volume in volumes:
        by_directory.setdefault(volume.publication.paths.sockets_path, []).append(volume)
    waiting = deque(by_directory.values())
    workers: list[_Worker] = []
    while waiting:
        worker = _Worker(waiting)
        workers.append(worker)
        left = -1
        while not worker.ended.done() and not (worker.now and left == len(waiting)):
            left = len(waiting)
            await asyncio.wait({worker.ended}, timeout=_PATIENCE)
    if workers:
        await asyncio.wait({worker.ended for worker in workers}, timeout=limits.RESTORE_WAIT)
    for worker in workers:
        worker.serve()
        if not worker.ended.done():
            worker.give_up(directories)
