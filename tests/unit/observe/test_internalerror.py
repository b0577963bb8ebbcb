import asyncio
import logging
import os
from errno import EROFS

import pytest

from driver.observe import metrics
from driver.observe.internalerror import handle_loop_exception, report_internal_error
from driver.observe.logs import VolumeLog, log


def fail() -> None:
    raise KeyError("a mistake")


@pytest.fixture(autouse=True)
def propagated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "propagate", True)


def test_it_is_logged_with_a_traceback_and_counted(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(metrics, "_instruments", None)
    metrics.start(dict, lambda: 0, lambda: 0, lambda: 0)
    try:
        fail()
    except KeyError:
        report_internal_error("restoring a volume")
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "internal error while restoring a volume" in caplog.text
    assert "in fail" in caplog.text
    assert b"mfcp_internal_errors_total 1.0" in metrics.text()


def test_a_pod_that_causes_it_again_and_again_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    to = VolumeLog("default/pod", "csi-1")
    for _ in range(1000):
        try:
            fail()
        except KeyError:
            report_internal_error("serving a request", to)
    assert 1 <= len(caplog.records) <= 20
    assert caplog.records[0].volume == "csi-1"
    assert "in fail" in caplog.text


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(EROFS, os.strerror(EROFS)), ["a callback failed", "Read-only file system"]),
        (KeyError("a mistake"), ["internal error", "a callback failed", "a mistake", "Traceback"]),
    ],
)
def test_what_nobody_handled_in_the_event_loop_is_reported(error: Exception, words: list[str], caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(handle_loop_exception)
        asyncio.get_running_loop().call_exception_handler({"message": "a callback failed", "exception": error})

    asyncio.run(main())
    assert all(word in caplog.text for word in words)
