"""What the driver counts and measures, in one place: other modules say what happened, by plain functions and values.

Without start() nothing is kept, and prometheus_client, which has the instruments, is not even imported. No label's
value comes from a pod: each is one of an enumeration, of a method's names or of a status' codes, so there are never more
series than these lines hold, whatever pods do.

The instruments are global, as the logger is: what happens anywhere on this node is counted in one place.
"""

import sys
import time
from collections.abc import Callable, Mapping
from enum import Enum
from errno import EAGAIN, EBUSY, EINVAL, EPROTO
from types import ModuleType
from typing import Any

from driver import __version__
from driver.model.state import End

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds


class Reason(Enum):
    """Why a pod's request was refused."""

    BUSY = "busy"  # another program serves the volume, or the mount is in use
    INVALID = "invalid"  # options, or an unmount of what is not this volume's
    UNPUBLISHING = "unpublishing"
    BAD_REQUEST = "bad_request"  # not of the protocol
    LATE = "late"  # no request within its limit
    TOO_MANY = "too_many"  # at once
    FAILED = "failed"  # whatever else the kernel or the driver said


class Operation(Enum):
    """What takes time."""

    PUBLISH = "publish"  # of a volume that was not there; a republish is none
    UNPUBLISH = "unpublish"
    MOUNT = "mount"
    UNMOUNT = "unmount"  # while the volume stays


_REASONS = {EBUSY: Reason.BUSY, EINVAL: Reason.INVALID, EAGAIN: Reason.UNPUBLISHING, EPROTO: Reason.BAD_REQUEST}


class Timer:
    """Measures one operation, from here to stop(). One that fails is not stopped, and counts in mfcp_calls_total."""

    def __init__(self, operation: Operation) -> None:
        self._operation = operation
        self._began = time.monotonic()

    def stop(self) -> str:
        """The time that it took, for the log."""
        seconds = time.monotonic() - self._began
        if _instruments is not None:
            _instruments.durations.labels(self._operation.value).observe(seconds)
        return f"{seconds * 1000:.1f} ms"


def mounted(is_recovery: bool) -> None:
    """A FUSE file system is mounted; `is_recovery` where the volume's last one died."""
    if _instruments is not None:
        _instruments.mounts.inc()
        if is_recovery:
            _instruments.recoveries.inc()


def unmounted(end: End) -> None:
    """A FUSE file system is not mounted any more."""
    if _instruments is not None:
        _instruments.unmounts.labels(end.value).inc()


def refused(reason: Reason | int) -> None:
    """A pod's request was refused, for a reason or with an errno."""
    if _instruments is not None:
        known = reason if isinstance(reason, Reason) else _REASONS.get(reason, Reason.FAILED)
        _instruments.refusals.labels(known.value).inc()


def internal_error() -> None:
    """The driver failed by a mistake of its own (driver/observe/internalerror.py)."""
    if _instruments is not None:
        _instruments.internal_errors.inc()


def called(method: str, code: str) -> None:
    """A gRPC method answered with a status code."""
    if _instruments is not None:
        _instruments.calls.labels(method, code).inc()


class _Instruments:
    def __init__(self, volumes: Callable[[], Mapping[str, int]], troubled: Callable[[], int]) -> None:
        # Its HTTP servers and clients need TLS, which the driver's tree does not have; the rest does without them.
        unused: Any = ModuleType("prometheus_client.exposition")
        unused.__getattr__ = lambda name: None
        sys.modules.setdefault(unused.__name__, unused)
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
        from prometheus_client.metrics_core import GaugeMetricFamily
        from prometheus_client.registry import Collector

        class Volumes(Collector):
            """What is looked up when somebody asks."""

            def collect(self) -> list[GaugeMetricFamily]:
                by_state = GaugeMetricFamily("mfcp_volumes", "Published volumes by state.", labels=["state"])
                for state, number in volumes().items():
                    by_state.add_metric([state], number)
                text = "Volumes with warnings or trouble; 'meta-fuse-csi-plugin status' says which."
                return [by_state, GaugeMetricFamily("mfcp_troubled_volumes", text, troubled())]

        self.registry: CollectorRegistry = CollectorRegistry()
        into = self.registry
        Gauge("mfcp_build_info", "The driver's version.", ["version"], registry=into).labels(__version__).set(1)
        into.register(Volumes())
        self.mounts = Counter("mfcp_mounts_total", "FUSE file systems mounted.", registry=into)
        self.recoveries = Counter("mfcp_recoveries_total", "Mounts at volumes whose last FUSE program died.", registry=into)
        self.unmounts = Counter("mfcp_unmounts_total", "FUSE file systems that ended, by how.", ["cause"], registry=into)
        self.refusals = Counter("mfcp_refused_requests_total", "Requests of pods that were refused, by reason.", ["reason"], registry=into)
        self.calls = Counter("mfcp_calls_total", "gRPC calls by method and status code.", ["method", "code"], registry=into)
        text = "Failures that are mistakes of the driver; each is in its log with a traceback."
        self.internal_errors = Counter("mfcp_internal_errors_total", text, registry=into)
        self.durations = Histogram(
            "mfcp_operation_duration_seconds",
            "How long what succeeded took, by operation.",
            ["operation"],
            buckets=_BUCKETS,
            registry=into,
        )
        # Zeros from the start: a rate over a series that begins with its first event would miss that one.
        for end in End:
            self.unmounts.labels(end.value)
        for reason in Reason:
            self.refusals.labels(reason.value)
        for operation in Operation:
            self.durations.labels(operation.value)
        ProcessCollector(registry=into)


_instruments: _Instruments | None = None


def start(volumes: Callable[[], Mapping[str, int]], troubled: Callable[[], int]) -> None:
    """Count from now on. `volumes` tells how many volumes there are by state, `troubled` how many have trouble."""
    global _instruments
    _instruments = _Instruments(volumes, troubled)


def text() -> bytes:
    """Everything as Prometheus' text format 0.0.4 has it; start() comes first."""
    assert _instruments is not None
    lines = []
    for family in _instruments.registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        lines += [f"# HELP {name} {family.documentation}", f"# TYPE {name} {family.type}"]
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                labels = ",".join(f'{label}="{value}"' for label, value in sample.labels.items())
                lines.append(f"{sample.name}{{{labels}}} {sample.value}" if labels else f"{sample.name} {sample.value}")
    return "\n".join([*lines, ""]).encode()
