import logging

import pytest

from driver.observe.logs import VolumeLog
from driver.observe.troubles import Troubles


@pytest.fixture
def troubles() -> Troubles:
    return Troubles(VolumeLog("default/pod-1", "csi-1"))


def test_of_each_kind_the_last_one_counts_until_it_is_over(troubles: Troubles) -> None:
    assert (troubles.texts, troubles.has("sockets")) == ([], False)
    troubles.begin("sockets", "gone")
    troubles.begin("record", "disk full")
    troubles.begin("sockets", "gone again")
    assert troubles.texts == ["gone again", "disk full"]
    troubles.end("sockets", "watch")
    assert troubles.texts == ["disk full"]
    assert (troubles.has("sockets"), troubles.has("record")) == (False, True)


def test_it_is_logged_when_it_is_new(troubles: Troubles, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        troubles.begin("sockets", "gone")
        troubles.begin("record", "disk full", logging.WARNING)
    assert [(record.levelname, record.message) for record in caplog.records] == [("ERROR", "gone"), ("WARNING", "disk full")]
    troubles.end("sockets")
    troubles.begin("sockets", "gone")
    assert len(caplog.records) == 3


def test_one_that_a_pod_brings_about_again_and_again_does_not_fill_the_log(troubles: Troubles, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(1000):
        troubles.begin("subPath", "not there", logging.WARNING)
        troubles.end("subPath")
    assert len(caplog.records) == 20
