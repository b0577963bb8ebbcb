"""Tests that no options of a volume's author or of a pod's program give a mount that is not allowed."""

import re

from hypothesis import given
from hypothesis import strategies as st
from option_text import escape

from driver.linux import syscalls
from driver.model import policy
from driver.model.policy import Refused
from fusermount3_proxy.wire import options

NO_SUID_DEV = syscalls.MS_NOSUID | syscalls.MS_NODEV
PROGRAMS = (
    *(syscalls.MS_RDONLY, syscalls.MS_NOEXEC, syscalls.MS_SYNCHRONOUS, syscalls.MS_DIRSYNC, syscalls.MS_LAZYTIME, syscalls.MS_NOSYMFOLLOW),
    *(syscalls.MS_NOATIME, syscalls.MS_NODIRATIME, syscalls.MS_RELATIME, syscalls.MS_STRICTATIME),
)
DATA = re.compile(
    rb"fd=\d+,rootmode=40000,user_id=(\d+),group_id=(\d+),allow_other(,default_permissions)?(,(max_read|blksize)=\d{1,10}){0,2}"
)

words = st.sampled_from(
    [
        *options.FLAGS,
        *options.ACCESS,
        *options.UNSAFE,
        "auto_unmount",
        "no_default_permissions",
        *("fsname=a", "subtype=b", "fsname=a\\,allow_other", "subtype=\\,suid", "fsname=", "fsname=\0", "max_read=4096", "blksize=512"),
        *(
            "max_read=0,suid",
            "max_read=1\\,fd=0",
            "max_read=",
            "user_id=0",
            "group_id=0",
            "rootmode=0",
            "fd=0",
            "x-y",
            "blkdev",
            "bogus",
            "",
        ),
    ]
)
texts = st.lists(words, max_size=6).map(",".join) | st.text(max_size=20)
wire_texts = st.lists(words, max_size=6).map(",".join) | st.text(st.characters(max_codepoint=255), max_size=20)
ids = st.integers(0, 2**32 - 1)


@given(st.booleans(), st.lists(texts, max_size=3), texts, wire_texts, ids, ids, st.integers(0, 9999))
def test_any_request_gives_an_allowed_mount_or_a_refusal(
    read_only: bool, mount_flags: list[str], attribute: str, asked: str, uid: int, gid: int, fd: int
) -> None:
    volume = policy.of_volume(read_only, mount_flags, attribute)
    try:
        mount = policy.mount_arguments(volume, asked, uid, gid)
    except Refused as refusal:
        assert refusal.errno > 0
        return
    assert mount.flags & NO_SUID_DEV == NO_SUID_DEV
    assert mount.flags & ~(NO_SUID_DEV | sum(PROGRAMS)) == 0
    if read_only:
        assert mount.flags & syscalls.MS_RDONLY
    found = DATA.fullmatch(mount.with_fd(fd))
    assert found is not None
    assert (int(found[1]), int(found[2])) == (uid, gid)
    assert mount.source
    assert mount.fstype == b"fuse" or mount.fstype.startswith(b"fuse.")
    assert b"\0" not in mount.source + mount.fstype
    if found[3] is None:
        assert "no_default_permissions" in attribute + "".join(mount_flags)
        assert "allow_other" in asked


@given(st.booleans(), st.lists(texts, max_size=3), texts)
def test_reading_a_volumes_options_raises_nothing(read_only: bool, mount_flags: list[str], attribute: str) -> None:
    volume = policy.of_volume(read_only, mount_flags, attribute)
    assert volume.options.flags.get("ro", False) or not read_only
    assert all(isinstance(warning, str) for warning in volume.warnings)


flags = st.sampled_from(sorted(options.FLAGS))


@given(st.lists(flags, max_size=4), st.lists(flags, max_size=4))
def test_a_program_changes_no_flag_of_the_volume(volumes: list[str], programs: list[str]) -> None:
    volume = policy.of_volume(False, [], ",".join(volumes))
    mount = policy.mount_arguments(volume, ",".join(programs), 0, 0)
    alone = policy.mount_arguments(volume, "", 0, 0)
    for name, on in volume.options.flags.items():
        bit = policy._FLAGS.get(name, 0)
        assert mount.flags & bit == alone.flags & bit == (bit if on else 0)


@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1))
def test_a_name_of_the_volume_reaches_the_mount_as_utf_8(name: str) -> None:
    # Spaces at the end of an option are ignored, so the name ends with another character.
    volume = policy.of_volume(False, [], f"fsname={escape(name)}|")
    assert policy.mount_arguments(volume, "fsname=program", 0, 0).source == name.encode() + b"|"


@given(st.binary(min_size=1).filter(lambda name: b"\0" not in name), st.binary(min_size=1).filter(lambda name: b"\0" not in name))
def test_names_of_the_program_reach_the_mount_byte_for_byte(fsname: bytes, subtype: bytes) -> None:
    asked = ",".join(f"{key}={escape(raw.decode('latin-1'))}" for key, raw in (("fsname", fsname), ("subtype", subtype)))
    mount = policy.mount_arguments(policy.of_volume(False, [], ""), asked, 0, 0)
    assert (mount.source, mount.fstype) == (fsname, b"fuse." + subtype)
