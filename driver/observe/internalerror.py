"""Reports a mistake of the driver's own: logged with a traceback, counted, and never blamed on a pod."""

import asyncio
from typing import Any

from driver.observe import metrics
from driver.observe.logs import VolumeLog, log


def report_internal_error(doing: str, volume_log: VolumeLog | None = None) -> None:
    """Log the exception that is being handled, with its traceback, and count it. Call it in an `except` block.

    `doing` completes the sentence "internal error while ...", for example "serving a request". `volume_log` is the log
    of the volume that it happened to; without one the line names no volume.
    """
    metrics.internal_error()
    text = f"internal error while {doing}; please report it with the traceback"
    if volume_log is None:
        log.error(text, exc_info=True)
    else:
        volume_log.internal_error(text)


def handle_loop_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Report what nobody handled in a task or callback of the event loop; for loop.set_exception_handler()."""
    error = context.get("exception")
    if isinstance(error, OSError):  # the node or a pod can cause it
        log.error(f"{context['message']}: {error}")
        return
    try:
        raise error if isinstance(error, BaseException) else RuntimeError(context["message"])
    except BaseException:
        report_internal_error(f"working in the event loop ({context['message']})")
