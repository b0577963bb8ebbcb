"""Tests how the end of an attempt to mount, in a process or a thread, is reported. The kernel takes nothing of what it mounts."""

import asyncio
import os
import threading
from errno import EAGAIN, EINTR, EIO, ENOENT, ENOTBLK, EPERM
from pathlib import Path

import process_jobs
import pytest
from with_processes import run

from driver.blocking.processes import NotAsked, Process, Starter
from driver.blocking.threads import Threads
from driver.model.policy import MountArguments
from driver.mounts import fusemount
from driver.mounts.attempt import MountAttempt

KERNEL = MountArguments(b"source", b"fuse", 0, b"rootmode=40000,user_id=0,group_id=0")


pytestmark = pytest.mark.usefixtures("nothing_is_left")


def null() -> int:
    return os.open("/dev/null", os.O_RDWR)


async def test_its_end_is_the_errno_of_the_mount(starter: Starter, tmp_path: Path) -> None:
    told: list[bool] = []

    def note(has_ended: bool, errno: int) -> int:
        told.append(has_ended)
        return errno

    fd = null()
    attempt = MountAttempt.in_process(starter, fd, f"{tmp_path}/missing", KERNEL, lambda errno: note(attempt.ended.done(), errno))
    assert await attempt.ended in (ENOENT, EPERM, ENOTBLK)  # without privileges the kernel looks no further
    # When `ended` is settled, everything is done.
    assert told == [False]
    assert not attempt.is_given_up
    attempt.give_up()  # and again, when it has ended
    assert not attempt.is_given_up
    os.close(fd)


@pytest.mark.parametrize("after", [0, 0.001, 0.05], ids=lambda after: f"after {after}")  # before there is a process, and while it works
async def test_one_that_does_not_end_is_killed(starter: Starter, after: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusemount, "mount_fd", process_jobs.sleeps_in_place_of_a_mount)
    fd = null()
    attempt = MountAttempt.in_process(starter, fd, "/nowhere", KERNEL, lambda errno: os.close(fd) or errno)
    await asyncio.sleep(after)
    assert not attempt.ended.done()
    attempt.give_up()
    assert await attempt.ended == EINTR
    assert attempt.is_given_up


async def test_without_a_process_it_may_be_tried_again(starter: Starter, monkeypatch: pytest.MonkeyPatch) -> None:
    async def none() -> Process:
        raise NotAsked(EAGAIN, "no process can be had")

    monkeypatch.setattr(starter, "process", none)
    fd = null()
    assert await MountAttempt.in_process(starter, fd, "/nowhere", KERNEL, lambda errno: os.close(fd) or errno).ended == EAGAIN


def test_a_mistake_before_it_keeps_nobody_waiting(
    starter: Starter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def mistake() -> Process:
        raise RuntimeError

    monkeypatch.setattr(starter, "process", mistake)

    async def main() -> None:
        told: list[bool] = []
        attempt = MountAttempt.in_process(starter, 0, "/nowhere", KERNEL, lambda errno: told.append(True) or errno)
        assert await attempt.ended == EIO
        assert told

    run(main())
    assert "internal error while mounting" in caplog.text and "RuntimeError" in caplog.text


def test_a_mistake_at_its_end_keeps_nobody_waiting(starter: Starter, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """And is no success: nobody knows of the mount."""

    async def main() -> None:
        fd = null()
        attempt = MountAttempt.in_process(starter, fd, f"{tmp_path}/missing", KERNEL, lambda errno: 1 // 0)  # type: ignore[arg-type, return-value]
        assert await attempt.ended == EIO
        os.close(fd)

    run(main())
    assert "internal error while beginning to follow a new mount" in caplog.text and "ZeroDivisionError" in caplog.text


async def test_in_a_thread_its_end_is_the_errno_of_the_mount_too(tmp_path: Path) -> None:
    fd = null()
    attempt = MountAttempt.in_thread(Threads(1), fd, f"{tmp_path}/missing", KERNEL, lambda errno: os.close(fd) or errno)
    assert await attempt.ended in (ENOENT, EPERM, ENOTBLK)


async def test_in_a_thread_one_that_is_given_up_before_it_began_does_not_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    mounted: list[object] = []
    monkeypatch.setattr(fusemount, "mount_fd", lambda *arguments: mounted.append(arguments))
    may_end = threading.Event()
    threads = Threads(1)
    threads.run_to_end(may_end.wait)  # another mount that is stuck
    fd = null()
    attempt = MountAttempt.in_thread(threads, fd, "/nowhere", KERNEL, lambda errno: os.close(fd) or errno)
    await asyncio.sleep(0.01)
    attempt.give_up()
    may_end.set()
    assert await attempt.ended == EINTR
    assert mounted == []


def test_the_work_is_a_function_that_its_process_finds_by_name() -> None:
    assert getattr(fusemount, fusemount.mount_fd.__qualname__) is fusemount.mount_fd
