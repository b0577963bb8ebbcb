"""Tests how the driver finds out whether a process serves a socket. One that hangs accepts connections, but does not answer."""

import os
import socket
import threading
from pathlib import Path

import grpc
import grpc.aio
import pytest
from with_processes import run

from driver.api import endpoint
from driver.api.endpoint import AlreadyServed, Listener, find_listener, refuse_if_served
from driver.model.errors import StartError

WAIT = 0.3


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(endpoint, "_ANSWER_WAIT", WAIT)
    return f"{tmp_path}/sock"


def listening(path: str, backlog: int = 8) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(backlog)
    return server


async def test_a_grpc_server_answers(path: str) -> None:
    server = grpc.aio.server()
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    try:
        assert await find_listener(path) == Listener(os.getpid(), answers=True)
        with pytest.raises(AlreadyServed, match=rf"^--endpoint: another process serves {path} \(pid {os.getpid()}\): stop it first$"):
            await refuse_if_served(path, "--endpoint")
    finally:
        await server.stop(None)


def test_one_that_says_nothing_is_stuck(path: str, caplog: pytest.LogCaptureFixture) -> None:
    with listening(path):
        assert run(find_listener(path)) == Listener(os.getpid(), answers=False)
        run(refuse_if_served(path, "--endpoint"))
    assert f"a process (pid {os.getpid()}) has {path} and does not answer" in caplog.text


def test_one_whose_queue_is_full_is_stuck(path: str) -> None:
    with listening(path, backlog=0), socket.socket(socket.AF_UNIX) as first:
        first.connect(path)
        assert run(find_listener(path)) == Listener(0, answers=False)


def test_one_whose_queue_was_full_answers(path: str) -> None:
    with listening(path, backlog=0) as server, socket.socket(socket.AF_UNIX) as first:
        first.connect(path)

        def serve() -> None:
            server.accept()[0].close()
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.send(b"\0")

        timer = threading.Timer(WAIT / 3, serve)
        timer.start()
        assert run(find_listener(path)) == Listener(os.getpid(), answers=True)
        timer.join()


@pytest.mark.parametrize("accepts", [False, True])
def test_one_that_ends_does_not_listen(path: str, accepts: bool) -> None:
    server = listening(path)

    def end() -> None:
        if accepts:
            server.accept()[0].close()
        server.close()

    timer = threading.Timer(WAIT / 3, end)
    timer.start()
    assert run(find_listener(path)) is None
    timer.join()
    assert run(find_listener(path)) is None
    os.unlink(path)
    assert run(find_listener(path)) is None


def test_something_else_is_left_alone(path: str) -> None:
    Path(path).touch()
    with pytest.raises(StartError, match="exists and is not a socket"):
        run(refuse_if_served(path, "--endpoint"))


def test_a_process_in_another_pid_namespace_is_described_so() -> None:
    assert str(Listener(0, answers=True)) == "in a pid namespace that is not visible here"
