"""Compares the parsing of the command line with the C library's getopt_long(3)."""

import ctypes
import os
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fusermount3_proxy import commandline
from fusermount3_proxy.commandline import Command, CommandLineError

WORDS = [
    *("-h", "-V", "-o", "-u", "-z", "-q", "-U", "--", "-", "---", "", "-x", "-uz", "-uqz", "-oro", "-uo", "-zV", "-qh", "-oV"),
    *("--unmount", "--lazy", "--quiet", "--help", "--version", "--options", "--auto-unmount", "--sync-init", "--comm-fd"),
    *("--un", "--l", "--q", "--h", "--v", "--o", "--a", "--s", "--c", "--=", "--=x", "--lazy=", "--lazy=1", "--options=", "--options=ro"),
    *("--comm-fd=3", "--c=3", "--bogus", "--unmounted", "-W", "-:", "-?", "-;", "-W foo", "/m", "m", "ro", "3", "a b", "\udcff", "-\udcff"),
]
arguments = st.lists(st.sampled_from(WORDS) | st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=6), max_size=7)


class Option(ctypes.Structure):
    """Is struct option of getopt_long(3)."""

    _fields_ = (("name", ctypes.c_char_p), ("has_arg", ctypes.c_int), ("flag", ctypes.c_void_p), ("val", ctypes.c_int))


LIBC = ctypes.CDLL(None)
LETTERS = {name: letter for letter, name in commandline._SHORT.items()} | {"sync-init": "S", "comm-fd": "c"}
TABLE = (Option * (len(commandline._LONG) + 1))(
    *(Option(name.encode(), int(takes), None, ord(LETTERS[name])) for name, takes in commandline._LONG.items()), Option()
)
SHORT = "".join(letter + ":" * commandline._LONG[name] for letter, name in commandline._SHORT.items()).encode()


def with_getopt_long(words: list[str]) -> Iterator[tuple[str, str]]:
    """Yield what getopt_long finds: letter and argument of each option, `?` for a mistake, and the operands at the end."""
    raw = [b"fusermount3", *(os.fsencode(word) for word in words)]
    argv = (ctypes.c_char_p * (len(raw) + 1))(*raw, None)
    ctypes.c_int.in_dll(LIBC, "opterr").value = 0
    optind = ctypes.c_int.in_dll(LIBC, "optind")
    optind.value = 0  # makes glibc start again
    while (found := LIBC.getopt_long(len(raw), argv, SHORT, TABLE, None)) != -1:
        argument = ctypes.c_char_p.in_dll(LIBC, "optarg").value
        yield chr(found), os.fsdecode(argument or b"")
    for index in range(optind.value, len(raw)):
        yield "operand", os.fsdecode(argv[index] or b"")


def expected(words: list[str]) -> Command | None:
    """Return what fusermount3's main() would do, None if it refuses."""
    command = Command()
    operands = []
    for found, argument in with_getopt_long(words):
        match found:
            case "?":
                return None
            case "h" | "V":
                setattr(command, {"h": "help", "V": "version"}[found], True)
                return command
            case "o":
                command.options = argument
            case "c":
                command.comm_fd = argument
            case "operand":
                operands.append(argument)
            case _:
                setattr(command, {"u": "unmount", "z": "lazy", "q": "quiet", "U": "auto_unmount", "S": "sync_init"}[found], True)
    if len(operands) != 1 or (command.lazy and not command.unmount and not command.auto_unmount):
        return None
    command.mountpoint = operands[0]
    return command


@pytest.fixture(autouse=True, scope="module")
def usual_order() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.delenv("POSIXLY_CORRECT", raising=False)
        yield


@given(arguments)
def test_any_command_line_is_parsed_as_getopt_long_does_with_posixly_correct(words: list[str]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("POSIXLY_CORRECT", "1")
        wanted = expected(words)
    try:
        command = commandline.parse(words, options_first=True)
    except CommandLineError:
        assert wanted is None
        return
    assert wanted is not None
    if not (wanted.help or wanted.version):
        assert fields(command) == fields(wanted)


def fields(command: Command) -> dict[str, object]:
    return {name: getattr(command, name) for name in Command.__slots__}


@given(arguments)
@example(["--o", "ro", "m"])
@example(["-W", "unmount", "m"])
def test_any_command_line_is_parsed_as_getopt_long_does(words: list[str]) -> None:
    wanted = expected(words)
    try:
        command = commandline.parse(words)
    except CommandLineError as error:
        assert wanted is None, f"refused: {error}"
        return
    assert wanted is not None, f"should be refused, is {fields(command)}"
    if wanted.help or wanted.version:
        assert (command.help, command.version) == (wanted.help, wanted.version)
        return
    assert fields(command) == fields(wanted)


@given(st.lists(st.text(), max_size=8))
def test_the_parser_raises_only_its_own_error(words: list[str]) -> None:
    try:
        command = commandline.parse(words)
    except CommandLineError as error:
        assert str(error)
        return
    assert command.help or command.version or command.mountpoint in words


@given(st.lists(st.binary(max_size=8).map(os.fsdecode), max_size=4))
def test_arguments_may_have_any_bytes(words: list[str]) -> None:
    try:
        commandline.parse(words)
    except CommandLineError as error:
        os.fsencode(str(error))


@given(st.text(), st.text(), st.sampled_from([["-o"], ["--options"]]))
def test_the_mountpoint_after_two_dashes_and_the_options_are_as_given(mountpoint: str, options: str, option: list[str]) -> None:
    command = commandline.parse([*option, options, "--", mountpoint])
    assert (command.mountpoint, command.options) == (mountpoint, options)
