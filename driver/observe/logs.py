"""The log: one line an event on standard error. A line that concerns a volume names pod and volume."""

import json
import logging
import sys
import time
from functools import lru_cache

_ROOT = "mfcp"


class _Logger(logging.Logger):
    """Does not look for the line of source that a message comes from, which no format of ours has."""

    def findCaller(self, stack_info: bool = False, stacklevel: int = 1) -> tuple[str, int, str, str | None]:
        """Nowhere."""
        return "", 0, "", None


logging.setLoggerClass(_Logger)
log = logging.getLogger(_ROOT)
logging.setLoggerClass(logging.Logger)

_TEXT_MAX = 500  # characters
_LINES_MAX = 20
_LINES_SECONDS = 60.0


class VolumeLog:
    """Says of each line which pod and which volume it is about."""

    __slots__ = ("_few", "_pod", "_volume_id")  # each volume has one

    def __init__(self, pod: str, volume_id: str) -> None:
        self._pod = pod
        self._volume_id = volume_id
        self._few: dict[str, _Few] | None = None

    def debug(self, text: str) -> None:
        """What only whoever looks for a mistake of the driver wants to know."""
        self.say(logging.DEBUG, text)

    def info(self, text: str) -> None:
        """What happens to the volume."""
        self.say(logging.INFO, text)

    def warning(self, text: str) -> None:
        """What is wrong, and not the driver's fault."""
        self.say(logging.WARNING, text)

    def error(self, text: str) -> None:
        """What the driver should have done, and could not."""
        self.say(logging.ERROR, text)

    def refusal(self, text: str) -> None:
        """A warning about what the pod did, which it may do as often as it likes: only some of them are logged."""
        self._say_some("refusals", logging.WARNING, text)

    def activity(self, text: str) -> None:
        """The same for what is no mistake of the pod: that it mounts and unmounts."""
        self._say_some("mounts and unmounts", logging.INFO, text)

    def trouble(self, level: int, text: str) -> None:
        """The same for what begins to be wrong with the volume (troubles.py), which a pod may bring about."""
        self._say_some("troubles", level, text)

    def internal_error(self, text: str) -> None:
        """Log the exception that is being handled, with its traceback. Only some lines a minute: a pod may be able to cause it."""
        self._say_some("internal errors", logging.ERROR, text, with_traceback=True)

    def _say_some(self, what: str, level: int, text: str, with_traceback: bool = False) -> None:
        if self._few is None:
            self._few = {}
        if what not in self._few:
            self._few[what] = _Few(self, what)
        self._few[what].say(level, text, with_traceback)

    def say(self, level: int, text: str, with_traceback: bool = False) -> None:
        """A line of any level."""
        if log.isEnabledFor(level):
            log.log(level, text, exc_info=with_traceback, extra={"pod": shown(self._pod), "volume": shown(self._volume_id)})


class _Few:
    """Says so many lines a minute, and then how many more there were."""

    __slots__ = ("_said", "_since", "_to", "_what")

    def __init__(self, to: VolumeLog, what: str) -> None:
        self._to = to
        self._what = what
        self._said = 0
        self._since = 0.0

    def say(self, level: int, text: str, with_traceback: bool = False) -> None:
        """Log a line, or count it."""
        now = time.monotonic()
        if now - self._since > _LINES_SECONDS:
            if self._said > _LINES_MAX:
                self._to.say(level, f"{self._said - _LINES_MAX} more {self._what} were not logged")
            self._said, self._since = 0, now
        self._said += 1
        if self._said <= _LINES_MAX:
            self._to.say(level, text, with_traceback)


def shown(text: str, longest: int = _TEXT_MAX) -> str:
    """Text from outside as it may stand in a line: what is not printable is escaped, and what is long then is cut."""
    told = text[: longest + 1]
    if not told.isprintable():  # hardly ever, and a call for each character would cost more than the rest of a line
        told = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in told)
    return told if len(told) <= longest else f"{told[:longest]}..."


class _Text(logging.Formatter):
    """2026-01-31T12:00:00.000Z LEVEL pod=NAMESPACE/NAME volume=ID: MESSAGE

    Each record is one line of a readable length: much of what is logged is a pod's own text, in which there may be
    anything. (A traceback, which is the driver's, takes lines of its own.)
    """

    def format(self, record: logging.LogRecord) -> str:
        volume = getattr(record, "volume", None)
        place = "" if volume is None else f"pod={getattr(record, 'pod', '') or '-'} volume={volume}: "
        line = f"{_time(record)} {record.levelname} {place}{shown(record.getMessage())}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _Json(logging.Formatter):
    """One object a line; what is not ASCII is escaped, so that the encoding of the stream plays no part."""

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
    """Log to standard error: 0 warnings and errors, 1 to 5 what happens to volumes (klog's usual), 6 and more all of it.

    `form` is one of FORMATS. What Python's own modules have to say takes the same way.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FORMATS[form]())
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(logging.WARNING if verbosity <= 0 else logging.INFO if verbosity <= 5 else logging.DEBUG)
    logging.lastResort = handler
    # No line has them, and each would be asked for.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def _time(record: logging.LogRecord) -> str:
    """RFC 3339, UTC, with milliseconds."""
    return f"{_second(int(record.created))}.{int(record.msecs):03d}Z"


@lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
