"""How a volume is, as a sentence for a person, and how full it is: for NodeGetVolumeStats and `status`."""

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from errno import ENOTCONN

from driver import fusemount
from driver.history import Past
from driver.logs import shown
from driver.metrics import End
from driver.processes import NotAsked
from driver.targetmount import State
from driver.volume import Volume
from fusermount3_proxy import limits

_INT64_MAX = (1 << 63) - 1
_TOLD_MAX = 5  # warnings and troubles in one sentence: the text of mountOptions could hold thousands
_TEXT_MAX = 1000  # characters of the sentence: `status` shows those of all volumes of a node
_EXAMINED_AT_ONCE = limits.PROCESSES_THAT_ASK  # more would wait for a process, and be told that others do not answer


@dataclass(frozen=True)
class Amount:
    """How much there is of something; never negative, and at most what an int64 holds."""

    total: int
    available: int
    used: int


@dataclass(frozen=True)
class Usage:
    """What statvfs(3) says of the file system at a target."""

    size: Amount
    inodes: Amount


@dataclass(frozen=True)
class Condition:
    """Whether something is not as it should be, and what."""

    is_abnormal: bool
    text: str


NOTHING_KNOWN = Usage(Amount(0, 0, 0), Amount(0, 0, 0))


async def examine(volume: Volume) -> tuple[Condition, Usage | None]:
    """The condition of a volume, and its usage where it tells it.

    Answers within limits.PROBE_WAIT, whatever its FUSE program does, and within twice that where another question waits or
    other programs keep all processes; it takes limits.WORKER_WAIT more where the node has no process to ask in.
    """
    usage, silence = None, ""
    try:
        usage = await _usage(volume)
    except NotAsked as error:
        silence = f"its FUSE program was not asked: {error.strerror}"
    except TimeoutError:
        silence = f"the FUSE program does not answer within {limits.PROBE_WAIT:g} s: it hangs, or waits for something that does"
    except OSError as error:
        # A program need not know its usage, and says so by an error: it answers.
        if error.errno == ENOTCONN:
            # It may be its own word, of a server that it has lost.
            silence = "the FUSE program answers that it is not connected" if volume.is_held else "the FUSE program has gone"
    warnings = [*volume.troubles.texts, *volume.policy.warnings]
    return condition(volume.state, volume.history.past, silence, volume.is_closing, warnings), usage


async def examine_all(volumes: Iterable[Volume]) -> list[tuple[Condition, Usage | None]]:
    """The same of many, some at once."""
    few = asyncio.Semaphore(_EXAMINED_AT_ONCE)

    async def one(volume: Volume) -> tuple[Condition, Usage | None]:
        async with few:
            try:
                return await examine(volume)
            except Exception as error:  # whatever it is, it must not cost the others
                text = shown(f"its condition cannot be told: {error!r}")
                volume.log.error(text)
                return Condition(True, text), None

    return list(await asyncio.gather(*(one(volume) for volume in volumes)))


def condition(state: State, past: Past, silence: str, is_closing: bool, warnings: Sequence[str]) -> Condition:
    """What to say of a volume; `silence` is why its file system does not answer, "" where it does."""
    since = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(past.since))
    if state is State.WAITING:
        text = f"waiting since {since}: {_WAITING[past.last_end]}"
    elif state is State.DEAD:
        text = f"dead since {since}: the FUSE program has gone, and its mount could not be taken off yet"
    elif silence:
        text = f"mounted since {since}, but {silence}"
    else:
        text = f"mounted since {since}"
    if is_closing:
        text = f"being unpublished; {text}"
    told = [shown(warning) for warning in warnings[:_TOLD_MAX]]
    if len(warnings) > _TOLD_MAX:
        told.append(f"{len(warnings) - _TOLD_MAX} more, see the log")
    is_normal = state is State.MOUNTED and not silence and not is_closing and not warnings
    return Condition(not is_normal, shown("; ".join([text, *told]), _TEXT_MAX))


_WAITING = {
    None: "no FUSE program has mounted it yet",
    End.DIED: "its FUSE program has gone without unmounting, and none has mounted it again",
    End.ASKED: "it was unmounted, and not mounted again",
    End.UNPUBLISHED: "it was unmounted to be unpublished",
}


async def _usage(volume: Volume) -> Usage:
    """Raises OSError; NotAsked, and TimeoutError where the FUSE program does not answer."""
    said = None
    # The placeholder is the driver's own, and needs no process that can be left behind. Not while a program has mounted: to
    # look what is at the target would make that mount busy for whoever unmounts it just now.
    if volume.mount_record is None and volume.placeholder is not None:
        said = fusemount.placeholders_usage(volume.target, volume.placeholder)
    if said is None:
        said = await volume.examiner.call(volume.publication.paths.owner, limits.PROBE_WAIT, fusemount.usage, volume.target)
    block, blocks, free, available, files, free_files, available_files = said
    return Usage(
        _amount(blocks * block, available * block, (blocks - free) * block),
        _amount(files, available_files, files - free_files),
    )


def _amount(total: int, available: int, used: int) -> Amount:
    # All of it is the FUSE program's word.
    total, available, used = (max(0, min(number, _INT64_MAX)) for number in (total, available, used))
    return Amount(total, available, used)
