"""Writes the driver's log to standard error, one line for each event. A line about a volume names its pod and the volume."""

import json
import logging
import sys
import time
from functools import lru_cache

_ROOT = "mfcp"


class _Logger(logging.Logger):
    """Saves the search for the source line that logs a message, because neither format of the log prints it."""

    def findCaller(self, stack_info: bool = False, stacklevel: int = 1) -> tuple[str, int, str, str | None]:
        """Return an empty source line."""
        return "", 0, "", None


logging.setLoggerClass(_Logger)
log = logging.getLogger(_ROOT)
logging.setLoggerClass(logging.Logger)

_TEXT_MAX = 500  # characters
_LINES_MAX = 20  # of each kind that a pod can cause, for each volume, in _LINES_SECONDS
_LINES_SECONDS = 60.0


class VolumeLog:
    """Logs lines about one volume. Each line names the pod and the volume.

    A pod can cause lines of some kinds as often as it likes. Of each of these kinds, 20 lines a minute are logged.
    """

    __slots__ = ("_limited", "_volume_id", "pod")  # each volume has one

    def __init__(self, pod: str, volume_id: str) -> None:
        self.pod = pod
        self._volume_id = volume_id
        self._limited: dict[str, _LimitedLines] | None = None

    def debug(self, text: str) -> None:
        """Log what helps only to find a mistake in the driver."""
        self.write(logging.DEBUG, text)

    def info(self, text: str) -> None:
        """Log what happens to the volume."""
        self.write(logging.INFO, text)

    def warning(self, text: str) -> None:
        """Log what is wrong and is not the driver's fault."""
        self.write(logging.WARNING, text)

    def error(self, text: str) -> None:
        """Log what the driver should have done, and could not do."""
        self.write(logging.ERROR, text)

    def refusal(self, text: str, level: int = logging.WARNING) -> None:
        """Log something that the pod did and should not do, or need not do. The number of these lines is limited."""
        self._write_limited("refusals", level, text)

    def activity(self, text: str) -> None:
        """Log what a pod does by right, such as mounting and unmounting. The number of these lines is limited."""
        self._write_limited("mounts and unmounts", logging.INFO, text)

    def trouble(self, level: int, text: str) -> None:
        """Log something that has begun to be wrong with the volume (troubles.py). The number of these lines is limited."""
        self._write_limited("troubles", level, text)

    def internal_error(self, text: str) -> None:
        """Log the exception that is being handled, with its traceback. The number of these lines is limited."""
        self._write_limited("internal errors", logging.ERROR, text, with_traceback=True)

    def _write_limited(self, kind: str, level: int, text: str, with_traceback: bool = False) -> None:
        if self._limited is None:
            self._limited = {}
        if kind not in self._limited:
            self._limited[kind] = _LimitedLines(self, kind)
        self._limited[kind].write(level, text, with_traceback)

    def write(self, level: int, text: str, with_traceback: bool = False) -> None:
        """Log a line of any level."""
        if log.isEnabledFor(level):
            log.log(level, text, exc_info=with_traceback, extra={"pod": shown(self.pod), "volume": shown(self._volume_id)})


class _LimitedLines:
    """Logs so many lines of one kind a minute, and reports afterwards how many were left out."""

    __slots__ = ("_kind", "_number", "_since", "_volume_log")

    def __init__(self, volume_log: VolumeLog, kind: str) -> None:
        self._volume_log = volume_log
        self._kind = kind
        self._number = 0
        self._since = 0.0

    def write(self, level: int, text: str, with_traceback: bool = False) -> None:
        """Log a line, or only count it."""
        now = time.monotonic()
        if now - self._since > _LINES_SECONDS:
            if self._number > _LINES_MAX:
                self._volume_log.write(level, f"{self._number - _LINES_MAX} more {self._kind} were not logged")
            self._number, self._since = 0, now
        self._number += 1
        if self._number <= _LINES_MAX:
            self._volume_log.write(level, text, with_traceback)


def shown(text: str, longest: int = _TEXT_MAX) -> str:
    """Return text from outside the driver as it may be printed: characters that are not printable escaped, and not too long."""
    printable = text[: longest + 1]
    if not printable.isprintable():
        printable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in printable)
    return printable if len(printable) <= longest else f"{printable[:longest]}..."


class _Text(logging.Formatter):
    """Formats a line as 2026-01-31T12:00:00.000Z LEVEL pod=NAMESPACE/NAME volume=ID: MESSAGE.

    The message is escaped and cut, because it may hold any text of a pod's. A traceback is the driver's own text, and follows
    in lines of its own.
    """

    def format(self, record: logging.LogRecord) -> str:
        volume = getattr(record, "volume", None)
        place = "" if volume is None else f"pod={getattr(record, 'pod', '') or '-'} volume={volume}: "
        line = f"{_time(record)} {record.levelname} {place}{shown(record.getMessage())}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _Json(logging.Formatter):
    """Formats each line as a JSON object. Characters that are not ASCII are escaped, so any encoding of the stream will do."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {"time": _time(record), "level": record.levelname.lower(), "message": shown(record.getMessage())}
        for name in ("pod", "volume"):
            if value := getattr(record, name, ""):
                entry[name] = value
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


FORMATS: dict[str, type[logging.Formatter]] = {"text": _Text, "json": _Json}


def configure(verbosity: int, form: str = "text") -> None:
    """Log to standard error, including what Python's own modules log.

    `verbosity` is klog's: 0 logs warnings and errors, 1 to 5 also what happens to volumes, 6 and more everything. `form` is one
    of FORMATS.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FORMATS[form]())
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(logging.WARNING if verbosity <= 0 else logging.INFO if verbosity <= 5 else logging.DEBUG)
    logging.lastResort = handler
    # Neither format prints these, so the logging module need not find them out for each line.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def _time(record: logging.LogRecord) -> str:
    """Return the time of a log record as RFC 3339 writes it, in UTC with milliseconds."""
    return f"{_second(int(record.created))}.{int(record.msecs):03d}Z"


@lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
