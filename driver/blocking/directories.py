"""Gives each directory that a pod can lock one thread for the work there.

The kernel locks a directory while a process reads it. Making, renaming or removing a file there, and mounting on the directory,
wait for that lock, and no signal ends the wait. A process in a container can keep the lock for as long as it likes: it reads the
directory into memory that a FUSE program serves, and the program does not answer. So the driver never works in such a directory in
its event loop.
"""

from weakref import WeakValueDictionary

from driver.blocking.threads import Threads


class Directories:
    """Keeps the threads by the paths of their directories, as long as they have work or somebody keeps them."""

    def __init__(self) -> None:
        # A thread that hangs keeps its Threads object alive. So each retry of kubelet finds that object, and no second thread is
        # started, although a publish that has failed leaves no volume behind.
        self._by_path: WeakValueDictionary[str, Threads] = WeakValueDictionary()

    def threads(self, path: str) -> Threads:
        """Return the one thread of the directory at `path`."""
        return self._by_path.setdefault(path, Threads(1))

    def is_busy(self, path: str) -> bool:
        """Return whether a thread works in the directory at `path`, or hangs there."""
        threads = self._by_path.get(path)
        return threads is not None and threads.is_busy

    def put(self, path: str, threads: Threads) -> None:
        """Make `threads`, which work in the directory at `path` just now, the directory's own."""
        self._by_path[path] = threads
