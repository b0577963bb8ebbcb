"""Tests what is said of a volume, and what is made of a FUSE program's word on its usage."""

import asyncio
import os
import time
from collections import Counter
from errno import EAGAIN, EIO, ENOSYS, ENOTCONN
from types import SimpleNamespace
from typing import Any

import process_jobs
import pytest
from with_processes import DEADLINE, run, the_starter

from driver.blocking.calls import BoundedCall, Bounds
from driver.blocking.processes import NotAsked
from driver.model import limits
from driver.model.state import End, Past, State
from driver.mounts import fusemount
from driver.observe.logs import VolumeLog
from driver.observe.troubles import Troubles
from driver.volumes import condition
from driver.volumes.condition import Amount

THEN = 1_700_000_000.0
SINCE = "since 2023-11-14 22:13:20Z"


def say(
    state: State, past: Past | None = None, silence: str = "", is_closing: bool = False, *warnings: str, detached: int = 0
) -> tuple[bool, str]:
    found = condition.condition(state, past or Past(THEN), silence, is_closing, detached, warnings)
    assert found.text.isprintable()
    return found.is_abnormal, found.text


def test_a_volume_that_is_mounted_and_answers_is_normal() -> None:
    assert say(State.MOUNTED) == (False, f"mounted {SINCE}")


@pytest.mark.parametrize(
    ("end", "words"),
    [(None, "no FUSE program has mounted it yet"), (End.DIED, "ended without unmounting"), (End.ASKED, "it was unmounted")],
)
def test_a_volume_that_waits_is_abnormal_and_says_for_what(end: End | None, words: str) -> None:
    is_abnormal, text = say(State.WAITING, Past(THEN, 3, end))
    assert is_abnormal
    assert text.startswith(f"waiting {SINCE}: ")
    assert words in text


def test_what_was_unmounted_lazily_is_counted_and_is_normal() -> None:
    text = f"mounted {SINCE}; file systems that were unmounted lazily and are still in use: 2"
    assert say(State.MOUNTED, detached=2) == (False, text)


def test_a_dead_one_is_abnormal() -> None:
    is_abnormal, text = say(State.DEAD)
    assert is_abnormal
    assert text.startswith(f"dead {SINCE}: the FUSE program has ended")


def test_a_program_that_does_not_answer_is_abnormal() -> None:
    assert say(State.MOUNTED, silence="it hangs") == (True, f"mounted {SINCE}, but it hangs")


def test_a_volume_that_is_being_unpublished_says_so() -> None:
    assert say(State.MOUNTED, is_closing=True) == (True, f"being unpublished; mounted {SINCE}")


def test_warnings_are_abnormal_and_readable() -> None:
    assert say(State.MOUNTED, None, "", False, "mountOptions: a\nb", "x" * 9999)[0]
    text = say(State.MOUNTED, None, "", False, "mountOptions: a\nb", "x" * 9999)[1]
    assert "; mountOptions: a\\nb; xxx" in text
    assert len(text) < 1000


def test_of_many_warnings_some_are_told() -> None:
    text = say(State.MOUNTED, None, "", False, *(f"warning {number}" for number in range(1000)))[1]
    assert "warning 4" in text
    assert "warning 5" not in text
    assert text.endswith("; 995 more, see the log")


@pytest.mark.parametrize("character", ["x", "\U000e0001"])
def test_the_whole_sentence_has_a_length(character: str) -> None:
    text = say(State.MOUNTED, None, "", False, *[character * 4000] * 5)[1]
    assert text.startswith(f"mounted {SINCE}; ")
    assert 1000 <= len(text) < 1010


@pytest.mark.parametrize(
    ("said", "expected"),
    [((10, 4, 6), Amount(10, 4, 6)), ((1 << 100, -1, -(1 << 64)), Amount((1 << 63) - 1, 0, 0)), ((0, 0, 0), Amount(0, 0, 0))],
)
def test_amounts_are_what_an_int64_holds(said: tuple[int, int, int], expected: Amount) -> None:
    assert condition._amount(*said) == expected


class Target:
    """Asks about a path as the mounts of a volume ask about theirs."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.state, self.past, self.is_held = State.MOUNTED, Past(THEN, 1), False
        self.count_detached = lambda: 0
        self.questions = BoundedCall(Bounds(the_starter()).questions)

    async def usage(self) -> tuple[int, ...]:
        return await self.questions.call("pod", limits.PROBE_WAIT, fusemount.usage, self.path)


def usage_of(path: str) -> condition.Usage:
    return run(condition._usage(volume(target=path)))


def test_the_usage_is_that_of_the_file_system(tmp_path: Any) -> None:
    usage = usage_of(str(tmp_path))
    said = os.statvfs(tmp_path)
    assert usage.size.total == said.f_blocks * said.f_frsize > 0
    assert usage.inodes.total == said.f_files
    assert 0 < usage.size.used <= usage.size.total


def test_a_link_in_place_of_the_target_is_not_followed(tmp_path: Any) -> None:
    (tmp_path / "link").symlink_to("/proc")
    assert usage_of(str(tmp_path / "link")).size.total == os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize


def volume(state: State = State.MOUNTED, target: str = "/target", pod: str = "pod") -> Any:
    """Return a stand-in for a volume, with what is looked at."""
    mounts = Target(target)
    mounts.state = state
    return SimpleNamespace(
        publication=SimpleNamespace(paths=SimpleNamespace(owner=pod)),
        mounts=mounts,
        policy=SimpleNamespace(warnings=()),
        troubles=Troubles(VolumeLog("", "csi-1")),
        is_closing=False,
        log=VolumeLog("default/pod", "csi-1"),
    )


async def test_a_program_that_hangs_is_told_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PROBE_WAIT", 0.1)

    async def usage(volume: Any) -> None:
        await volume.mounts.questions.call("pod", limits.PROBE_WAIT, process_jobs.sleeps)

    monkeypatch.setattr(condition, "_usage", usage)
    examined = volume()

    began = time.monotonic()
    found = [await condition.examine(examined) for _ in range(3)]
    assert time.monotonic() - began < 5
    assert await examined.mounts.questions.call("pod", DEADLINE, process_jobs.same, 7) == 7  # the process of the former one has ended
    for how, found_usage in found:
        assert found_usage is None
        assert how.is_abnormal
        assert "does not answer within 0.1 s" in how.text


def test_one_that_was_not_asked_is_told_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    async def usage(*_: object) -> None:
        raise NotAsked(EAGAIN, "no process can be had")

    monkeypatch.setattr(condition, "_usage", usage)
    how, found = run(condition.examine(volume()))
    assert found is None
    assert (how.is_abnormal, how.text) == (True, f"mounted {SINCE}, but its FUSE program was not asked: no process can be had")


@pytest.mark.parametrize(("errno", "is_abnormal"), [(ENOSYS, False), (EIO, False), (ENOTCONN, True)])
def test_a_program_that_answers_with_an_error_answers(errno: int, is_abnormal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def usage(*_: object) -> None:
        raise OSError(errno, os.strerror(errno))

    monkeypatch.setattr(condition, "_usage", usage)
    how, found = run(condition.examine(volume()))
    assert found is None
    assert how.is_abnormal is is_abnormal


def test_troubles_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def usage(*_: object) -> condition.Usage:
        return condition.NOTHING_KNOWN

    monkeypatch.setattr(condition, "_usage", usage)
    examined = volume()
    examined.troubles.begin("sockets", "the sockets are gone")
    how, _ = run(condition.examine(examined))
    assert (how.is_abnormal, how.text) == (True, f"mounted {SINCE}; the sockets are gone")
    examined.troubles.end("sockets")
    assert not run(condition.examine(examined))[0].is_abnormal


def test_one_that_fails_unforeseen_costs_no_other(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    volumes = [volume(State.WAITING) for _ in range(3)]
    volumes[1].mounts.past = Past(float("nan"))

    async def usage(*_: object) -> condition.Usage:
        return condition.NOTHING_KNOWN

    monkeypatch.setattr(condition, "_usage", usage)
    found = run(condition.examine_all(volumes))
    assert [how.text.split()[0] for how in found] == ["waiting", "its", "waiting"]
    assert found[1].is_abnormal
    assert found[1].text.startswith("its condition is not known: the driver failed to examine it: ValueError")
    assert "internal error while examining the volume" in caplog.text
    assert "in condition" in caplog.text  # the function's line of the traceback


def test_many_are_examined_some_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The conditions come in the order of the volumes, and never more than the limits allow are examined at one time."""
    running: Counter[str] = Counter()
    most: Counter[str] = Counter()

    async def usage(examined: Any) -> condition.Usage:
        for key in ("all", examined.publication.paths.owner):
            running[key] += 1
            most[key] = max(most[key], running[key])
        await asyncio.sleep(0.05)
        for key in ("all", examined.publication.paths.owner):
            running[key] -= 1
        return condition.NOTHING_KNOWN

    monkeypatch.setattr(condition, "_usage", usage)
    volumes = [volume(State.MOUNTED if number % 3 else State.WAITING, pod=f"pod {number % 8}") for number in range(200)]
    found = run(condition.examine_all(volumes))
    assert [how.text.split()[0] for how in found] == ["mounted" if number % 3 else "waiting" for number in range(200)]
    assert most.pop("all") == condition._EXAMINED_AT_ONCE
    assert set(most.values()) <= set(range(1, condition._EXAMINED_OF_A_POD + 1))


async def test_all_are_examined_within_the_limit_however_many_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs of one pod hang, and those of the other pods are asked all the same."""
    monkeypatch.setattr(limits, "STATUS_WAIT", 0.5)

    async def usage(examined: Any) -> condition.Usage:
        if examined.publication.paths.owner == "hangs":
            await asyncio.sleep(0.2)
            raise TimeoutError
        return condition.NOTHING_KNOWN

    monkeypatch.setattr(condition, "_usage", usage)
    hung = [volume(pod="hangs") for _ in range(400)]
    healthy = [volume(pod=f"pod {number}") for number in range(100)]
    waiting = [volume(State.WAITING, pod="hangs")]

    began = time.monotonic()
    found = await condition.examine_all([*hung, *healthy, *waiting])
    assert time.monotonic() - began < 2
    silent, late = "does not answer within", "was not asked: examining the volumes of this node took longer than 0.5 s"
    for how in found[:400]:
        assert how.is_abnormal
        assert (silent in how.text) is not (late in how.text)
    assert silent in found[0].text
    assert late in found[399].text
    assert [(how.is_abnormal, how.text) for how in found[400:500]] == [(False, f"mounted {SINCE}")] * 100
    assert found[500].text.startswith(f"waiting {SINCE}: ")
    assert "not asked" not in found[500].text
