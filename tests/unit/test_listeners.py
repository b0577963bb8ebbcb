"""One epoll for all listening sockets."""

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fd_service import listening, until
from open_fds import nothing_leaked
from standin_driver import DEADLINE

from driver.listeners import Listeners


@pytest.fixture
def two(folder: Path) -> Iterator[list[socket.socket]]:
    """Two listening sockets, each with clients that wait."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(listening(folder / name, "")) for name in ("a", "b")]
        for name in ("a", "b"):
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(name)
        yield listeners


def run(main: Callable[[Listeners], Coroutine[None, None, None]]) -> None:
    async def with_listeners() -> None:
        with nothing_leaked():
            listeners = Listeners()
            try:
                await main(listeners)
            finally:
                listeners.close()

    asyncio.run(with_listeners())


def test_both_have_their_turn_as_long_as_somebody_waits(two: list[socket.socket]) -> None:
    called: list[int] = []

    async def main(listeners: Listeners) -> None:
        for sock in two:
            listeners.add(sock.fileno(), called.append)
        await until(lambda: len(called) >= 6)
        assert {called.count(sock.fileno()) for sock in two} == {len(called) // 2}

    run(main)


def test_one_that_is_removed_is_not_told_of_any_more(two: list[socket.socket]) -> None:
    called: list[int] = []

    async def main(listeners: Listeners) -> None:
        def remove_both(fd: int) -> None:
            called.append(fd)
            for sock in two:
                listeners.remove(sock.fileno())

        for sock in two:
            listeners.add(sock.fileno(), remove_both)
        await until(lambda: bool(called))
        await asyncio.sleep(0.05)
        assert len(called) == 1

    run(main)


def test_a_callback_that_fails_costs_nobody_else(two: list[socket.socket], caplog: pytest.LogCaptureFixture) -> None:
    called: list[int] = []

    async def main(listeners: Listeners) -> None:
        def fail(fd: int) -> None:
            raise ValueError("broken")

        listeners.add(two[0].fileno(), fail)
        listeners.add(two[1].fileno(), called.append)
        await until(lambda: len(called) >= 2)

    run(main)
    assert "ValueError: broken" in caplog.text
    assert "internal error while calling back for a listening socket" in caplog.text


def test_it_is_quiet_when_nobody_waits_any_more(two: list[socket.socket]) -> None:
    async def main(listeners: Listeners) -> None:
        def accept(fd: int) -> None:
            next(sock for sock in two if sock.fileno() == fd).accept()[0].close()
            taken.append(fd)

        taken: list[int] = []
        for sock in two:
            listeners.add(sock.fileno(), accept)
        await asyncio.wait_for(listeners.quiet(DEADLINE), DEADLINE / 2)
        assert len(taken) == 2

    run(main)


def test_where_it_is_never_quiet_the_wait_has_an_end(two: list[socket.socket]) -> None:
    called: list[int] = []

    async def main(listeners: Listeners) -> None:
        listeners.add(two[0].fileno(), called.append)
        began = time.monotonic()
        await listeners.quiet(0.1)
        assert time.monotonic() - began >= 0.1
        assert called

    run(main)
