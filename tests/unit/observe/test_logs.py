import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from pod_programs import ROOT

from driver.observe import logs
from driver.observe.logs import VolumeLog


@pytest.fixture(autouse=True)
def logger_as_before() -> Iterator[None]:
    handlers, level, propagate = logs.log.handlers[:], logs.log.level, logs.log.propagate
    last_resort = logging.lastResort
    yield
    logging.lastResort = last_resort
    logs.log.handlers[:] = handlers
    logs.log.setLevel(level)
    logs.log.propagate = propagate


def test_a_line_has_time_level_pod_and_volume(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(1)
    VolumeLog("default/pod-1", "csi-1").info("mounted")
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO pod=default/pod-1 volume=csi-1: mounted\n",
        capsys.readouterr().err,
    )


def test_without_kubernetes_there_is_no_pod(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(1)
    VolumeLog("", "data").warning("x")
    assert capsys.readouterr().err.endswith(" WARNING pod=- volume=data: x\n")


@pytest.mark.parametrize("text", ["a\nb", "a\r", "\x1b[31mred", "\0", "a\u2028b", "\x9b", "\udcff", "\u202e", "\t", "\x7f"])
def test_what_a_pod_writes_begins_no_line_of_its_own(capsys: pytest.CaptureFixture[str], text: str) -> None:
    logs.configure(1)
    VolumeLog(text, text).info(f"unknown option '{text}'")
    line = capsys.readouterr().err
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    assert text not in line


def test_what_is_printable_stays(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(1)
    VolumeLog("d/p", "日本 \\n").info("100 %s é")
    assert "volume=日本 \\n: 100 %s é\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verbosity", "levels"),
    [
        (-1, ["WARNING", "ERROR"]),
        (0, ["WARNING", "ERROR"]),
        (1, ["INFO", "WARNING", "ERROR"]),
        (5, ["INFO", "WARNING", "ERROR"]),
        (6, ["DEBUG", "INFO", "WARNING", "ERROR"]),
        (10, ["DEBUG", "INFO", "WARNING", "ERROR"]),
    ],
)
def test_the_verbosity_selects_the_levels_that_klog_would_write(
    capsys: pytest.CaptureFixture[str], verbosity: int, levels: list[str]
) -> None:
    logs.configure(verbosity)
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logs.log.log(level, "x")
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == levels


def test_configured_twice_a_line_comes_once(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(1)
    logs.configure(1)
    logs.log.info("x")
    assert capsys.readouterr().err.count("\n") == 1


def test_what_a_pod_writes_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(1)
    VolumeLog("p" * 70000, "v" * 70000).info("x" * 70000)
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert len(line) < 2000
    assert "xxx..." in line


@pytest.mark.parametrize("character", ["x", "\n", "\udcff", "\U000e0001"])
def test_what_is_escaped_is_cut_too(character: str) -> None:
    printable = logs.shown(character * 70000)
    assert printable.endswith("...")
    assert 500 <= len(printable) < 510
    assert logs.shown(character * 50).endswith(character.encode("unicode_escape", "surrogatepass").decode()[-1])


def test_refusals_are_warnings_of_which_only_some_are_logged(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    logs.configure(0)
    now = 1000.0
    monkeypatch.setattr(logs.time, "monotonic", lambda: now)
    log = VolumeLog("default/pod-1", "csi-1")
    for _ in range(1000):
        log.refusal("bad request")
    lines = capsys.readouterr().err.splitlines()
    assert 0 < len(lines) <= 100
    assert all(line.endswith(" WARNING pod=default/pod-1 volume=csi-1: bad request") for line in lines)
    # Lines of another volume, and lines of another kind, have limits of their own.
    VolumeLog("default/pod-2", "csi-2").refusal("bad request")
    log.warning("something else")
    assert capsys.readouterr().err.count("\n") == 2
    # The number of lines that were left out is logged before the next line.
    now += 3600
    log.refusal("bad request")
    later = capsys.readouterr().err.splitlines()
    assert len(later) == 2
    assert str(1000 - len(lines)) in later[0]
    assert later[1].endswith("bad request")


def test_a_line_that_is_about_no_volume_names_none(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(1)
    logs.log.info("a\nb")
    assert re.fullmatch(r"\S+Z INFO a\\nb\n", capsys.readouterr().err)


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(1, "json")
    VolumeLog("default/pod-1", "csi-1").info("mounted")
    VolumeLog("", "data").warning("x")
    logs.log.error("y")
    first, second, third = map(json.loads, capsys.readouterr().err.splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert first == {"level": "info", "message": "mounted", "pod": "default/pod-1", "volume": "csi-1"}
    assert second.pop("time") and second == {"level": "warning", "message": "x", "volume": "data"}
    assert third.pop("time") and third == {"level": "error", "message": "y"}


@pytest.mark.parametrize(
    "text", ["a\nb", "a\r", "\x1b[31mred", "\0", "a\u2028b", "\x9b", "\udcff", "\u202e", '"', "\\", "日本", "x" * 70000]
)
def test_json_holds_nothing_that_is_not_plain(capsys: pytest.CaptureFixture[str], text: str) -> None:
    logs.configure(1, "json")
    VolumeLog(text, text).info(f"unknown option '{text}'")
    line = capsys.readouterr().err
    assert line.endswith("\n")
    assert line[:-1].isascii() and line[:-1].isprintable()
    assert len(line) < 4000
    entry = json.loads(line)
    assert all(value.isprintable() for value in entry.values())
    assert entry["pod"] == entry["volume"] == logs.shown(text)


FAILING = """
import logging
from driver.observe import logs
logs.configure(0, {form!r})
try:
    raise ValueError("what is\\nwrong")
except ValueError:
    logging.getLogger("asyncio").error("a task failed", exc_info=True)
"""


@pytest.mark.parametrize("form", list(logs.FORMATS))
def test_what_python_itself_has_to_say_takes_the_same_way(form: str) -> None:
    # pytest has handlers of its own in this process, so another one is used.
    code = FAILING.format(form=form)
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    if form == "json":
        (line,) = ended.stderr.splitlines()
        entry = json.loads(line)
        assert entry["message"] == "a task failed"
        assert "ValueError: what is\nwrong" in entry["exception"]
    else:
        assert " ERROR a task failed\nTraceback " in ended.stderr


@pytest.mark.parametrize("form", list(logs.FORMATS))
def test_the_time_is_utc_with_milliseconds(form: str) -> None:
    record = logging.LogRecord("mfcp", logging.INFO, "", 0, "x", None, None)
    record.created, record.msecs = 1_700_000_000.0625, 62.5
    assert "2023-11-14T22:13:20.062Z" in logs.FORMATS[form]().format(record)
