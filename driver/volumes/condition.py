"""Examines volumes: says in a sentence what is wrong, and how full they are, for NodeGetVolumeStats and `status`."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from errno import ENOTCONN

from driver.blocking.processes import NotAsked
from driver.model import limits
from driver.model.state import End, Past, State
from driver.mounts import fusemount
from driver.observe.internalerror import report_internal_error
from driver.observe.logs import shown
from driver.volumes.volume import Volume

_INT64_MAX = (1 << 63) - 1
_WARNINGS_MAX = 5  # in one sentence: the text of mountOptions can cause thousands
_TEXT_MAX = 1000  # characters of the sentence: `status` prints those of all volumes of a node
_EXAMINED_AT_ONCE = limits.PROCESSES_FOR_USAGE  # more would wait for a process, and their conditions would say so
_EXAMINED_OF_A_POD = 2 * limits.PROCESSES_OF_A_POD


@dataclass(frozen=True)
class Amount:
    """Holds how much there is of something, as numbers that an int64 holds and that are not negative."""

    total: int
    available: int
    used: int


@dataclass(frozen=True)
class Usage:
    """Holds what statvfs(3) says about the file system at a target."""

    size: Amount
    inodes: Amount


@dataclass(frozen=True)
class Condition:
    """Says whether something is wrong with a volume, and what."""

    is_abnormal: bool
    text: str


NOTHING_KNOWN = Usage(Amount(0, 0, 0), Amount(0, 0, 0))


async def examine(volume: Volume) -> tuple[Condition, Usage | None]:
    """Return the condition of a volume, and its usage where its FUSE program reports it.

    Answers within limits.PROBE_WAIT, whatever the FUSE program does, and within twice that where another question waits or
    other programs keep all processes; it takes limits.PROCESS_WAIT more where the node has no process to ask in.
    """
    usage, silence = None, ""
    try:
        usage = await _usage(volume)
    except NotAsked as error:
        silence = f"its FUSE program was not asked: {error.strerror}"
    except TimeoutError:
        silence = f"the FUSE program does not answer within {limits.PROBE_WAIT:g} s: it hangs, or waits for something that does"
    except OSError as error:
        if error.errno == ENOTCONN:
            # A program that lives may answer ENOTCONN itself, when it has lost its server.
            silence = "the FUSE program answers that it is not connected" if volume.mounts.is_held else "the FUSE program has ended"
        elif error.filename == fusemount.ROOT:
            silence = f"its {fusemount.ROOT} cannot be used: {error.strerror}"
        # Other errors are an answer: a program need not know its usage.
    return _condition_of(volume, silence), usage


async def examine_all(volumes: Sequence[Volume]) -> list[Condition]:
    """Examine many volumes, some at once, and return their conditions within limits.STATUS_WAIT.

    What is not examined by then has a condition that says so.
    """
    few = asyncio.Semaphore(_EXAMINED_AT_ONCE)
    # A pod whose programs hang must not keep the other pods' volumes from being examined.
    few_of_pod: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(_EXAMINED_OF_A_POD))
    found: dict[int, Condition] = {}

    async def one(number: int, volume: Volume) -> None:
        async with few_of_pod[volume.publication.paths.owner], few:
            try:
                found[number], _ = await examine(volume)
            except Exception as error:  # one volume's failure must not hide the conditions of the others
                report_internal_error("examining the volume", volume.log)
                text = f"its condition is not known: the driver failed to examine it: {error!r}"
                found[number] = Condition(True, shown(text))

    try:
        async with asyncio.timeout(limits.STATUS_WAIT):
            await asyncio.gather(*(one(number, volume) for number, volume in enumerate(volumes)))
    except TimeoutError:
        pass
    late = f"its FUSE program was not asked: examining the volumes of this node took longer than {limits.STATUS_WAIT:g} s"
    return [found[number] if number in found else _condition_of(volume, late) for number, volume in enumerate(volumes)]


def _condition_of(volume: Volume, silence: str) -> Condition:
    warnings = [*volume.troubles.texts, *volume.policy.warnings]
    return condition(volume.mounts.state, volume.mounts.past, silence, volume.is_closing, volume.mounts.count_detached(), warnings)


def condition(state: State, past: Past, silence: str, is_closing: bool, detached: int, warnings: Sequence[str]) -> Condition:
    """Compose a volume's condition. `silence` says why its file system did not answer, "" where it did.

    `detached` is how many file systems were unmounted lazily and are still in use, which is nothing abnormal.
    """
    since = past.since_text
    if state is State.WAITING:
        text = f"waiting since {since}: {_WAITING[past.last_end]}"
    elif state is State.DEAD:
        text = f"dead since {since}: the FUSE program has ended, and its mount is not detached yet"
    elif silence:
        text = f"mounted since {since}, but {silence}"
    else:
        text = f"mounted since {since}"
    if detached:
        text += f"; file systems that were unmounted lazily and are still in use: {detached}"
    if is_closing:
        text = f"being unpublished; {text}"
    reported = [shown(warning) for warning in warnings[:_WARNINGS_MAX]]
    if len(warnings) > _WARNINGS_MAX:
        reported.append(f"{len(warnings) - _WARNINGS_MAX} more, see the log")
    is_normal = state is State.MOUNTED and not silence and not is_closing and not warnings
    return Condition(not is_normal, shown("; ".join([text, *reported]), _TEXT_MAX))


_WAITING = {
    None: "no FUSE program has mounted it yet",
    End.DIED: "its FUSE program has ended without unmounting, and none has mounted it again",
    End.ASKED: "it was unmounted, and not mounted again",
    End.UNPUBLISHED: "it was unmounted to be unpublished",
}


async def _usage(volume: Volume) -> Usage:
    """Return the usage. Raises OSError: TimeoutError where the FUSE program does not answer, NotAsked where it was not asked."""
    block, blocks, free, available, files, free_files, available_files = await volume.mounts.usage()
    return Usage(
        _amount(blocks * block, available * block, (blocks - free) * block),
        _amount(files, available_files, files - free_files),
    )


def _amount(total: int, available: int, used: int) -> Amount:
    # The FUSE program can answer any numbers.
    total, available, used = (max(0, min(number, _INT64_MAX)) for number in (total, available, used))
    return Amount(total, available, used)
