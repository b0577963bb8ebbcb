"""Tests mounts with synchronous INIT, which wait for the client's `proceed`."""

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from errno import EBUSY, EPROTO
from pathlib import Path

import pytest
from fd_service import MOUNT, NAME, SYNC_INIT, UNMOUNT, Served, answer, is_closed, send, serving, soon
from open_fds import same_file
from with_processes import until

from driver.model.policy import Refused
from fusermount3_proxy.wire import protocol


@asynccontextmanager
async def asked_for_mount(served: Served) -> AsyncIterator[socket.socket]:
    """Yield a client that has asked for a mount and received the fd, and has not said `proceed`."""
    with served.connect() as client:
        send(client, SYNC_INIT)
        os.close((await answer(client))[1][0])
        yield client


async def all_is_over(served: Served) -> None:
    for task in list(served.server._connections):
        await soon(task)
    with pytest.raises(OSError):
        os.fstat(served.handler.prepared[-1].fd)
    assert (await served.ask(UNMOUNT))[0] == {}


async def test_the_fd_comes_first_and_the_mount_when_the_client_says_so(folder: Path) -> None:
    async with serving(folder) as served:
        with served.connect() as client:
            send(client, SYNC_INIT)
            reply, (fd,) = await answer(client)
            (prepared,) = served.handler.prepared
            assert reply == NAME
            assert same_file(fd, prepared.fd)
            os.close(fd)
            assert not prepared.is_mounted
            send(client, protocol.PROCEED)
            assert await answer(client) == ({}, [])
            assert prepared.is_mounted
            assert await is_closed(client)
        await all_is_over(served)


async def test_what_cannot_be_prepared_is_refused_without_an_fd(folder: Path) -> None:
    async with serving(folder) as served:
        served.handler.outcome = Refused("mount failed: Device or resource busy", EBUSY)
        assert await served.ask(SYNC_INIT) == ({"error": "mount failed: Device or resource busy", "errno": EBUSY}, [])


async def test_a_mount_that_fails_is_answered_with_the_error(folder: Path) -> None:
    async with serving(folder) as served:
        async with asked_for_mount(served) as client:
            served.handler.outcome = Refused("mount failed: Device or resource busy", EBUSY)
            send(client, protocol.PROCEED)
            assert await answer(client) == ({"error": "mount failed: Device or resource busy", "errno": EBUSY}, [])
            served.handler.outcome = None
        await all_is_over(served)


@pytest.mark.parametrize("packet", [MOUNT, UNMOUNT, SYNC_INIT, b"{}", b'{"op":7}', b"x", b"[" * 60000, b" " * 70000 + protocol.PROCEED])
async def test_another_packet_instead_of_the_word_is_an_error(folder: Path, packet: bytes) -> None:
    async with serving(folder) as served:
        async with asked_for_mount(served) as client:
            send(client, packet)
            assert (await answer(client))[0]["errno"] == EPROTO
        assert not served.handler.prepared[0].is_mounted
        await all_is_over(served)


async def test_fields_that_are_not_known_are_ignored(folder: Path) -> None:
    async with serving(folder) as served, asked_for_mount(served) as client:
        send(client, json.dumps({"op": "proceed", "more": 1}).encode())
        assert (await answer(client))[0] == {}


async def test_a_client_that_goes_before_the_word_leaves_nothing(folder: Path) -> None:
    async with serving(folder) as served:
        async with asked_for_mount(served):
            pass
        await all_is_over(served)
        assert not served.handler.prepared[0].is_mounted


@pytest.mark.parametrize("says", [b"", protocol.PROCEED, b"x"])
async def test_a_client_that_goes_or_speaks_meanwhile_ends_the_mount(folder: Path, says: bytes) -> None:
    async with serving(folder) as served:
        served.handler.go_on.clear()
        async with asked_for_mount(served) as client:
            send(client, protocol.PROCEED)
            await soon(served.handler.began.acquire())
            if says:
                send(client, says)
            else:
                client.close()
            await soon(served.handler.given_up.wait())
        served.handler.go_on.set()
        await all_is_over(served)


async def test_a_client_that_never_says_the_word_is_closed_after_the_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "PROCEED_WAIT", 0.1)
    async with serving(folder) as served:
        async with asked_for_mount(served) as client:
            assert await is_closed(client)
        await all_is_over(served)


async def test_unpublish_ends_those_that_have_not_said_it(folder: Path) -> None:
    async with serving(folder) as served:
        async with asked_for_mount(served) as client:
            await until(lambda: bool(served.server._waiting))
            served.server.stop()
            assert await is_closed(client)
        await asyncio.gather(*served.server._connections)
        assert not served.handler.prepared[0].is_mounted
