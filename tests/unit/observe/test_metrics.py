"""Tests the metrics as Prometheus reads them. The instruments are global, so each test begins with new ones."""

import re
import subprocess
import sys
from collections.abc import Iterator
from errno import EBUSY, EINVAL, EIO

import pytest
from pod_programs import ROOT

from driver import __version__
from driver.model.state import End
from driver.observe import metrics
from driver.observe.metrics import Operation, Reason, Timer

LINE = re.compile(r'([a-z_]+)(?:\{((?:[a-z]+="[^"\\\n]*",?)+)\})? (\S+)')


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(metrics, "_instruments", None)
    metrics.start(lambda: {"waiting": 2, "mounted": 1, "dead": 0}, lambda: 1, lambda: 3, lambda: 4)
    yield


def values() -> dict[str, float]:
    """Return every series in its text form, with its value."""
    found = {}
    for line in metrics.text().decode().splitlines():
        if not line.startswith("#"):
            name, labels, value = LINE.fullmatch(line).groups()  # type: ignore[union-attr]
            found[f"{name}{{{labels}}}" if labels else name] = float(value)
    return found


@pytest.mark.usefixtures("started")
def test_volumes_are_looked_up_when_somebody_asks() -> None:
    found = values()
    assert found['mfcp_volumes{state="waiting"}'] == 2
    assert found['mfcp_volumes{state="mounted"}'] == 1
    assert found['mfcp_volumes{state="dead"}'] == 0
    assert found["mfcp_troubled_volumes"] == 1
    assert found[f'mfcp_build_info{{version="{__version__}"}}'] == 1
    assert found["process_resident_memory_bytes"] > 1e6


@pytest.mark.usefixtures("started")
def test_what_happens_is_counted() -> None:
    metrics.mounted(is_recovery=False)
    metrics.mounted(is_recovery=True)
    metrics.unmounted(End.DIED)
    metrics.called("NodePublishVolume", "OK")
    metrics.called("NodePublishVolume", "OK")
    found = values()
    assert found["mfcp_mounts_total"] == 2
    assert found["mfcp_recoveries_total"] == 1
    assert [found[f'mfcp_unmounts_total{{cause="{end.value}"}}'] for end in (End.ASKED, End.DIED, End.UNPUBLISHED)] == [0, 1, 0]
    assert found['mfcp_calls_total{method="NodePublishVolume",code="OK"}'] == 2


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize(
    ("said", "reason"), [(Reason.LATE, "late"), (EBUSY, "busy"), (EINVAL, "invalid"), (EIO, "failed"), (0, "failed"), (10**6, "failed")]
)
def test_a_refusal_has_one_of_few_reasons(said: Reason | int, reason: str) -> None:
    metrics.refused(said)
    found = {name: value for name, value in values().items() if name.startswith("mfcp_refused_requests_total")}
    assert len(found) == len(Reason)
    assert {name for name, value in found.items() if value} == {f'mfcp_refused_requests_total{{reason="{reason}"}}'}


@pytest.mark.usefixtures("started")
def test_a_duration_is_in_its_operations_histogram(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 5.0
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now)
    timer = Timer(Operation.UNPUBLISH)
    Timer(Operation.MOUNT)  # fails, and is never stopped
    now += 0.0123
    assert timer.stop() == "12.3 ms"
    found = values()
    assert found['mfcp_operation_duration_seconds_count{operation="unpublish"}'] == 1
    assert found['mfcp_operation_duration_seconds_count{operation="mount"}'] == 0
    assert found['mfcp_operation_duration_seconds_sum{operation="unpublish"}'] == pytest.approx(0.0123)
    for bound, number in (("0.01", 0), ("0.025", 1), ("+Inf", 1)):
        assert found[f'mfcp_operation_duration_seconds_bucket{{operation="unpublish",le="{bound}"}}'] == number


@pytest.mark.usefixtures("started")
def test_every_family_has_its_help_and_its_type() -> None:
    text = metrics.text().decode()
    assert text.endswith("\n")
    names = {name.partition("{")[0] for name in values()}
    for name in names:
        family = re.sub("_(bucket|count|sum)$", "", name)
        kinds = re.findall(rf"^# TYPE {family} (\w+)$", text, re.MULTILINE)
        assert kinds == ["histogram" if family != name else "counter" if name.endswith("_total") else "gauge"]
        assert len(re.findall(rf"^# HELP {family} \S.*$", text, re.MULTILINE)) == 1


@pytest.mark.usefixtures("started")
def test_there_are_no_more_series_however_much_happens() -> None:
    before = set(values())
    for number in range(1000):
        metrics.refused(number)
        metrics.mounted(number % 2 == 0)
        metrics.unmounted(End.DIED)
    assert set(values()) == before


def test_without_a_start_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_instruments", None)
    metrics.mounted(is_recovery=True)
    metrics.unmounted(End.ASKED)
    metrics.refused(Reason.BUSY)
    metrics.called("Probe", "OK")
    assert re.fullmatch(r"\d+\.\d ms", Timer(Operation.PUBLISH).stop())


CODE = """
import sys
from driver.observe import metrics
assert not [name for name in sys.modules if name.startswith("prometheus_client")]
metrics.start(dict, int, int, int)
metrics.text()
print(*sorted(sys.modules))
"""


def test_what_it_imports_only_when_it_is_asked_for_has_no_server_and_no_tls() -> None:
    ended = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    loaded = set(ended.stdout.split())
    assert "prometheus_client.registry" in loaded
    assert loaded & {"ssl", "http.server", "http.client", "wsgiref", "socketserver", "urllib.request", "email"} == set()
