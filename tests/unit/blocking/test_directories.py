"""Tests that each directory has one thread."""

import gc
import threading

import pytest
from with_processes import until

from driver.blocking.directories import Directories
from driver.blocking.threads import Threads


async def test_a_directory_has_one_thread_as_long_as_it_hangs() -> None:
    release = threading.Event()
    directories = Directories()
    with pytest.raises(TimeoutError):
        await directories.threads("/a").run(0.01, release.wait)
    gc.collect()
    assert directories.threads("/a").is_busy
    assert not directories.threads("/b").is_busy
    release.set()
    await until(lambda: not directories.threads("/a").is_busy)
    gc.collect()
    assert len(directories._by_path) == 0


def test_a_thread_that_hangs_in_a_directory_becomes_the_directorys_own() -> None:
    directories, threads = Directories(), Threads(1)
    directories.put("/a", threads)
    assert directories.threads("/a") is threads
