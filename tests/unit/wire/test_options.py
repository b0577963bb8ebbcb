"""Tests the options of -o. The expected results are those of libfuse's fusermount3 3.14, which was run to get them."""

import pytest

from fusermount3_proxy.wire import options
from fusermount3_proxy.wire.options import OptionError


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("", {}),
        ("ro", {"ro": True}),
        ("rw", {"ro": False}),
        ("rw,ro", {"ro": True}),
        ("ro,rw", {"ro": False}),
        ("ro,", {"ro": True}),
        ("noexec,exec", {"noexec": False}),
        ("sync,async,dirsync", {"sync": False, "dirsync": True}),
        ("noatime", {"noatime": True}),
        ("atime", {"noatime": False}),
        ("nosuid,nodev", {"nosuid": True, "nodev": True}),
        ("strictatime", {"strictatime": True}),
        ("relatime", {"relatime": True}),
    ],
)
def test_the_last_of_two_flags_that_contradict_wins(text: str, flags: dict[str, bool]) -> None:
    assert options.parse(text).flags == flags


@pytest.mark.parametrize(
    ("text", "fsname", "subtype"),
    [
        ("fsname=a,subtype=b", "a", "b"),
        ("fsname=a,fsname=b", "b", None),
        ("subtype=s\\,t,ro", None, "s,t"),
        ("fsname=a\\,b", "a,b", None),
        ("fsname=a\\,ro", "a,ro", None),
        ("fsname=a\\\\", "a\\", None),
        # A backslash at the end stands for itself.
        ("fsname=a\\", "a\\", None),
        ("fsname=a\\b", "ab", None),
        ("fsname=", "", None),
        ("subtype=", None, ""),
        ("fsname= a b", " a b", None),
        ("fsname=a=b", "a=b", None),
        ("fsname=x\xe9\xff", "x\xe9\xff", None),
        ("ro", None, None),
    ],
)
def test_names_of_source_and_type(text: str, fsname: str | None, subtype: str | None) -> None:
    found = options.parse(text)
    assert (found.fsname, found.subtype) == (fsname, subtype)


def test_options_of_access_numbers_and_auto_unmount() -> None:
    found = options.parse("allow_other,default_permissions,max_read=1,max_read=2,blksize=512,auto_unmount")
    assert found.access == {"allow_other", "default_permissions"}
    assert found.numbers == {"max_read": ["1", "2"], "blksize": ["512"]}
    assert found.auto_unmount


@pytest.mark.parametrize("text", ["fd=3", "fd=", "rootmode=40000", "user_id=5", "group_id=", "nonempty", "x-gvfs-hide", "x-"])
def test_skips_options_that_libfuse_adds_itself(text: str) -> None:
    found = options.parse(text)
    assert (found.flags, found.access, found.numbers, found.fsname, found.subtype, found.warnings) == ({}, set(), {}, None, None, [])


@pytest.mark.parametrize("name", ["suid", "dev"])
def test_warns_of_options_that_only_root_may_use(name: str) -> None:
    found = options.parse(f"{name},ro")
    assert found.warnings == [f"unsafe option {name} ignored"]
    assert found.flags == {"ro": True}


def test_warns_of_large_read() -> None:
    found = options.parse("large_read")
    assert len(found.warnings) == 1
    assert found.warnings[0].startswith("note: 'large_read' mount option is deprecated")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bogus", "unknown option 'bogus'"),
        ("bogus1,bogus2", "unknown option 'bogus1'"),
        ("ro,,rw", "unknown option ''"),
        (",ro", "unknown option ''"),
        (",", "unknown option ''"),
        ("RO", "unknown option 'RO'"),
        ("ro=1", "unknown option 'ro=1'"),
        ("ro ", "unknown option 'ro '"),
        ("fsname", "unknown option 'fsname'"),
        ("subtype", "unknown option 'subtype'"),
        ("fsnamex", "unknown option 'fsnamex'"),
        ("max_read", "unknown option 'max_read'"),
        ("user_id", "unknown option 'user_id'"),
        ("fdx", "unknown option 'fdx'"),
        ("nonemptyx", "unknown option 'nonemptyx'"),
        ("auto_unmountx", "unknown option 'auto_unmountx'"),
        ("kernel_cache", "unknown option 'kernel_cache'"),
        ("context=foo", "unknown option 'context=foo'"),
        # A backslash escapes only in the values of fsname and subtype.
        ("ro\\,rw", "unknown option 'ro\\'"),
        ("fsname=a\\\\,b", "unknown option 'b'"),
        ("blkdev", "option blkdev is privileged"),
    ],
)
def test_refuses_in_the_words_of_fusermount3(text: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        options.parse(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("a", ["a"]),
        ("a,b", ["a", "b"]),
        ("a,", ["a"]),
        (",a", ["", "a"]),
        ("a\\,b", ["a\\", "b"]),
        ("fsname=a\\,b,ro", ["fsname=a\\,b", "ro"]),
        ("ro,subtype=a\\\\,b", ["ro", "subtype=a\\\\", "b"]),
        ("fsname=a\\", ["fsname=a\\"]),
    ],
)
def test_splits_at_commas_that_are_not_escaped(text: str, parts: list[str]) -> None:
    assert options.split(text) == parts


def test_parses_a_long_text() -> None:
    # 128 KiB is the longest argument that execve(2) takes.
    assert options.parse("rw," * 43690).flags == {"ro": False}
    assert options.parse("fsname=" + "\\," * 65000).fsname == "," * 65000
