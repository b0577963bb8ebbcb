"""List the differences from fusermount3 that concern containers with a fuse device alone (differences.py)."""

import os
import re
from dataclasses import replace

from cases import Before, Case, mounting
from differences import DEVICE, Ask, difference, options_of, printed, refused, with_options
from sides import Line, Outcome

_NAME_MAX = 255  # bytes, fsconfig(2)

# device_sides.furnish() makes these.
_RAMFS, _READ_ONLY, _IN_DEV, _SHARED, _FOREIGN = b"ramfs", b"read-only/x", b"/dev/shm/mine", b"shared/x", b"foreign"


def _refused_there(case: Case, theirs: Outcome, part: str, reason: str) -> tuple[Case, Outcome] | None:
    """Return that it is refused where fusermount3 has mounted at a path with `part` in it."""
    path = theirs.lines[-1].path if theirs.lines else ""
    if part not in path:
        return None
    return case, refused(case, theirs, f"mounting on {path} is forbidden: {reason}")


@difference("forbidden-places", Case((b"--", _IN_DEV), mountpoint=_IN_DEV), way=DEVICE)
def _forbidden_places(case: Case, theirs: Outcome, ask: Ask) -> tuple[Case, Outcome] | None:
    return _refused_there(case, theirs, "/dev/shm/", "it is below /dev")


@difference("shared-mounts", Case((b"--", _SHARED), mountpoint=_SHARED), way=DEVICE)
def _shared_mounts(case: Case, theirs: Outcome, ask: Ask) -> tuple[Case, Outcome] | None:
    return _refused_there(case, theirs, "/user/shared", "the mount would appear outside of the container (shared propagation)")


@difference("foreign-fuse", Case((b"--", _FOREIGN), mountpoint=_FOREIGN), way=DEVICE)
def _foreign_fuse(case: Case, theirs: Outcome, ask: Ask) -> tuple[Case, Outcome] | None:
    return _refused_there(case, theirs, "/user/foreign", "it is on a FUSE file system that this container has not mounted here")


@difference("later-file-systems", Case((b"--", _RAMFS), mountpoint=_RAMFS), version="3.14", way=DEVICE)
def _later_file_systems(case: Case, theirs: Outcome, ask: Ask) -> tuple[Case, Outcome] | None:
    if not printed(theirs, "mounting over filesystem type 0x858458f6 is forbidden"):
        return None
    # What it does on one that it accepts, at another path.
    asked, path = ask(case.at(b"file" if b"file" in case.mountpoint else b"m")), case.mountpoint.rstrip(b"/.").decode()
    there = [replace(line, path=f"{line.path.rpartition('/')[0]}/{path.removeprefix('./').lstrip('/')}") for line in asked.lines]
    return case, replace(asked, lines=tuple(there))


@difference("read-only", Case((b"--", _READ_ONLY), mountpoint=_READ_ONLY), way=DEVICE)
def _read_only(case: Case, theirs: Outcome, ask: Ask) -> tuple[Case, Outcome] | None:
    pattern = "(?:user has no write access to mountpoint|failed to open) (.*/user/read-only[^\n]*?)(?:: Read-only file system)?"
    found = printed(theirs, pattern)
    if found is None:
        return None
    asked = ask(case.at(b"file" if b"file" in case.mountpoint else b"m"))
    return case, replace(asked, lines=tuple(replace(line, path=os.fsdecode(found[1])) for line in asked.lines))


@difference("own-file-system", Case((b"--", b"m"), before=Before.CLOSED), Case((b"-u", b"m/."), before=Before.CLOSED), way=DEVICE)
def _own_file_system(case: Case, theirs: Outcome, ask: Ask) -> tuple[Case, Outcome] | None:
    if case.before is not Before.CLOSED:
        return None
    asked = ask(replace(case, before=Before.MOUNTED))
    first = [replace(line, super_options=line.super_options - {"allow_other"}) for line in asked.lines[:1]]
    return case, replace(asked, lines=(*first, *asked.lines[1:]))


@difference("long-names", mounting(b"fsname=" + b"x" * 300), mounting(b"subtype=" + b"x" * 300), way=DEVICE)
def _long_names(case: Case, theirs: Outcome, ask: Ask) -> tuple[Case, Outcome] | None:
    options = options_of(case)
    if printed(theirs, "mount failed: Invalid argument") and options is not None:
        short = with_options(case, [_cut_option(option) for option in options])
        return None if short == case else (short, ask(short))
    if not theirs.lines:
        return None
    made = theirs.lines[-1]
    if len(made.fstype.encode("utf-8", "surrogateescape")) - len("fuse.") > _NAME_MAX:
        return case, refused(case, theirs, "mount failed: Invalid argument")
    return case, replace(theirs, lines=(*theirs.lines[:-1], _cut(made)), left=tuple(map(_cut, theirs.left)))


def _cut_option(option: bytes) -> bytes:
    """Cut a source's name to what the kernel takes."""
    name, _, text = option.partition(b"=")
    if name != b"fsname":
        return option
    plain = re.sub(rb"\\(.)", rb"\1", text, flags=re.DOTALL)[:_NAME_MAX]
    return b"fsname=" + re.sub(rb"[\\,]", rb"\\\g<0>", plain)


def _cut(line: Line) -> Line:
    source = line.source.encode("utf-8", "surrogateescape")[:_NAME_MAX]
    return replace(line, source=source.decode("utf-8", "surrogateescape"))
