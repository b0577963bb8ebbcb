from collections.abc import Callable

import pytest

from driver.model.state import End, Past
from driver.mounts import history
from driver.mounts.history import History
from driver.observe import metrics


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the time."""

    def at(now: float) -> None:
        monkeypatch.setattr(history.time, "time", lambda: now)

    at(100.0)
    return at


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    found: list[object] = []
    monkeypatch.setattr(metrics, "mounted", lambda is_recovery: found.append("recovery" if is_recovery else "mount"))
    monkeypatch.setattr(metrics, "unmounted", found.append)
    return found


def test_each_change_begins_a_new_time(at: Callable[[float], None]) -> None:
    volume = History()
    assert volume.past == Past(100.0)
    at(200.0)
    volume.mounted()
    assert volume.past == Past(200.0, 1)
    at(300.0)
    volume.died()
    assert volume.past == Past(300.0, 1)
    at(400.0)
    volume.ended(End.DIED, b"/data")
    assert volume.past == Past(400.0, 1, End.DIED, b"/data")
    at(500.0)
    volume.mounted()
    assert volume.past == Past(500.0, 2, End.DIED)


def test_a_mount_after_a_death_is_a_recovery(counted: list[object]) -> None:
    volume = History()
    for end in (End.ASKED, End.DIED, End.DIED, End.ASKED):
        volume.mounted()
        volume.ended(end, b"/data")
    volume.mounted()
    assert counted == ["mount", End.ASKED, "mount", End.DIED, "recovery", End.DIED, "recovery", End.ASKED, "mount"]


def test_what_a_dead_program_left_is_unmounted_once(at: Callable[[float], None]) -> None:
    volume = History()
    assert not volume.unmounted_after_end(b"/data")
    volume.mounted()
    volume.ended(End.ASKED, b"/data")
    assert not volume.unmounted_after_end(b"/data")
    volume.mounted()
    volume.ended(End.DIED, b"/data")
    assert not volume.unmounted_after_end(b"/other")
    at(200.0)
    assert volume.unmounted_after_end(b"/data")
    assert volume.past == Past(100.0, 2, End.DIED)
    assert not volume.unmounted_after_end(b"/data")


def test_a_restart_of_the_driver_changes_nothing(counted: list[object]) -> None:
    volume = History(Past(50.0, 7, End.DIED))
    assert volume.past == Past(50.0, 7, End.DIED)
    volume.mounted()
    assert volume.past.mounts == 8
    assert counted == ["recovery"]
