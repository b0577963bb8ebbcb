"""Reports internal errors, which are mistakes in the driver's own code: each is logged with its traceback, and counted."""

import asyncio
from typing import Any

from driver.observe import metrics
from driver.observe.logs import VolumeLog, log


def report_internal_error(activity: str, volume_log: VolumeLog | None = None) -> None:
    """Log the exception that is being handled, with its traceback, and count it. Call it in an `except` block.

    `activity` completes the sentence "internal error while ...", for example "serving a request". `volume_log` is the log
    of the volume that the error happened to; without it the line names no volume.
    """
    metrics.internal_error()
    text = f"internal error while {activity}; please report it with the traceback"
    if volume_log is None:
        log.error(text, exc_info=True)
    else:
        volume_log.internal_error(text)


def handle_loop_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Report an exception that no task or callback of the event loop has handled. Pass it to loop.set_exception_handler()."""
    error = context.get("exception")
    if isinstance(error, OSError):  # the node or a pod can cause one, so it is not an internal error
        log.error(f"{context['message']}: {error}")
        return
    try:
        raise error if isinstance(error, BaseException) else RuntimeError(context["message"])
    except BaseException:
        report_internal_error(f"working in the event loop ({context['message']})")
