"""Counts and measures what the driver does. Other modules report events to the plain functions here.

Before start() nothing is counted, and prometheus_client, which has the instruments, is not imported. No pod chooses the value
of a label: each is a member of an enumeration, the name of a gRPC method or a status code. So the number of series is limited,
whatever pods do.

The instruments are global, like the logger, because events from everywhere in the driver are counted together.
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
    """Says why a pod's request was refused."""

    BUSY = "busy"  # another program serves the volume, or the mount is in use
    INVALID = "invalid"  # invalid mount options, or an unmount of a mount that is not this volume's
    UNPUBLISHING = "unpublishing"  # the volume is being unpublished
    BAD_REQUEST = "bad_request"  # the request violates the protocol
    LATE = "late"  # no request arrived within its limit
    TOO_MANY = "too_many"  # too many connections at once
    FAILED = "failed"  # any other error


class Operation(Enum):
    """Names an operation whose duration is measured."""

    PUBLISH = "publish"  # only of a new volume, not a republish
    UNPUBLISH = "unpublish"
    MOUNT = "mount"
    UNMOUNT = "unmount"  # without unpublishing the volume


_REASONS = {EBUSY: Reason.BUSY, EINVAL: Reason.INVALID, EAGAIN: Reason.UNPUBLISHING, EPROTO: Reason.BAD_REQUEST}


class Timer:
    """Measures the duration of one operation, from here to stop(). Do not stop the timer of an operation that fails."""

    def __init__(self, operation: Operation) -> None:
        self._operation = operation
        self._began = time.monotonic()

    def stop(self) -> str:
        """Record the duration, and return it as text for the log, in milliseconds."""
        seconds = time.monotonic() - self._began
        if _instruments is not None:
            _instruments.durations.labels(self._operation.value).observe(seconds)
        return f"{seconds * 1000:.1f} ms"


def mounted(is_recovery: bool) -> None:
    """Count a mount of a FUSE file system. `is_recovery` says that the FUSE program of the volume's previous mount had died."""
    if _instruments is not None:
        _instruments.mounts.inc()
        if is_recovery:
            _instruments.recoveries.inc()


def unmounted(end: End) -> None:
    """Count the end of a FUSE mount."""
    if _instruments is not None:
        _instruments.unmounts.labels(end.value).inc()


def refused(reason: Reason | int) -> None:
    """Count a refused request of a pod. An errno is counted under the reason that it stands for."""
    if _instruments is not None:
        known = reason if isinstance(reason, Reason) else _REASONS.get(reason, Reason.FAILED)
        _instruments.refusals.labels(known.value).inc()


def internal_error() -> None:
    """Count an internal error. Only report_internal_error() calls this."""
    if _instruments is not None:
        _instruments.internal_errors.inc()


def called(method: str, code: str) -> None:
    """Count a gRPC call, by its method and the status code of the answer."""
    if _instruments is not None:
        _instruments.calls.labels(method, code).inc()


class _Instruments:
    def __init__(
        self,
        volumes_by_state: Callable[[], Mapping[str, int]],
        troubled_volumes: Callable[[], int],
        detached_mounts: Callable[[], int],
        device_mounts: Callable[[], int],
    ) -> None:
        # prometheus_client imports this module for its HTTP servers, which need TLS. The packaged driver has no TLS library.
        unused: Any = ModuleType("prometheus_client.exposition")
        unused.__getattr__ = lambda name: None
        sys.modules.setdefault(unused.__name__, unused)
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
        from prometheus_client.metrics_core import GaugeMetricFamily
        from prometheus_client.registry import Collector

        class Volumes(Collector):
            """Counts the volumes when the metrics are read."""

            def collect(self) -> list[GaugeMetricFamily]:
                by_state = GaugeMetricFamily("mfcp_volumes", "Published volumes, by state.", labels=["state"])
                for state, number in volumes_by_state().items():
                    by_state.add_metric([state], number)
                text = "Volumes with warnings or trouble; 'meta-fuse-csi-plugin status' lists them."
                troubled = GaugeMetricFamily("mfcp_troubled_volumes", text, troubled_volumes())
                text = "FUSE file systems that were unmounted lazily and are still in use."
                detached = GaugeMetricFamily("mfcp_detached_mounts", text, detached_mounts())
                text = "FUSE file systems that containers have mounted with fuse devices."
                return [by_state, troubled, detached, GaugeMetricFamily("mfcp_device_mounts", text, device_mounts())]

        self.registry: CollectorRegistry = CollectorRegistry()
        into = self.registry
        Gauge("mfcp_build_info", "The driver's version.", ["version"], registry=into).labels(__version__).set(1)
        into.register(Volumes())
        self.mounts = Counter("mfcp_mounts_total", "FUSE file systems mounted.", registry=into)
        self.recoveries = Counter("mfcp_recoveries_total", "Mounts in volumes whose previous FUSE program had died.", registry=into)
        self.unmounts = Counter("mfcp_unmounts_total", "FUSE file systems unmounted, by cause.", ["cause"], registry=into)
        self.refusals = Counter("mfcp_refused_requests_total", "Requests of pods that were refused, by reason.", ["reason"], registry=into)
        self.calls = Counter("mfcp_calls_total", "gRPC calls, by method and status code.", ["method", "code"], registry=into)
        text = "Internal errors of the driver; each is in its log with a traceback."
        self.internal_errors = Counter("mfcp_internal_errors_total", text, registry=into)
        self.durations = Histogram(
            "mfcp_operation_duration_seconds",
            "Duration in seconds of operations that succeeded, by operation.",
            ["operation"],
            buckets=_BUCKETS,
            registry=into,
        )
        # All series begin with 0: rate() over a series that began with its first event would miss that event.
        for end in End:
            self.unmounts.labels(end.value)
        for reason in Reason:
            self.refusals.labels(reason.value)
        for operation in Operation:
            self.durations.labels(operation.value)
        ProcessCollector(registry=into)


_instruments: _Instruments | None = None


def start(
    volumes_by_state: Callable[[], Mapping[str, int]],
    troubled_volumes: Callable[[], int],
    detached_mounts: Callable[[], int],
    device_mounts: Callable[[], int],
) -> None:
    """Count from now on. The functions are called when the metrics are read, and return numbers of volumes and of mounts."""
    global _instruments
    _instruments = _Instruments(volumes_by_state, troubled_volumes, detached_mounts, device_mounts)


def text() -> bytes:
    """Return all metrics in Prometheus' text format 0.0.4. Call start() before."""
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
