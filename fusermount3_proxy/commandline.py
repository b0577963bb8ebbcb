"""Parses fusermount3's command line as getopt_long(3) does. Importing argparse would take longer than the whole mount.

    option           argument   meaning
    -h --help                   print the usage on standard output and exit with 1
    -V --version                print the version and exit with 0
    -o --options     OPTIONS    mount options; only the last -o counts
    -u --unmount                unmount
    -z --lazy                   with -u: detach now, even if the mount is in use
    -q --quiet                  with -u: print no message if unmounting fails
    -U --auto-unmount           unmount when the program ends, which has mounted by itself; takes precedence over -u
       --sync-init              libfuse 3.19: mount when the program asks for it
       --comm-fd        N       the comm fd; takes precedence over _FUSE_COMMFD

Options may stand before and after the mountpoint. With POSIXLY_CORRECT in the environment they may only stand before it.
`--` ends the options. A long option may be abbreviated as long as it is unambiguous. `--options` and `-U` come from the Go
plugin's fusermount3-proxy.
"""

from fusermount3_proxy.program import to_bytes, to_text

TYPE_CHECKING = False  # stands for typing.TYPE_CHECKING, since importing typing takes too long
if TYPE_CHECKING:
    from collections.abc import Iterator

# Maps each long option to whether it takes an argument. Messages list them in this order.
_LONG = {
    "unmount": False,
    "lazy": False,
    "quiet": False,
    "help": False,
    "version": False,
    "options": True,
    "auto-unmount": False,
    "sync-init": False,
    "comm-fd": True,
}
_SHORT = {
    "h": "help",
    "V": "version",
    "o": "options",
    "u": "unmount",
    "z": "lazy",
    "q": "quiet",
    "U": "auto-unmount",
}

USAGE = """\
[options] mountpoint
Options:
 -h\t\t    print help
 -V\t\t    print version
 -o opt[,opt...]    mount options
 -u\t\t    unmount
 -q\t\t    quiet
 -z\t\t    lazy unmount
"""


class CommandLineError(Exception):
    """Reports a command line that is refused. The text is fusermount3's message, without its name."""


class Command:
    """Holds what the command line asks for: one attribute for each long option, and `mountpoint`.

    `options` is "" and `comm_fd` is None if they were not given. If `help` or `version` is set, the other attributes do not
    count.
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
    """Parse the arguments after the program's name. Raises CommandLineError.

    With `options_first` the first argument that is no option ends the options, as in getopt_long(3) with POSIXLY_CORRECT.
    """
    command = Command()
    operands: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            operands += rest
        elif argument.startswith("--"):
            _parse_long(command, argument[2:], rest)
        elif argument.startswith("-") and argument != "-":
            _parse_short(command, argument[1:], rest)
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


def _parse_long(command: Command, text: str, rest: "Iterator[str]") -> None:
    given, equals, value = text.partition("=")
    matches = [given] if given in _LONG else [name for name in _LONG if name.startswith(given)]
    if not matches:
        raise CommandLineError(f"unrecognized option '--{text}'")
    if len(matches) > 1:
        possibilities = " ".join(f"'--{name}'" for name in matches)
        raise CommandLineError(f"option '--{text}' is ambiguous; possibilities: {possibilities}")
    name = matches[0]
    if not _LONG[name]:
        if equals:
            raise CommandLineError(f"option '--{name}' doesn't allow an argument")
        _set(command, name, True)
        return
    argument = value if equals else next(rest, None)
    if argument is None:
        raise CommandLineError(f"option '--{name}' requires an argument")
    _set(command, name, argument)


def _parse_short(command: Command, letters: str, rest: "Iterator[str]") -> None:
    while letters:
        letter, letters = letters[0], letters[1:]
        name = _SHORT.get(letter)
        if name is None:
            # getopt_long(3) reads bytes, and reports only the first byte of a character.
            raise CommandLineError(f"invalid option -- '{to_text(to_bytes(letter)[:1])}'")
        if _LONG[name]:
            argument = letters or next(rest, None)
            if argument is None:
                raise CommandLineError(f"option requires an argument -- '{letter}'")
            _set(command, name, argument)
            return
        _set(command, name, True)
        if command.help or command.version:
            return


def _set(command: Command, name: str, value: str | bool) -> None:
    setattr(command, name.replace("-", "_"), value)
