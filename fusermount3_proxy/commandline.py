"""fusermount3's command line, read the way getopt_long(3) does: the argparse module would cost more than the mount.

    option           argument   meaning
    -h --help                   print the usage on standard output and exit with 1
    -V --version                print the version and exit with 0
    -o --options     OPTIONS    mount options; the last -o is the one that counts
    -u --unmount                unmount
    -z --lazy                   with -u: detach now, clean up when it is no longer used
    -q --quiet                  with -u: no message where it cannot be unmounted
    -U --auto-unmount           unmount when the program ends, which has mounted itself; goes before -u
       --sync-init              libfuse 3.19: mount after the program says so
       --comm-fd        N       the same as _FUSE_COMMFD=N

Options may stand in any place, before and after the mountpoint, but with POSIXLY_CORRECT in the environment before it
alone; `--` ends them; a long one may be cut as long as it is clear. `--options` and `-U` come from the Go plugin's fusermount3-proxy.
"""

from fusermount3_proxy.program import to_bytes, to_text

TYPE_CHECKING = False  # typing's, without importing typing
if TYPE_CHECKING:
    from collections.abc import Iterator

# long name -> (short letter, takes an argument); the order is the one of messages
_LONG = {
    "unmount": ("u", False),
    "lazy": ("z", False),
    "quiet": ("q", False),
    "help": ("h", False),
    "version": ("V", False),
    "options": ("o", True),
    "auto-unmount": ("U", False),
    "sync-init": ("S", False),
    "comm-fd": ("c", True),
}
_SHORT = {"h": False, "V": False, "o": True, "u": False, "z": False, "q": False, "U": False}

USAGE = """\
fusermount3: [options] mountpoint
Options:
 -h\t\t    print help
 -V\t\t    print version
 -o opt[,opt...]    mount options
 -u\t\t    unmount
 -q\t\t    quiet
 -z\t\t    lazy unmount
"""


class CommandLineError(Exception):
    """A command line that is refused; the text is the message."""


class Command:
    """What the command line asks for. `options` is "" and `comm_fd` None where they were not given.

    With `help` or `version` nothing else counts.
    """

    __slots__ = ("auto_unmount", "comm_fd", "help", "lazy", "mountpoint", "options", "quiet", "sync_init", "unmount", "version")

    def __init__(self) -> None:
        self.mountpoint = ""
        self.options = ""
        self.comm_fd: str | None = None
        self.unmount = self.lazy = self.quiet = False
        self.auto_unmount = self.sync_init = False
        self.help = self.version = False


def parse(arguments: list[str], options_first: bool = False) -> Command:
    """Read the arguments after the program's name. Raises CommandLineError with fusermount3's message.

    `options_first` is getopt_long's way with POSIXLY_CORRECT: the first argument that is no option ends them.
    """
    command = Command()
    operands: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            operands += rest
        elif argument.startswith("--"):
            _long(command, argument[2:], rest)
        elif argument.startswith("-") and argument != "-":
            _short(command, argument[1:], rest)
        else:
            operands.append(argument)
            if options_first:
                operands += rest
        if command.help or command.version:
            return command
    if command.lazy and not command.unmount and not command.auto_unmount:
        raise CommandLineError("-z can only be used with -u")
    if not operands:
        raise CommandLineError("missing mountpoint argument")
    if len(operands) > 1:
        raise CommandLineError("extra arguments after the mountpoint")
    command.mountpoint = operands[0]
    return command


def _long(command: Command, text: str, rest: "Iterator[str]") -> None:
    given, equals, glued = text.partition("=")
    matches = [given] if given in _LONG else [name for name in _LONG if name.startswith(given)]
    if not matches:
        raise CommandLineError(f"unrecognized option '--{text}'")
    if len(matches) > 1:
        possibilities = " ".join(f"'--{name}'" for name in matches)
        raise CommandLineError(f"option '--{text}' is ambiguous; possibilities: {possibilities}")
    name = matches[0]
    letter, takes_argument = _LONG[name]
    if not takes_argument:
        if equals:
            raise CommandLineError(f"option '--{name}' doesn't allow an argument")
        _apply(command, letter, "")
        return
    value = glued if equals else next(rest, None)
    if value is None:
        raise CommandLineError(f"option '--{name}' requires an argument")
    _apply(command, letter, value)


def _short(command: Command, letters: str, rest: "Iterator[str]") -> None:
    while letters:
        letter, letters = letters[0], letters[1:]
        if letter not in _SHORT:
            # getopt_long(3) reads bytes, and names the first one of a character that has more.
            raise CommandLineError(f"invalid option -- '{to_text(to_bytes(letter)[:1])}'")
        if not _SHORT[letter]:
            _apply(command, letter, "")
            if command.help or command.version:
                return
            continue
        value = letters or next(rest, None)
        if value is None:
            raise CommandLineError(f"option requires an argument -- '{letter}'")
        _apply(command, letter, value)
        return


def _apply(command: Command, letter: str, value: str) -> None:
    if letter == "o":
        command.options = value
    elif letter == "c":
        command.comm_fd = value
    else:
        setattr(command, _FLAGS[letter], True)


_FLAGS = {
    "u": "unmount",
    "z": "lazy",
    "q": "quiet",
    "h": "help",
    "V": "version",
    "U": "auto_unmount",
    "S": "sync_init",
}
