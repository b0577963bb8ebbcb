"""Test how the driver calls processes that enter containers."""

import asyncio
import marshal
import os

import process_jobs
import pytest

from driver.blocking.processes import Starter
from driver.blocking.starter import _PACKET_MAX
from driver.devices import visits
from driver.devices.shared import by_container
from driver.devices.visits import Late, Visits
from driver.model import limits


async def test_fds_are_closed_here_before_the_process_closes_them(starter: Starter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who closes the last one may wait for a file system of a container's, and all containers would wait with the driver."""
    monkeypatch.setattr(visits, "keep_until_the_end", process_jobs.says_and_waits)
    (said, says), (told, tells) = os.pipe(), os.pipe()
    dropping = asyncio.get_running_loop().create_task(Visits(starter).drop("device container", [says, told]))
    await asyncio.to_thread(os.read, said, 1)
    for fd in (says, told):
        with pytest.raises(OSError):
            os.fstat(fd)
    assert not dropping.done()
    os.write(tells, b"x")
    await dropping
    for fd in (said, tells):
        os.close(fd)


@pytest.mark.parametrize("is_told", [False, True])
async def test_what_a_process_does_too_late_is_told(starter: Starter, is_told: bool) -> None:
    for job, expected in ((process_jobs.says_and_waits, None), (process_jobs.waits_beyond, "late")):
        (said, says), (told, tells) = os.pipe(), os.pipe()
        give_up = asyncio.get_running_loop().create_future()
        if is_told:
            asyncio.get_running_loop().call_later(0.1, give_up.set_result, None)
        with pytest.raises(Late) as caught:
            await Visits(starter).mount("d", 5 if is_told else 0.1, job, fds=[says, told], give_up=give_up)
        os.write(tells, b"x")
        assert await caught.value.late() == (expected, [])
        for fd in (said, says, told, tells):
            os.close(fd)


def test_the_mounts_of_a_busy_node_fit_into_a_packet() -> None:
    """All containers of an engine may share one device."""
    devices = [
        (f"0:{number}", f"pid namespace {4026530000 + number // limits.DEVICE_MOUNTS}") for number in range(100 * limits.DEVICE_MOUNTS)
    ]
    assert len(marshal.dumps(by_container(devices))) < _PACKET_MAX // 2 < len(marshal.dumps(devices))
