"""Define what both sides are asked, and how hypothesis draws it."""

import re
from dataclasses import dataclass, replace
from enum import Enum

from hypothesis import strategies as st

Words = tuple[bytes, ...]

GOOD_CONF = b"user_allow_other\n"


class Before(Enum):
    """Says what is at the mountpoint `m` before the call."""

    NOTHING = "nothing"
    MOUNTED = "a file system"
    BUSY = "a file system in use"
    DEAD = "a file system whose program is dead"
    CLOSED = "a file system of the user's own that lets no other user in"  # where mounts appear at their mountpoints


@dataclass(frozen=True)
class Case:
    """Represents one call of fusermount3."""

    arguments: Words
    name: bytes = b"fusermount3"
    comm_fd: bytes | None = b"77"  # _FUSE_COMMFD; launcher.COMM is where the fd is
    comm: str = "stream"
    environment: tuple[tuple[bytes, bytes], ...] = ()
    conf: bytes = GOOD_CONF
    before: Before = Before.NOTHING
    mountpoint: bytes = b"m"  # the mountpoint in `arguments`, for what comes after
    device_mode: int = 0o666

    def at(self, mountpoint: bytes) -> "Case":
        """Return this case with another mountpoint."""
        names = (self.mountpoint, b"./" + self.mountpoint)
        arguments = tuple(mountpoint if word in names else word for word in self.arguments)
        return replace(self, arguments=arguments, mountpoint=mountpoint)


def mounting(options: bytes, **more: object) -> Case:
    """Return a call as libfuse makes it."""
    return replace(Case((b"-o", options, b"--", b"m")), **more)  # type: ignore[arg-type]


# ---- command lines

NAMES = (b"fusermount3", b"fusermount", b"/usr/bin/fusermount3", b"mergerfs-fusermount", b"x", b"a b", b"a\nb", b"\xff", b"-u", b"x" * 4000)
_WORDS = [
    *(b"-h", b"-V", b"-o", b"-u", b"-z", b"-q", b"--", b"-", b"---", b"", b"-x", b"-uz", b"-uqz", b"-oro", b"-uo", b"-zV", b"-qh", b"-oV"),
    *(b"--unmount", b"--lazy", b"--quiet", b"--help", b"--version", b"--un", b"--l", b"--q", b"--h", b"--v", b"--=", b"--=x", b"--=\xff"),
    *(
        b"--lazy=",
        b"--lazy=1",
        b"--unm=1",
        b"--bogus",
        b"--unmounted",
        b"--no=\xff",
        b"-W",
        b"-:",
        b"-?",
        b"-;",
        b"-W foo",
        b"-\xff",
        b"-\xc3\xa9",
    ),
    *(b"m", b"m", b"m", b"m2", b"./m", b"missing", b"ro", b"ro,noexec", b"bogus", b"77", b"\xff", b"a b"),
]
words = st.sampled_from(_WORDS) | st.binary(max_size=4).map(lambda raw: raw.replace(b"\0", b"") or b"m")
_sensible = st.sampled_from(
    [
        *(
            (b"--", b"m"),
            (b"-o", b"ro", b"--", b"m"),
            (b"-o", b"", b"m"),
            (b"m", b"-o", b"rw"),
            (b"-u", b"m"),
            (b"-u", b"-q", b"-z", b"--", b"m"),
        ),
        *((b"--unmount", b"--quiet", b"--lazy", b"--", b"m"), (b"-V",), (b"-h",), (b"-o", b"ro", b"-o", b"rw", b"m"), (b"-oro", b"m")),
    ]
)


def _with_noise(base: Words, noise: list[tuple[int, bytes]]) -> Words:
    out = list(base)
    for at, word in noise:
        out.insert(at % (len(out) + 1), word)
    return tuple(out)


_lines = st.lists(words, max_size=6).map(tuple) | st.builds(
    _with_noise, _sensible, st.lists(st.tuples(st.integers(0, 9), words), max_size=2)
)
_posix = st.sampled_from([(), (), ((b"POSIXLY_CORRECT", b""),), ((b"POSIXLY_CORRECT", b"1"),), ((b"_FUSE_COMMFD2", b"5"),)])
_befores = st.sampled_from([Before.NOTHING, Before.NOTHING, Before.NOTHING, Before.MOUNTED])


# What 3.14 does not know has tests of its own, as has what takes more than one step: --sync-init and --auto-unmount.
_LATER = re.compile(rb"--[oacs]|-[^-]*U")


command_lines = st.builds(
    Case, _lines.filter(lambda words: not any(map(_LATER.match, words))), st.sampled_from(NAMES), environment=_posix, before=_befores
)


# ---- --options and --comm-fd, and the older forms for 3.14
_short_and_long = st.sampled_from(
    [(b"-o", b"ro"), (b"-o", b""), (b"-o", b"-V"), (b"-o", b"bogus"), (b"-o", b"a=b=c"), (b"-o", b"--")]
).flatmap(
    lambda short: st.sampled_from([(b"--options", short[1]), (b"--options=" + short[1],), (b"--o", short[1]), (b"--opt=" + short[1],)]).map(
        lambda long: (short, long)
    )
) | st.sampled_from([b"m", b"-u", b"-z", b"--", b"-x", b"--quiet", b"-h"]).map(lambda word: ((word,), (word,)))
_comm_numbers = st.sampled_from([b"77", b"77", b"99", b"x", b"", b" 77x"])


def _twins(words: list[tuple[Words, Words]], number: bytes | None, variable: bytes | None) -> tuple[Case, Case]:
    short = Case((*(word for pair in words for word in pair[0]), b"m"), comm_fd=variable if number is None else number)
    long = (*(word for pair in words for word in pair[1]), b"m")
    return short, replace(short, arguments=long if number is None else (b"--comm-fd", number, *long), comm_fd=variable)


later_options = st.builds(_twins, st.lists(_short_and_long, max_size=3), st.none() | _comm_numbers, st.sampled_from([None, b"77", b"99"]))


# ---- the text of -o

_PLAIN = [
    *("rw", "ro", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "async", "sync", "atime", "noatime", "dirsync"),
    *("allow_other", "allow_root", "default_permissions", "nonempty", "large_read", "blkdev"),
    *("fd=7", "fd=", "rootmode=40000", "user_id=0", "group_id=0", "user_id=", "rootmode"),
]
# Options of later versions, of mount.fuse3, of mount(8), and of libfuse itself.
_OTHER = [
    *(
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
        "diratime",
        "nodiratime",
        "lazytime",
        "nolazytime",
        "symfollow",
        "nosymfollow",
    ),
    *(
        "x-systemd.automount",
        "x-",
        "x-a=b",
        "setuid=root",
        "drop_privileges",
        "_netdev",
        "defaults",
        "user",
        "users",
        "nouser",
        "auto",
        "noauto",
    ),
    *(
        "owner",
        "group",
        "nofail",
        "remount",
        "bind",
        "loop",
        "uid=0",
        "gid=0",
        "umask=0",
        "context=x",
        "source=x",
        "fsname",
        "subtype",
        "max_read",
    ),
    *("debug", "kernel_cache", "RO", "ro ", " ro", "ro=1", "rootcontext=a", "bogus", "\xff", "a\\,b", "\\", "", ""),
]
_numbers = st.sampled_from(
    [
        *(
            "",
            "0",
            "1",
            "4096",
            "131072",
            "4294967295",
            "4294967296",
            "99999999999999999999",
            "-1",
            "+5",
            "0x1000",
            "0X1F",
            "0x",
            "010",
            "08",
            "0b1",
        ),
        *(
            "4k",
            "1M",
            "4096 ",
            " 4096",
            "4096\n",
            "\n",
            "1=2",
            "=",
            "1\\",
            "1e3",
            "\xb2",
            "00000000000000000004096",
            "4_096",
            "+",
            "++1",
            "+0x10",
            "0x+1",
        ),
    ]
)
_name_texts = (
    st.sampled_from(
        ["a", "user@host:/srv", "a b", "a#b", "a\\,b", "a\\\\b", "\\", "a\\", "\\,", "\\\\,ro", "a\nb", "\t", "", "\xff", "x" * 255]
    )
    | st.sampled_from(["y" * 4000, "z" * 4095, "z" * 4096, "\xff" * 2000, "a,b", "a.b", ".", "fuse", "a=b", "-", "a\\,x-b"])
    | st.text(st.sampled_from("a\\,.# \n=\xe9"), max_size=5)
)
_options = (
    st.sampled_from(_PLAIN)
    | st.sampled_from(_PLAIN)
    | st.sampled_from(_OTHER)
    | st.builds("{}={}".format, st.sampled_from(["max_read", "max_read", "blksize"]), _numbers)
    | st.builds("{}={}".format, st.sampled_from(["fsname", "subtype"]), _name_texts)
    | st.binary(max_size=5).map(lambda raw: raw.replace(b"\0", b"").decode("latin-1"))
)
_good = (
    st.sampled_from([word for word in _PLAIN if word not in ("allow_root", "blkdev", "rootmode")])
    | st.builds("max_read={}".format, st.sampled_from(["0", "4096", "4294967295", "0x1000"]))
    | st.builds("{}={}".format, st.sampled_from(["fsname", "subtype"]), _name_texts.filter(lambda text: 0 < len(text) < 300))
)
_ofs_libfuse = st.sampled_from(
    [
        "rw,nosuid,nodev,fsname=user@host:/srv,subtype=sshfs",
        "rw,nosuid,nodev,noatime,default_permissions,allow_other,max_read=131072,subtype=s3fs,fsname=s3fs",
        "allow_other,fd=5,rootmode=40000,user_id=1000,group_id=1000,subtype=hello",
        "nonempty,max_read=131072,fsname=/dev/sda1,ro",
    ]
)
_texts = st.one_of(
    st.lists(_good, max_size=5).map(",".join),
    st.lists(_good, max_size=5).map(",".join),
    st.builds(lambda good, other, at: ",".join([*good[:at], other, *good[at:]]), st.lists(_good, max_size=4), _options, st.integers(0, 4)),
    st.lists(_options, max_size=5).map(",".join),
    st.builds(lambda base, more: f"{base},{more}", _ofs_libfuse, _options),
    st.builds(
        lambda word, times: f"{word}," * times, st.sampled_from(["ro", "allow_other", "max_read=4096", ""]), st.sampled_from([2, 300, 400])
    ),
    st.builds(
        lambda word, size: (word * size)[:size], st.sampled_from(["ro,", "x", "fsname=a\\,", "\xff"]), st.sampled_from([9000, 131071])
    ),
)
option_texts = st.builds(
    lambda text, conf, before: mounting(text.encode("latin-1"), conf=conf, before=before),
    _texts.filter(lambda text: "auto_unmount" not in text),
    st.sampled_from([GOOD_CONF] * 7 + [b"", b"mount_max = 0\n", b"mount_max = 5\nuser_allow_other\nnonsense\n"]),
    st.sampled_from([Before.NOTHING] * 9 + [Before.MOUNTED]),
)


# ---- mountpoints

# sides.make_mountpoints() makes these.
FOLDERS = (
    b"m",
    b"m2",
    b"a b",
    b"new\nline",
    b"com,ma",
    b"back\\slash",
    b"t\tab",
    b"ha#sh",
    b"\xff\xfe",
    b"octal\\040",
    b"n" * 255,
    b"gone (deleted)",
)
MOUNTPOINTS = (
    *FOLDERS,
    *(
        b"link",
        b"dangling",
        b"loop",
        b"file",
        b"fifo",
        b"socket",
        b"readonly-file",
        b"inner/m",
        b"inner/link",
        b"link/x",
        b"link-to-inner/m",
    ),
    *(b"readonly", b"sticky", b"locked", b"locked/x", b"unreadable", b"unsearchable", b"unsearchable/m"),
    *(
        b"missing",
        b"missing/m",
        b"file/x",
        b"loop/x",
        b"dangling/x",
        b"inner/../m",
        b"inner/..",
        b"inner/link/..",
        b"inner/.",
        b"",
        b".",
        b"..",
        b"/",
        b"//",
        b"/.",
        b"/proc",
    ),
    *(
        b"/proc/1",
        b"/proc/1/task",
        b"/sys",
        b"/dev/null",
        b"/dev/fuse",
        b"./" * 2100 + b"m",
        b"inner/../" * 500 + b"m",
        b"n" * 256,
        b"/" * 5000,
    ),
    *(b"inner/../" * 400 + b"m", b"x/" * 2100, b"-m"),
)
_shapes = st.sampled_from(["{}", "{}", "{}/", "{}//", "{}/.", "./{}", "{}/..", ".//{}", "{}/x"])
_mountpoints = st.builds(
    lambda raw, shape: shape.encode().replace(b"{}", raw) if raw else raw, st.sampled_from(MOUNTPOINTS), _shapes
) | st.builds(lambda raw: raw.replace(b"\0", b""), st.binary(max_size=6))


def _at(mountpoint: bytes, options: Words) -> Case:
    return Case((*options, b"--", mountpoint), mountpoint=mountpoint)


mountpoints = st.builds(_at, _mountpoints, st.sampled_from([(), (), (b"-o", b"ro"), (b"-u",), (b"-u", b"-q"), (b"-uz",)]))


# ---- the comm fd

COMMS = (
    *("stream", "seqpacket", "dgram", "tcp", "udp", "pipe", "file", "closed", "listening", "unconnected", "unconnected dgram", "full"),
    *("stream, peer closed", "seqpacket, peer closed", "dgram, peer closed", "stream, peer shut", "stream, shut", "tcp, peer closed"),
)
_NUMBERS = (
    *(
        b"",
        b"77",
        b" 77",
        b"\t\n\v\f\r77",
        b"+77",
        b"77x",
        b"77 ",
        b"077",
        b"0x4d",
        b"-77",
        b"- 77",
        b"-1",
        b"99",
        b"0",
        b"1",
        b"2",
        b"abc",
        b"\xff",
    ),
    *(
        b"4294967373",
        b"-4294967219",
        b"2147483648",
        b"9223372036854775807",
        b"9223372036854775885",
        b"99999999999999999999",
        b"-9" * 11,
        b"\xb277",
    ),
    *(b"0" * 5000 + b"77", b"7" * 5000, b"77\n", b"7_7", "７７".encode()),
)
comm_fds = st.builds(
    lambda number, comm, options: replace(mounting(options), comm_fd=number, comm=comm),
    st.sampled_from([None, b"77", b"77", b"77", b"77", *_NUMBERS]),
    st.sampled_from(COMMS),
    st.sampled_from([b"", b"", b"ro", b"suid", b"bogus", b"fsname="]),
)


# ---- unmounting

_unmount_options = st.lists(
    st.sampled_from([b"-u", b"-u", b"--unmount", b"-z", b"--lazy", b"-q", b"--quiet", b"-uz", b"-uqz", b"-oro", b"-o", b"--", b"-uzq"]),
    max_size=4,
)
_EVERYWHERE = [before for before in Before if before is not Before.CLOSED]
_places = st.sampled_from(
    [
        *([b"m"] * 8),
        *(
            b"./m",
            b"m/",
            b"m//",
            b"m/.",
            b"m/..",
            b"inner/../m",
            b"link",
            b"link/",
            b"link-to-here/m",
            b"m2",
            b"missing",
            b"missing/m",
            b"file",
            b".",
        ),
        *(b"", b"/", b"/proc", b"/sys", b"..", b"ha#sh", b"a b", b"n" * 255, b"loop", b"file/x", b"\xff"),
    ]
)
unmounts = st.builds(
    lambda options, place, before: Case((b"-u", *options, place), before=before, mountpoint=place),
    _unmount_options,
    _places,
    st.sampled_from([*_EVERYWHERE, Before.MOUNTED, Before.BUSY]),
)
