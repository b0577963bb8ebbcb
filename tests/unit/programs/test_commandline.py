"""Tests the command line. The expected results are those of libfuse's fusermount3 3.14, which was run to get them."""

import pytest

from fusermount3_proxy import commandline
from fusermount3_proxy.commandline import Command, CommandLineError


def fields(command: Command) -> dict[str, object]:
    """Return the attributes that are not empty."""
    return {name: value for name in Command.__slots__ if (value := getattr(command, name)) not in ("", None, False)}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        # FUSE libraries give these.
        (["--", "/m"], {"mountpoint": "/m"}),
        (["-o", "rw,fsname=x", "--", "/m"], {"mountpoint": "/m", "options": "rw,fsname=x"}),
        (["/m", "-o", "rw"], {"mountpoint": "/m", "options": "rw"}),
        (["-o", "", "--", "/m"], {"mountpoint": "/m"}),
        (["-u", "-q", "-z", "--", "/m"], {"mountpoint": "/m", "unmount": True, "quiet": True, "lazy": True}),
        (["-u", "/m"], {"mountpoint": "/m", "unmount": True}),
        (["--unmount", "--quiet", "--lazy", "--", "/m"], {"mountpoint": "/m", "unmount": True, "quiet": True, "lazy": True}),
        (["--auto-unmount", "--", "/m"], {"mountpoint": "/m", "auto_unmount": True}),
        (["--auto-unmount", "-z", "/m"], {"mountpoint": "/m", "auto_unmount": True, "lazy": True}),
        (["--sync-init", "-o", "ro", "--", "/m"], {"mountpoint": "/m", "sync_init": True, "options": "ro"}),
        # Users type these.
        (["-uqz", "/m"], {"mountpoint": "/m", "unmount": True, "quiet": True, "lazy": True}),
        (["/m", "-uz"], {"mountpoint": "/m", "unmount": True, "lazy": True}),
        (["-oro", "/m"], {"mountpoint": "/m", "options": "ro"}),
        (["-uoro", "/m"], {"mountpoint": "/m", "options": "ro", "unmount": True}),
        (["-o", "ro", "-o", "rw", "/m"], {"mountpoint": "/m", "options": "rw"}),
        (["-o", "-V", "/m"], {"mountpoint": "/m", "options": "-V"}),
        (["-o", "--", "/m"], {"mountpoint": "/m", "options": "--"}),
        (["--options=ro", "/m"], {"mountpoint": "/m", "options": "ro"}),
        (["--options", "ro", "/m"], {"mountpoint": "/m", "options": "ro"}),
        (["--comm-fd=3", "/m"], {"mountpoint": "/m", "comm_fd": "3"}),
        (["--comm-fd", "3", "/m"], {"mountpoint": "/m", "comm_fd": "3"}),
        (["--comm-fd=", "/m"], {"mountpoint": "/m"}),
        (["--unm", "/m"], {"mountpoint": "/m", "unmount": True}),
        (["--u", "/m"], {"mountpoint": "/m", "unmount": True}),
        (["--q", "/m"], {"mountpoint": "/m", "quiet": True}),
        (["-U", "/m"], {"mountpoint": "/m", "auto_unmount": True}),
        (["-"], {"mountpoint": "-"}),
        (["--", "-V"], {"mountpoint": "-V"}),
        (["--", "--"], {"mountpoint": "--"}),
        ([""], {}),
        (["m\udcff"], {"mountpoint": "m\udcff"}),
    ],
)
def test_reads_what_is_asked_for(arguments: list[str], expected: dict[str, object]) -> None:
    assert fields(commandline.parse(arguments)) == expected


@pytest.mark.parametrize("arguments", [["-h"], ["--help"], ["--he"], ["-hV"], ["-h", "-x"], ["/m", "/n", "-h"], ["-uzh"], ["-oV", "-h"]])
def test_help_ends_the_parsing(arguments: list[str]) -> None:
    command = commandline.parse(arguments)
    assert command.help
    assert not command.version


@pytest.mark.parametrize(
    "arguments", [["-V"], ["--version"], ["--v"], ["-Vh"], ["-V", "-x"], ["/m", "-V"], ["-qV"], ["-oV", "-V"], ["-z", "-V"]]
)
def test_version_ends_the_parsing(arguments: list[str]) -> None:
    command = commandline.parse(arguments)
    assert command.version
    assert not command.help


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "missing mountpoint argument"),
        (["--"], "missing mountpoint argument"),
        (["-u"], "missing mountpoint argument"),
        (["-uz"], "missing mountpoint argument"),
        (["-o", "-V"], "missing mountpoint argument"),
        (["a", "b"], "extra arguments after the mountpoint"),
        (["m", "--", "-V"], "extra arguments after the mountpoint"),
        (["-z"], "-z can only be used with -u"),
        (["-z", "m"], "-z can only be used with -u"),
        (["m", "-z"], "-z can only be used with -u"),
        (["m", "m2", "-z"], "-z can only be used with -u"),
        (["-z", "--"], "-z can only be used with -u"),
        (["--l", "m"], "-z can only be used with -u"),
        (["-x"], "invalid option -- 'x'"),
        (["-xV"], "invalid option -- 'x'"),
        (["-x", "-V"], "invalid option -- 'x'"),
        (["-uxV", "m"], "invalid option -- 'x'"),
        (["-o"], "option requires an argument -- 'o'"),
        (["-u", "-o"], "option requires an argument -- 'o'"),
        (["-uo"], "option requires an argument -- 'o'"),
        (["--options"], "option '--options' requires an argument"),
        (["--comm-fd"], "option '--comm-fd' requires an argument"),
        (["--lazy=1", "m"], "option '--lazy' doesn't allow an argument"),
        (["--un=3"], "option '--unmount' doesn't allow an argument"),
        (["--lazy=", "m"], "option '--lazy' doesn't allow an argument"),
        (["--bogus"], "unrecognized option '--bogus'"),
        (["--bogus=1"], "unrecognized option '--bogus=1'"),
        (["---"], "unrecognized option '---'"),
        (["---x"], "unrecognized option '---x'"),
        (["--unmountx"], "unrecognized option '--unmountx'"),
    ],
)
def test_refuses_in_the_words_of_fusermount3(arguments: list[str], message: str) -> None:
    with pytest.raises(CommandLineError) as caught:
        commandline.parse(arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize("argument", ["--=", "--=x"])
def test_an_empty_long_option_is_ambiguous(argument: str) -> None:
    with pytest.raises(CommandLineError) as caught:
        commandline.parse([argument])
    assert str(caught.value).startswith(
        f"option '{argument}' is ambiguous; possibilities: '--unmount' '--lazy' '--quiet' '--help' '--version'"
    )


def test_names_one_byte_of_a_letter_that_has_more() -> None:
    # getopt(3) reads bytes, not characters.
    with pytest.raises(CommandLineError) as caught:
        commandline.parse(["-é"])
    assert str(caught.value).encode("utf-8", "surrogateescape") == b"invalid option -- '\xc3'"


def test_usage_is_that_of_fusermount3() -> None:
    lines = commandline.USAGE.splitlines()
    assert lines[:2] == ["[options] mountpoint", "Options:"]
    assert lines[2:] == [
        " -h\t\t    print help",
        " -V\t\t    print version",
        " -o opt[,opt...]    mount options",
        " -u\t\t    unmount",
        " -q\t\t    quiet",
        " -z\t\t    lazy unmount",
    ]
