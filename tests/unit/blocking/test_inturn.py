"""Tests work in many directories, of which some hang."""

import asyncio
import threading
import time

import pytest

from driver.blocking import inturn
from driver.blocking.directories import Directories
from driver.blocking.inturn import Work, do_in_turn
from driver.model import limits

DEADLINE = 20.0


def test_all_is_done_by_one_thread() -> None:
    threads: set[int] = set()
    ended: list[str] = []

    def work(path: str) -> Work:
        return Work(path, lambda: threads.add(threading.get_ident()) or path, ended.append, pytest.fail)

    names = [f"/{i}" for i in range(300)]
    asyncio.run(do_in_turn(map(work, names), Directories()))
    assert ended == names
    assert len(threads) == 1


async def test_what_hangs_keeps_its_own_thread_and_the_rest_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RESTORE_WAIT", 0.05)
    monkeypatch.setattr(inturn, "_PATIENCE", 0.01)
    release = threading.Event()
    ended: dict[str, object] = {}
    late: list[str] = []

    def work(path: str, name: str, hangs: bool = False) -> Work:
        def do() -> str:
            if hangs:
                assert release.wait(DEADLINE)
            return name

        return Work(path, do, lambda result: ended.update({name: result}), late.append)

    directories = Directories()
    works = [
        work("/a", "a"),
        work("/b", "b", hangs=True),
        work("/c", "c"),
        work("/b", "b2"),
        work("/d", "d", hangs=True),
        work("/e", "e"),
    ]
    await do_in_turn(works, directories)
    for name in ("a", "c", "e"):
        assert ended[name] == name
    for name in ("b", "b2", "d"):
        assert isinstance(ended[name], TimeoutError)
    busy = {path: directories.threads(path).is_busy for path in ("/a", "/b", "/c", "/d", "/e")}
    assert busy == {"/a": False, "/b": True, "/c": False, "/d": True, "/e": False}
    release.set()
    deadline = time.monotonic() + DEADLINE
    while sorted(late) != ["b", "b2", "d"]:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


def test_there_may_be_nothing_to_do() -> None:
    asyncio.run(do_in_turn([], Directories()))
