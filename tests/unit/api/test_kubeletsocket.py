"""Tests how a new socket of kubelet's is told from the former one."""

import asyncio
import os
import socket
from pathlib import Path

from with_processes import until

from driver.api.kubeletsocket import KubeletSocket
from driver.linux import syscalls
from driver.linux.filewatch import FileWatch


def make(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)


async def test_each_removal_is_told(folder: Path) -> None:
    files = FileWatch(syscalls.inotify_init())
    removed: list[None] = []
    kubelet = KubeletSocket(".", files, lambda: removed.append(None))
    assert kubelet.identity() is None
    seen = set()
    for number in range(1, 4):
        make(kubelet.path)
        assert kubelet.identity() == kubelet.identity()
        seen.add(kubelet.identity())
        os.unlink(kubelet.path)
        await until(lambda number=number: len(removed) >= number)  # type: ignore[misc]
        removed[number:] = []
    assert len(seen) == 3
    kubelet.close()
    files.close()


async def test_a_socket_with_the_same_inode_number_is_another_one(folder: Path) -> None:
    files = FileWatch(syscalls.inotify_init())
    kubelet = KubeletSocket(".", files, lambda: None)
    make(kubelet.path)
    first = kubelet.identity()
    os.utime(kubelet.path, (1, 1))
    second = kubelet.identity()
    os.chmod(kubelet.path, 0o600)
    assert first != second == kubelet.identity()
    kubelet.close()
    files.close()


async def test_a_socket_that_is_replaced_while_it_is_looked_at_is_watched(folder: Path) -> None:
    files = FileWatch(syscalls.inotify_init())
    removed = asyncio.Event()
    kubelet = KubeletSocket(".", files, removed.set)
    make(kubelet.path)
    add = files.on_unlink

    def replace_and_add(*arguments: object) -> int:
        files.on_unlink = add  # type: ignore[method-assign]
        os.unlink(kubelet.path)
        os.mkdir("other")  # takes the free inode number on some file systems
        make(kubelet.path)
        return add(*arguments)  # type: ignore[arg-type]

    files.on_unlink = replace_and_add  # type: ignore[method-assign]
    assert kubelet.identity() == (os.lstat(kubelet.path).st_ino, os.lstat(kubelet.path).st_mtime_ns)
    os.unlink(kubelet.path)
    await removed.wait()
    kubelet.close()
    files.close()
