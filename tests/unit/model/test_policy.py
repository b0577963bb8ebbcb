from errno import EINVAL

import pytest

from driver.linux import syscalls
from driver.model import policy
from driver.model.policy import MountArguments, Refused, VolumePolicy
from fusermount3_proxy.wire import options
from fusermount3_proxy.wire.protocol import to_wire

NO_SUID_DEV = syscalls.MS_NOSUID | syscalls.MS_NODEV
PLAIN = policy.of_volume(False, [], "")

MS = {
    "ro": syscalls.MS_RDONLY,
    "noexec": syscalls.MS_NOEXEC,
    "sync": syscalls.MS_SYNCHRONOUS,
    "dirsync": syscalls.MS_DIRSYNC,
    "noatime": syscalls.MS_NOATIME,
    "strictatime": syscalls.MS_STRICTATIME,
    "relatime": syscalls.MS_RELATIME,
    "nodiratime": syscalls.MS_NODIRATIME,
    "lazytime": syscalls.MS_LAZYTIME,
    "nosymfollow": syscalls.MS_NOSYMFOLLOW,
}


def kernel(asked: str = "", volume: VolumePolicy = PLAIN, uid: int = 1000, gid: int = 2000) -> MountArguments:
    return policy.mount_arguments(volume, asked, uid, gid)


def flags(asked: str, read_only: bool = False, mount_flags: tuple[str, ...] = (), attribute: str = "") -> set[str]:
    """Return which flags of MS the mount gets."""
    found = kernel(asked, policy.of_volume(read_only, list(mount_flags), attribute)).flags
    assert found & NO_SUID_DEV == NO_SUID_DEV
    return {name for name, bit in MS.items() if found & bit}


# ---- what mount(2) gets


def test_a_plain_mount() -> None:
    mount = kernel()
    assert mount.source == b"/dev/fuse"
    assert mount.fstype == b"fuse"
    assert mount.flags == NO_SUID_DEV
    assert mount.data == b"rootmode=40000,user_id=1000,group_id=2000,allow_other,default_permissions"
    assert mount.with_fd(7) == b"fd=7," + mount.data


@pytest.mark.parametrize("name", sorted(MS))
def test_a_flag_that_the_program_asks_for(name: str) -> None:
    assert flags(name) == {name}


def test_the_driver_knows_every_flag_that_the_parser_knows() -> None:
    assert set(policy._FLAGS) == {flag for flag, _ in options.FLAGS.values()}


def test_a_flag_that_only_the_parser_knows_is_not_dropped_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(options.FLAGS, "unheard-of", ("unheard-of", True))
    with pytest.raises(KeyError, match="unheard-of"):
        kernel("unheard-of")


@pytest.mark.parametrize("asked", ["suid", "dev", "suid,dev", "nosuid,suid", "dev,nodev", "rw,exec"])
def test_nosuid_and_nodev_stay_whatever_is_asked(asked: str) -> None:
    assert kernel(asked).flags == NO_SUID_DEV
    assert kernel("", policy.of_volume(False, [asked], asked)).flags == NO_SUID_DEV


def test_user_and_group_are_the_connections_and_not_the_options() -> None:
    assert b"user_id=1000,group_id=2000" in kernel("user_id=0,group_id=0,rootmode=0,fd=9").data
    assert kernel("user_id=0,group_id=0,rootmode=0,fd=9") == kernel()


@pytest.mark.parametrize(
    ("asked", "source", "fstype"),
    [
        ("fsname=a,subtype=b", b"a", b"fuse.b"),
        ("fsname=a", b"a", b"fuse"),
        ("subtype=b", b"b", b"fuse.b"),
        ("fsname=a\\,b,subtype=s\\,t", b"a,b", b"fuse.s,t"),
        ("fsname=user@host:/a b", b"user@host:/a b", b"fuse"),
        ("fsname=\xe9\xff", b"\xe9\xff", b"fuse"),
        ("subtype=..", b"..", b"fuse..."),
    ],
)
def test_source_and_type_are_what_fusermount3_makes_of_them(asked: str, source: bytes, fstype: bytes) -> None:
    mount = kernel(asked)
    assert (mount.source, mount.fstype) == (source, fstype)
    # A comma in a name does not begin another option.
    assert mount.data == kernel().data


@pytest.mark.parametrize("asked", ["fsname=", "subtype=", "fsname=a\0b", "subtype=\0", "fsname=a,subtype="])
def test_names_that_the_kernel_would_not_take_are_refused_as_it_does(asked: str) -> None:
    with pytest.raises(Refused) as caught:
        kernel(asked)
    assert (str(caught.value), caught.value.errno) == ("mount failed: Invalid argument", EINVAL)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        *(("0", 0), ("4096", 4096), ("010", 8), ("00", 0), ("4294967295", 2**32 - 1), ("037777777777", 2**32 - 1), ("+5", 5)),
        *(("0x10", 16), ("0XfF", 255), ("4096\n", 4096), ("+0x1\n", 1), ("0" * 5000 + "7", 7)),
    ],
)
@pytest.mark.parametrize("name", ["max_read", "blksize"])
def test_numbers_are_read_as_the_kernel_reads_them(name: str, value: str, number: int) -> None:
    assert kernel(f"{name}={value}").data.endswith(f",{name}={number}".encode())


NO_NUMBERS = [
    "",
    "x",
    "-1",
    "1 ",
    "1=2",
    "1\0",
    "\xb2",
    "9" * 11,
    "9" * 5000,
    "4294967296",
    "1\n\n",
    "08",
    "0x",
    "+",
    "++1",
    "0b1",
    "1_0",
    "\n",
]


@pytest.mark.parametrize("value", NO_NUMBERS)
@pytest.mark.parametrize("name", ["max_read", "blksize"])
def test_what_is_no_number_is_refused(name: str, value: str) -> None:
    # Only the last value is used, but each has to be a number.
    for asked in (f"{name}={value}", f"{name}={value},{name}=1", f"{name}=1,{name}={value}"):
        with pytest.raises(Refused):
            kernel(asked)
        with pytest.raises(Refused):
            kernel(asked, policy.of_volume(False, [], f"{name}=1"))


@pytest.mark.parametrize("asked", ["bogus", "ro,,rw", "context=x", "fd", "blkdev", "allow_root"])
def test_what_fusermount3_refuses_is_refused_again(asked: str) -> None:
    # A pod can send anything.
    with pytest.raises(Refused) as caught:
        kernel(asked)
    assert caught.value.errno == EINVAL


# ---- who wins


@pytest.mark.parametrize(
    ("read_only", "mount_flags", "attribute", "asked", "expected"),
    [
        (True, (), "", "rw", {"ro"}),
        (True, ("rw",), "rw", "rw", {"ro"}),
        (False, ("ro",), "rw", "rw", {"ro"}),
        (False, ("rw",), "ro", "ro", set()),
        (False, (), "ro", "rw", {"ro"}),
        (False, (), "rw", "ro", set()),
        (False, (), "", "ro", {"ro"}),
        (False, (), "", "", set()),
        # The program decides about options that the volume does not set.
        (True, ("noexec",), "sync", "noatime", {"ro", "noexec", "sync", "noatime"}),
        (False, ("noexec",), "", "exec", {"noexec"}),
        (False, ("exec",), "noexec", "noexec", set()),
        (False, ("noatime,sync",), "", "atime,async,dirsync", {"noatime", "sync", "dirsync"}),
    ],
)
def test_the_volume_speaks_first_and_the_program_last(
    read_only: bool, mount_flags: tuple[str, ...], attribute: str, asked: str, expected: set[str]
) -> None:
    assert flags(asked, read_only, mount_flags, attribute) == expected


def test_names_and_numbers_of_the_volume_win_too() -> None:
    volume = policy.of_volume(False, ["fsname=flag"], "fsname=attribute,subtype=attribute,max_read=8192")
    mount = kernel("fsname=program,subtype=program,max_read=4096,blksize=512", volume)
    assert (mount.source, mount.fstype) == (b"flag", b"fuse.attribute")
    assert mount.data.endswith(b",max_read=8192,blksize=512")


def test_the_attribute_takes_the_prefix_and_spaces() -> None:
    volume = policy.of_volume(False, [], " o=ro , noexec,o=fsname=x ")
    assert volume.options.flags == {"ro": True, "noexec": True}
    assert volume.options.fsname == "x"
    assert volume.warnings == ()


@pytest.mark.parametrize("text", ["ro,noexec\n", "ro,\n  noexec\n", "ro\r\n,noexec\r\n", "\tro,noexec,\n"])
def test_white_space_around_options_means_nothing(text: str) -> None:
    """Block scalars of YAML have newlines. An option with a newline in it would be unknown, and would be ignored."""
    for volume in (policy.of_volume(False, [], text), policy.of_volume(False, [text], "")):
        assert volume.options.flags == {"ro": True, "noexec": True}
        assert volume.warnings == ()


@pytest.mark.parametrize("name", ["é", "à", "x\u00a0", "日本", "\u2028"])
def test_names_in_the_attribute_are_utf_8(name: str) -> None:
    assert policy.of_volume(False, [], f"fsname={name}").options.fsname == to_wire(name.encode())
    assert policy.of_volume(False, [f"subtype={name}"], "").options.subtype == to_wire(name.encode())


@pytest.mark.parametrize(
    ("said", "expected"),
    [("ro,rw", set()), ("rw,ro", {"ro"}), ("noexec,ro,exec", {"ro"}), ("o=sync,async", set())],
)
def test_the_last_of_two_options_of_the_volume_that_contradict_wins(said: str, expected: set[str]) -> None:
    assert flags("", attribute=said) == expected
    if "o=" not in said:
        assert flags("", mount_flags=(said,)) == expected
        assert flags("", mount_flags=tuple(said.split(","))) == expected


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ("bogus", "unknown option"),
        ("kernel_cache", "unknown option"),
        ("\u65e5\u672c", "unknown option"),
        ("blkdev", "privileged"),
        ("suid", "unsafe"),
        # These options would make every mount fail.
        ("max_read=x", "Invalid argument"),
        ("max_read=", "Invalid argument"),
        ("fsname=", "Invalid argument"),
        ("subtype=", "Invalid argument"),
        ("fsname=a\0b", "Invalid argument"),
        ("blksize=512", "blksize"),
    ],
)
def test_what_cannot_be_is_left_out_with_a_warning_that_says_where(option: str, word: str) -> None:
    for where, volume in (
        ("mount flags", policy.of_volume(False, [f"noexec,{option},ro"], "")),
        ("mountOptions", policy.of_volume(False, [], f"noexec,{option},ro")),
    ):
        assert volume.options.flags == {"ro": True, "noexec": True}
        (warning,) = volume.warnings
        assert warning.startswith(f"{where}: ")
        assert word in warning
        assert option in warning
        assert kernel("", volume).flags == kernel("ro,noexec").flags


# ---- permissions


@pytest.mark.parametrize(
    ("attribute", "asked", "checks"),
    [
        ("", "", True),
        ("", "allow_other", True),
        ("no_default_permissions", "", True),
        ("no_default_permissions", "allow_other,default_permissions", True),
        ("no_default_permissions", "default_permissions", True),
        ("no_default_permissions", "allow_other", False),
        ("o=no_default_permissions,ro", "ro,allow_other", False),
    ],
)
def test_the_kernel_checks_modes_unless_both_ask_it_not_to(attribute: str, asked: str, checks: bool) -> None:
    words = kernel(asked, policy.of_volume(False, [], attribute)).data.split(b",")
    assert "allow_other" in {word.decode() for word in words}
    assert (b"default_permissions" in words) is checks


def test_the_program_alone_cannot_drop_the_checks() -> None:
    with pytest.raises(Refused):
        kernel("allow_other,no_default_permissions")


# ---- a mount that was there before


@pytest.mark.parametrize(
    ("options", "super_options", "lacks"),
    [
        ("rw,relatime", "rw,user_id=0", ["ro", "noexec", "nosuid", "nodev"]),
        ("ro,nosuid,nodev,noexec", "rw", []),
        ("rw,nosuid,nodev,noexec", "ro,user_id=0", []),
        ("rw,nosuid,noexec,noroot", "ro", ["nodev"]),
    ],
)
def test_what_a_former_mount_lacks(options: str, super_options: str, lacks: list[str]) -> None:
    assert policy.lacking(policy.of_volume(True, [], "noexec"), options, super_options) == lacks


def test_what_the_volume_did_not_ask_for_is_not_lacking() -> None:
    assert policy.lacking(PLAIN, "rw,nosuid,nodev", "rw") == []
