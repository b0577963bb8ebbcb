"""List the intended differences from fusermount3, which are those of docs/compatibility.md, and what each of them explains.

Each is a function that takes a case and what fusermount3 did, and returns what ours has to do instead. Where ours goes on
after what stopped fusermount3, fusermount3 is asked again about a case without that obstacle. None means that the difference
does not show in this case.
"""

import ctypes
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from errno import EBADF, ENOTSOCK

from cases import GOOD_CONF, Before, Case, mounting
from harness.programs import REPOSITORY
from launcher import COMM
from sides import Ended, Line, Outcome

from fusermount3_proxy import commandline
from fusermount3_proxy.commandline import CommandLineError
from fusermount3_proxy.wire import protocol

TABLE = REPOSITORY / "docs" / "compatibility.md"
HEADING = "## Differences from fusermount3"

Ask = Callable[[Case], Outcome]
Explain = Callable[[Case, Outcome, Ask], tuple[Case, Outcome] | None]

_NUMBER = f"{COMM}".encode()


@dataclass(frozen=True)
class Difference:
    """Represents one row of the table, with cases that show it; each shows with versions of fusermount3 that begin with `version`."""

    key: str
    explain: Explain
    examples: tuple[tuple[str, Case], ...]
    way: str


VOLUME, DEVICE, BOTH = "volume", "device", "both"  # the ways to use the driver

DIFFERENCES: dict[str, Difference] = {}


def differences_of(way: str) -> dict[str, Difference]:
    """Return the differences that concern one way."""
    return {key: each for key, each in DIFFERENCES.items() if each.way in (way, BOTH)}


def rows_of_table() -> list[tuple[str, str]]:
    """Return the key and the way of each row."""
    section = TABLE.read_text().partition(f"{HEADING}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([^`]*)` \| (\w+) \|", section, re.MULTILINE)


def difference(key: str, *examples: Case, version: str = "3.", way: str = BOTH) -> Callable[[Explain], Explain]:
    """Register a function that explains the difference `key`."""

    def add(explain: Explain) -> Explain:
        before = DIFFERENCES[key].examples if key in DIFFERENCES else ()
        DIFFERENCES[key] = Difference(key, explain, before + tuple((version, example) for example in examples), way)
        return explain

    return add


def printed(outcome: Outcome, *patterns: str) -> re.Match[bytes] | None:
    """Match its last message with one of the patterns; what the message quotes may contain newlines."""
    alternatives = "|".join(f"(?:{pattern})" for pattern in patterns)
    return re.search(rf"(?:\A|\n)(?:{alternatives})\n\Z".encode(), outcome.ended.err, re.DOTALL)


def refused(case: Case, theirs: Outcome, text: str) -> Outcome:
    """Return the outcome that it ends with this text after its warnings, and nothing new is mounted."""
    warnings = b"".join(re.findall(rb"(?m)^(?:unsafe option|note:) [^\n]*\n", theirs.ended.err))
    old = theirs.lines[:0] if case.before is Before.NOTHING else theirs.lines[:1]
    return Outcome(Ended(1, b"", warnings + text.encode("latin-1") + b"\n"), lines=old)


def _unmounts(case: Case) -> bool:
    try:
        return commandline.parse([os.fsdecode(argument) for argument in case.arguments]).unmount
    except CommandLineError:
        return False


def _every_line(theirs: Outcome, change: Callable[[Line], Line]) -> Outcome:
    return replace(theirs, lines=tuple(map(change, theirs.lines)), left=tuple(map(change, theirs.left)))


# ---- the command line


@difference("later-options", Case((b"--options=ro", b"m")), Case((b"--comm-fd=77", b"m"), comm_fd=None), version="3.14")
@difference("later-options", Case((b"--=x", b"m")))
def _later_options(case: Case, theirs: Outcome, ask: Ask) -> tuple[Case, Outcome] | None:
    if found := printed(theirs, r"option '--=[^\n]*' is ambiguous; possibilities: [^\n]*"):
        known = found[0].strip(b"\n").partition(b" '--options'")[0]
        longer = known + b" '--options' '--auto-unmount' '--sync-init' '--comm-fd'\n"
        return case, replace(theirs, ended=Ended(1, b"", longer))
    if printed(theirs, "unrecognized option '--(options|comm-fd)=.*'"):
        name, _, value = case.arguments[0].partition(b"=")
        rest = case.arguments[1:]
        case = replace(case, arguments=(b"-o", value, *rest)) if name == b"--options" else replace(case, arguments=rest, comm_fd=value)
        return case, ask(case)
    return None


# ---- what is mounted


@difference("allow-other", mounting(b"default_permissions"), way=VOLUME)
def _allow_other(case: Case, theirs: Outcome, ask: Ask) -> tuple[Case, Outcome]:
    return case, _every_line(theirs, lambda line: replace(line, super_options=line.super_options | {"allow_other"}))


@difference("default-permissions", mounting(b"allow_other"), way=VOLUME)
def _default_permissions(case: Case, theirs: Outcome, ask: Ask) -> tuple[Case, Outcome]:
    return case, _every_line(theirs, lambda line: replace(line, super_options=line.super_options | {"default_permissions"}))


@difference("file-mountpoint", Case((b"--", b"file"), mountpoint=b"file"), way=VOLUME)
def _file_mountpoint(case: Case, theirs: Outcome, ask: Ask) -> tuple[Case, Outcome] | None:
    if all(line.is_folder for line in theirs.lines):
        return None
    return case, refused(case, theirs, "the mountpoint is a file, and a volume is a directory: mount on a directory")


@difference("one-mount", Case((b"--", b"m"), before=Before.MOUNTED), Case((b"--", b"m2"), before=Before.MOUNTED), way=VOLUME)
def _one_mount(case: Case, theirs: Outcome, ask: Ask) -> tuple[Case, Outcome] | None:
    if case.before not in (Before.MOUNTED, Before.BUSY):
        return None
    # Over a file system that lets no other user in, ours cannot mount; at another place it can.
    if len(theirs.lines) == 1 and printed(theirs, "failed to access mountpoint .*: Permission denied"):
        at_another = case.at(b"m2")
        return at_another, ask(at_another)
    # Ours asks the driver before it mounts; the kernel looks at names first.
    if len(theirs.lines) > 1 or printed(theirs, "mount failed: Invalid argument"):
        return case, refused(case, theirs, "mount failed: Device or resource busy")
    return None


@difference("dead-mount", Case((b"--", b"m"), before=Before.DEAD), Case((b"-u", b"m/."), before=Before.DEAD, mountpoint=b"m/."))
def _dead_mount(case: Case, theirs: Outcome, ask: Ask) -> tuple[Case, Outcome] | None:
    if case.before is not Before.DEAD:
        return None
    asked = ask(replace(case, before=Before.NOTHING))
    loud = ask(replace(case, before=Before.NOTHING, arguments=(b"-u", b"--", case.mountpoint)))
    if asked.ended.err in (b"", loud.ended.err) and printed(loud, "entry for [^\n]*/user/m not found in [^\n]*") and _unmounts(case):
        asked = replace(asked, ended=Ended(0, b"", b""))  # the first unmount, by the mount's path
    # What comes after a mount is not compared where something was mounted before.
    return case, replace(asked, after=None, left=())


@difference("mount-table", mounting(b"fsname=" + b"x" * 4090))
def _mount_table(case: Case, theirs: Outcome, ask: Ask) -> tuple[Case, Outcome] | None:
    is_long = any(len(line.source) > 3800 for line in theirs.left)
    if is_long and theirs.after and theirs.after.err.startswith(b"entry for "):
        return case, replace(theirs, after=Ended(0, b"", b""), left=())
    return None


@difference("mounted-elsewhere", Case((b"-u", b"m/."), before=Before.MOUNTED, mountpoint=b"m/."), way=VOLUME)
def _mounted_elsewhere(case: Case, theirs: Outcome, ask: Ask) -> tuple[Case, Outcome] | None:
    # The path leads through the mount, which lets no other user in. For ours the path leads through the plain folder.
    if case.before is Before.NOTHING or not printed(theirs, "bad mount point .*: Permission denied"):
        return None
    case = case.at(b"." if case.mountpoint.endswith(b"..") else b"m")
    return case, ask(case)


# ---- who may mount where

_NOT_HERE = (
    "user has no write access to mountpoint .*",
    "mountpoint .* not owned by user",
    "mountpoint .* is not a directory or a regular file",
    "mounting over filesystem type 0x[0-9a-f]+ is forbidden",
    "failed to chdir to mountpoint: .*",
    "failed to open .*: (?:Permission denied|Read-only file system)",
)


@difference(
    "any-mountpoint",
    *(
        Case((b"--", mountpoint), mountpoint=mountpoint)
        for mountpoint in (b"readonly", b"sticky", b"locked", b"fifo", b"readonly-file", b"/proc")
    ),
    way=VOLUME,
)
def _any_mountpoint(case: Case, theirs: Outcome, ask: Ask) -> tuple[Case, Outcome] | None:
    if case.mountpoint == b"m2" or printed(theirs, "failed to open /dev/fuse: .*") or not printed(theirs, *_NOT_HERE):
        return None
    is_file = case.mountpoint.rstrip(b"/").rpartition(b"/")[2] == b"readonly-file"
    case = case.at(b"file" if is_file else b"m2")
    return case, ask(case)


@difference("search-permission", Case((b"--", b"locked/.."), mountpoint=b"locked/.."))
def _search_permission(case: Case, theirs: Outcome, ask: Ask) -> tuple[Case, Outcome] | None:
    if not re.match(rb"(?:\./+)*(?:locked|unsearchable|nobody|not-searchable)/+\.\.", case.mountpoint):
        return None
    return case, Outcome(Ended(1, b"", b"bad mount point %s: Permission denied\n" % case.mountpoint))


@difference("no-device", mounting(b"", device_mode=0o600))
def _no_device(case: Case, theirs: Outcome, ask: Ask) -> tuple[Case, Outcome] | None:
    if case.device_mode == 0o666 or not printed(theirs, "failed to open /dev/fuse: Permission denied"):
        return None
    case = replace(case, device_mode=0o666)
    return case, ask(case)


@difference(
    "fuse-conf", mounting(b"allow_other", conf=b""), mounting(b"", conf=b"mount_max = 0\n"), mounting(b"", conf=GOOD_CONF + b"nonsense\n")
)
def _fuse_conf(case: Case, theirs: Outcome, ask: Ask) -> tuple[Case, Outcome] | None:
    if case.conf == GOOD_CONF:
        return None
    case = replace(case, conf=GOOD_CONF)
    return case, ask(case)


# ---- the text of -o

_LATER_FLAGS = {b"diratime", b"nodiratime", b"lazytime", b"nolazytime", b"relatime", b"norelatime", b"symfollow", b"nosymfollow"}
_STRICT = {b"strictatime": True, b"nostrictatime": False}
# A backslash has a meaning only in the two names.
_OPTION = re.compile(rb"(?:fsname|subtype)=(?:\\.|[^,\\]|\\\Z)*|[^,]*", re.DOTALL)


def options_of(case: Case) -> list[bytes] | None:
    """Return the options of a case of mounting()."""
    if case.arguments[:1] != (b"-o",):
        return None
    text, found, at = case.arguments[1], [], 0
    while at < len(text):
        match = _OPTION.match(text, at)
        assert match is not None
        found.append(match[0])
        at = match.end() + 1
    return found


def with_options(case: Case, options: list[bytes]) -> Case:
    text = b",".join(options)
    if options and not options[-1]:
        text += b","  # the last comma ends the option before it, and begins none
    return replace(case, arguments=(b"-o", text, *case.arguments[2:]))


@difference("later-mount-options", mounting(b"nodiratime,nosymfollow,lazytime,ro"), mounting(b"strictatime,x-a=b"), version="3.14")
def _later_mount_options(case: Case, theirs: Outcome, ask: Ask) -> tuple[Case, Outcome] | None:
    found = printed(theirs, "unknown option '(.*)'")
    options = options_of(case)
    if found is None or options is None or not _is_later(found[1]):
        return None
    without = with_options(case, [option for option in options if not _is_later(option)])
    asked = ask(without)
    old = 0 if case.before is Before.NOTHING else 1
    return without, replace(asked, lines=asked.lines[:old] + tuple(_with_later_flags(line, options) for line in asked.lines[old:]))


def _is_later(option: bytes) -> bool:
    return option in _LATER_FLAGS or option in _STRICT or option.startswith(b"x-")


def _with_later_flags(line: Line, options: list[bytes]) -> Line:
    on = {}
    for option in options:
        if option in _LATER_FLAGS or option in _STRICT:
            name = option.decode()
            kind = re.sub("^no|^", "", name).removeprefix("no")
            on[kind] = option
    shown, super_shown = set(line.options), set(line.super_options)
    if on.get("diratime") == b"nodiratime":
        shown.add("nodiratime")
    if on.get("symfollow") == b"nosymfollow":
        shown.add("nosymfollow")
    if on.get("lazytime") == b"lazytime":
        super_shown.add("lazytime")
    if on.get("strictatime") == b"strictatime":
        shown -= {"relatime", "noatime"}
    return replace(line, options=frozenset(shown), super_options=frozenset(super_shown))


@difference("options-in-names", mounting(b"fsname=a\\,x-b,ro"), version="3.17")
def _options_in_names(case: Case, theirs: Outcome, ask: Ask) -> tuple[Case, Outcome] | None:
    options = options_of(case)
    if options is None or not any(b"\\,x-" in option for option in options):
        return None
    case = with_options(case, [option.replace(b"\\,x-", b"\\,\x01-") for option in options])
    # mountinfo escapes neither of them.
    named = _every_line(
        ask(case), lambda line: replace(line, source=line.source.replace(",\x01-", ",x-"), fstype=line.fstype.replace(",\x01-", ",x-"))
    )
    return case, named


@difference("empty-options", mounting(b",ro"), mounting(b"x-a,,ro"), version="3.17")
def _empty_options(case: Case, theirs: Outcome, ask: Ask) -> tuple[Case, Outcome] | None:
    first = next((option for option in options_of(case) or [] if not option.startswith(b"x-")), None)
    return (case, refused(case, theirs, "unknown option ''")) if first == b"" else None


@difference("repeated-options", mounting(b"allow_other," * 400))
def _repeated_options(case: Case, theirs: Outcome, ask: Ask) -> tuple[Case, Outcome] | None:
    options = options_of(case)
    if options is None or not theirs.ended.err.endswith(
        b"mount options too long\nmount options too long\nmount failed: Invalid argument\n"
    ):
        return None
    once = with_options(case, list(dict.fromkeys(options)))
    return None if once == case else (once, ask(once))


@difference("long-requests", mounting(b"ro," * 40000), mounting(b"fsname=" + b"x" * 70000), mounting(b"fsname=" + b"\xe9" * 16000))
def _long_requests(case: Case, theirs: Outcome, ask: Ask) -> tuple[Case, Outcome] | None:
    options = options_of(case)
    if options is None or not (theirs.fds or printed(theirs, "mount failed: (?:Invalid argument|Device or resource busy)")):
        return None
    text = case.arguments[1]
    if len(text) > protocol.OPTIONS_MAX:
        message = f"the text of the options has {len(text)} bytes, at most {protocol.OPTIONS_MAX} are allowed"
    elif len(json.dumps(text.decode("latin-1"))) > 65000:
        message = "mountpoint and options are too long: the request has N bytes, at most 65536 can be sent"
    else:
        return None
    return case, refused(case, theirs, message)


# ---- the comm fd


@difference("socket-first", mounting(b"max_read=x", comm="tcp"))
def _socket_first(case: Case, theirs: Outcome, ask: Ask) -> tuple[Case, Outcome] | None:
    if not options_of(case) or not printed(theirs, "mount failed: Invalid argument"):
        return None
    bare = with_options(case, [])
    outcome = ask(bare)
    message = printed(outcome, "(sending file descriptor: .*)")
    if message is not None:
        return case, refused(case, theirs, message[1].decode())
    # 3.17 looks too late at a closed fd to know what it is, and prints different messages.
    is_other = case.comm.startswith(("tcp", "udp")) or printed(outcome, "file descriptor .* is not a socket, .*")
    return (bare, outcome) if is_other else None


@difference("unix-socket", mounting(b"", comm="tcp"), mounting(b"", comm="udp"))
def _unix_socket(case: Case, theirs: Outcome, ask: Ask) -> tuple[Case, Outcome] | None:
    if not case.comm.startswith(("tcp", "udp")) or not theirs.lines or printed(theirs, "sending file descriptor: .*"):
        return None
    return case, refused(case, theirs, "sending file descriptor: Invalid argument")


@difference("failed-send", mounting(b"", comm="full"), mounting(b"", comm="unconnected"), version="3.14")
def _failed_send(case: Case, theirs: Outcome, ask: Ask) -> tuple[Case, Outcome] | None:
    if not theirs.lines or case.before is not Before.NOTHING or not printed(theirs, "sending file descriptor: .*"):
        return None
    return case, replace(theirs, lines=(), after=None, left=())


@difference("broken-pipe", mounting(b"", comm="stream, peer closed"))
def _broken_pipe(case: Case, theirs: Outcome, ask: Ask) -> tuple[Case, Outcome] | None:
    return (case, refused(case, theirs, "sending file descriptor: Broken pipe")) if theirs.ended.code == -13 else None


@difference("comm-number", mounting(b"", comm_fd=b"77x"), mounting(b"", comm_fd=b"abc"), mounting(b"", comm="file"), version="3.17")
def _comm_number(case: Case, theirs: Outcome, ask: Ask) -> tuple[Case, Outcome] | None:
    """Return what 3.14 does with the number."""
    if not printed(theirs, "invalid _FUSE_COMMFD: .*", "file descriptor -?[0-9]+ is not a socket, can't send fuse fd"):
        return None
    libc = ctypes.CDLL(None)
    number = libc.atoi(case.comm_fd)
    if number == COMM and case.comm_fd != _NUMBER:
        case = replace(case, comm_fd=_NUMBER)
        return case, ask(case)
    good = ask(replace(case, comm_fd=_NUMBER, comm="stream"))
    if good.ended.code != 0 and not printed(good, "mount failed: .*"):
        return case, good
    is_open = number in (0, 1, 2) or (number == COMM and case.comm != "closed")
    return case, refused(case, good, f"sending file descriptor: {os.strerror(ENOTSOCK if is_open else EBADF)}")
