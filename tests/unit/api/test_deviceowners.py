"""Tests when kubelet is asked which container has which device, and what is made of its answers. Time is virtual."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import virtual_time

from driver.api.deviceowners import DeviceOwners

Owners = Mapping[tuple[str, str], str]

ONE: Owners = {("fuse", "fuse-1"): "default/one/main"}
TWO: Owners = {("fuse", "fuse-2"): "default/two/main"}


class Kubelet:
    """Answers with what the test sets, and notes when it was asked and what was reported."""

    def __init__(self) -> None:
        self.answer: Owners | None = {}
        self.delay = 0.0
        self.error: Exception | None = None
        self.asked: list[float] = []
        self.reported: list[tuple[float, Owners]] = []

    async def owners(self) -> Owners | None:
        self.asked.append(asyncio.get_running_loop().time())
        answer = self.answer
        await asyncio.sleep(self.delay)
        if self.error is not None:
            raise self.error
        return answer

    def report(self, found: Owners) -> None:
        self.reported.append((asyncio.get_running_loop().time(), found))


def play(script: Callable[[Kubelet, DeviceOwners], Any]) -> Kubelet:
    """Run a test's script beside the class, and return what kubelet has noted."""
    kubelet = Kubelet()

    async def session() -> None:
        owners = DeviceOwners(kubelet, kubelet.report)  # type: ignore[arg-type]
        task = asyncio.create_task(owners.run())
        await script(kubelet, owners)
        task.cancel()

    virtual_time.run(session())
    return kubelet


def test_kubelet_is_asked_often_while_a_container_may_have_a_device() -> None:
    async def script(kubelet: Kubelet, owners: DeviceOwners) -> None:
        await asyncio.sleep(305)
        kubelet.answer = ONE
        await asyncio.sleep(60)

    asked = play(script).asked
    assert asked[:13] == [10.0 * number for number in range(13)]
    assert asked[13:17] == [180.0, 240.0, 300.0, 360.0]


def test_it_is_asked_often_while_one_has_one() -> None:
    async def script(kubelet: Kubelet, owners: DeviceOwners) -> None:
        kubelet.answer = ONE
        await asyncio.sleep(1000)

    assert len(play(script).asked) == 100


def test_it_is_asked_soon_after_an_allocation() -> None:
    async def script(kubelet: Kubelet, owners: DeviceOwners) -> None:
        await asyncio.sleep(305)
        owners.ask_soon()
        owners.ask_soon()
        kubelet.answer = TWO
        await asyncio.sleep(12)

    kubelet = play(script)
    assert kubelet.asked[-2:] == [306.0, 316.0]
    assert kubelet.reported[-2:] == [(306.0, TWO), (316.0, TWO)]


def test_a_container_may_take_two_minutes_to_come() -> None:
    async def script(kubelet: Kubelet, owners: DeviceOwners) -> None:
        await asyncio.sleep(305)
        owners.ask_soon()
        await asyncio.sleep(200)

    assert play(script).asked[-14:] == [306.0 + 10 * number for number in range(12)] + [426.0, 486.0]


def test_an_answer_that_may_be_older_than_an_allocation_is_not_used() -> None:
    async def script(kubelet: Kubelet, owners: DeviceOwners) -> None:
        kubelet.answer = ONE
        kubelet.delay = 2.0
        await asyncio.sleep(1)
        owners.ask_soon()
        kubelet.answer = TWO
        await asyncio.sleep(5)

    kubelet = play(script)
    assert kubelet.asked == [0.0, 3.0]
    assert kubelet.reported == [(5.0, TWO)]


def test_a_device_is_gone_when_no_answer_has_named_it_for_30_seconds() -> None:
    async def script(kubelet: Kubelet, owners: DeviceOwners) -> None:
        kubelet.answer = {**ONE, **TWO}
        await asyncio.sleep(5)
        kubelet.answer = ONE  # a kubelet that has just started does not know all pods
        await asyncio.sleep(20)
        kubelet.answer = {**ONE, **TWO}
        await asyncio.sleep(10)
        kubelet.answer = ONE
        await asyncio.sleep(40)

    reported = dict(play(script).reported)
    assert [time for time, found in reported.items() if found == {**ONE, **TWO}] == [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0]
    assert reported[70.0] == ONE


def test_no_answer_says_nothing() -> None:
    async def script(kubelet: Kubelet, owners: DeviceOwners) -> None:
        kubelet.answer = ONE
        await asyncio.sleep(5)
        kubelet.answer = None
        await asyncio.sleep(600)
        kubelet.answer = {}
        await asyncio.sleep(50)

    reported = play(script).reported
    assert [time for time, found in reported if found == ONE] == [0.0, 610.0, 620.0, 630.0]
    assert reported[-1] == (640.0, {})


def test_a_device_that_another_container_has_is_that_containers_at_once() -> None:
    async def script(kubelet: Kubelet, owners: DeviceOwners) -> None:
        kubelet.answer = ONE
        await asyncio.sleep(5)
        kubelet.answer = dict.fromkeys(ONE, "default/three/main")
        await asyncio.sleep(10)

    assert play(script).reported[-1] == (10.0, dict.fromkeys(ONE, "default/three/main"))


def test_at_the_start_an_empty_answer_is_not_believed() -> None:
    async def script(kubelet: Kubelet, owners: DeviceOwners) -> None:
        await asyncio.sleep(41)

    assert play(script).reported == [(30.0, {}), (40.0, {})]


def test_an_error_is_reported_and_asking_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async def script(kubelet: Kubelet, owners: DeviceOwners) -> None:
        kubelet.error = RuntimeError("a mistake")
        await asyncio.sleep(5)
        kubelet.error, kubelet.answer = None, ONE
        await asyncio.sleep(10)

    assert play(script).reported == [(10.0, ONE)]
    assert "internal error while asking kubelet" in caplog.text
