import asyncio
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from with_processes import until

from driver.linux import filewatch, syscalls
from driver.linux.filewatch import FileWatch


@pytest.fixture
def node(tmp_path: Path) -> Path:
    path = tmp_path / "node"
    path.touch()
    return path


async def test_the_last_close_calls_back(node: Path) -> None:
    closed = asyncio.Event()
    watch = FileWatch(syscalls.inotify_init())
    fd = os.open(node, os.O_RDWR)
    other = os.dup(fd)
    watch.on_last_close(str(node), closed.set)
    os.close(fd)
    # Closing an fd that was opened for reading does not count. FUSE programs open their device for writing.
    os.close(os.open(node, os.O_RDONLY))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not closed.is_set()
    os.close(other)
    await closed.wait()
    watch.close()


async def test_a_file_that_is_removed_or_replaced_calls_back(tmp_path: Path, node: Path) -> None:
    called: asyncio.Queue[str] = asyncio.Queue()
    watch = FileWatch(syscalls.inotify_init())
    (tmp_path / "replaced").touch()
    (tmp_path / "new").touch()
    watch.on_unlink(str(node), lambda: called.put_nowait("removed"))
    watch.on_unlink(str(tmp_path / "replaced"), lambda: called.put_nowait("replaced"))
    os.close(os.open(node, os.O_WRONLY))
    node.unlink()
    assert await called.get() == "removed"
    (tmp_path / "new").rename(tmp_path / "replaced")
    assert await called.get() == "replaced"
    watch.close()


async def test_each_watch_has_its_own_callback(tmp_path: Path) -> None:
    called: asyncio.Queue[str] = asyncio.Queue()
    watch = FileWatch(syscalls.inotify_init())
    for name in ("a", "b"):
        (tmp_path / name).touch()
        watch.on_last_close(str(tmp_path / name), lambda name=name: called.put_nowait(name))  # type: ignore[misc]
    for name in ("b", "a", "a"):
        os.close(os.open(tmp_path / name, os.O_WRONLY))
        assert await called.get() == name
    watch.close()


async def test_a_watch_that_is_removed_calls_nobody(tmp_path: Path, node: Path) -> None:
    (tmp_path / "other").touch()
    called: asyncio.Queue[str] = asyncio.Queue()
    watch = FileWatch(syscalls.inotify_init())
    number = watch.on_last_close(str(node), lambda: called.put_nowait("removed"))
    watch.on_last_close(str(tmp_path / "other"), lambda: called.put_nowait("other"))
    watch.remove(number)
    watch.remove(number)
    os.close(os.open(node, os.O_WRONLY))
    os.close(os.open(tmp_path / "other", os.O_WRONLY))
    assert await called.get() == "other"
    assert called.empty()
    watch.close()


async def test_a_node_that_is_gone_is_removed_without_an_error(node: Path) -> None:
    watch = FileWatch(syscalls.inotify_init())
    number = watch.on_last_close(str(node), lambda: None)
    node.unlink()
    watch.remove(number)
    watch.close()


async def test_the_callback_of_a_file_that_is_gone_is_kept_no_longer(node: Path) -> None:
    """A device of a former driver is removed when its program has closed it."""
    closed = asyncio.Event()
    watch = FileWatch(syscalls.inotify_init())

    def remove() -> None:
        node.unlink()
        closed.set()

    watch.on_last_close(str(node), remove)
    os.close(os.open(node, os.O_WRONLY))
    await closed.wait()
    await until(lambda: not watch._callbacks)
    watch.close()


async def test_what_is_missing_cannot_be_watched(tmp_path: Path) -> None:
    watch = FileWatch(syscalls.inotify_init())
    with pytest.raises(FileNotFoundError):
        watch.on_last_close(str(tmp_path / "missing"), lambda: None)
    watch.close()


async def test_a_close_that_happened_before_the_watch_was_removed_calls_nobody(tmp_path: Path, node: Path) -> None:
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context))
    (tmp_path / "other").touch()
    called: asyncio.Queue[str] = asyncio.Queue()
    watch = FileWatch(syscalls.inotify_init())
    number = watch.on_last_close(str(node), lambda: called.put_nowait("removed"))
    watch.on_last_close(str(tmp_path / "other"), lambda: called.put_nowait("other"))
    os.close(os.open(node, os.O_WRONLY))
    os.close(os.open(tmp_path / "other", os.O_WRONLY))
    # The event loop has read neither event yet.
    watch.remove(number)
    assert await called.get() == "other"
    assert called.empty()
    assert failures == []
    watch.close()


async def test_where_the_kernel_lost_some_everybody_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: set[str] = set()
    watch = FileWatch(syscalls.inotify_init())
    for name in ("a", "b"):
        (tmp_path / name).touch()
        watch.on_last_close(str(tmp_path / name), lambda name=name: called.add(name))  # type: ignore[misc]
    event = struct.pack("iIII", -1, syscalls.IN_Q_OVERFLOW, 0, 0)
    with monkeypatch.context() as overflow:
        overflow.setattr(filewatch.os, "read", lambda fd, size: event)
        watch._read()
    assert called == {"a", "b"}
    watch.close()


async def test_a_callback_that_fails_costs_no_other_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The exception goes to the event loop's exception handler, which in the driver reports an internal error."""

    def fails() -> None:
        raise KeyError("a mistake")

    closed = asyncio.Event()
    watch = FileWatch(syscalls.inotify_init())
    fds = [os.open(tmp_path / name, os.O_WRONLY | os.O_CREAT) for name in ("a", "b")]
    watch.on_last_close(str(tmp_path / "a"), fails)
    watch.on_last_close(str(tmp_path / "b"), closed.set)
    for fd in fds:
        os.close(fd)
    # One read returns both events.
    await closed.wait()
    assert all(word in caplog.text for word in ("cannot handle", "a mistake", "in fails"))
    watch.close()
