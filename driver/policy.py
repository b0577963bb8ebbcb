"""Which mount options a FUSE file system gets: what the volume says, then what the program asks. Pure.

The volume speaks first (its `readOnly`, then CSI `mount_flags`, then the attribute `mountOptions`), and what it has
said the program cannot change. Whatever anybody says, nosuid and nodev stay: the program decides what its files look
like, and a setuid file or a device node of its making must mean nothing on the node.
"""

import re
from dataclasses import dataclass
from errno import EINVAL

from driver import syscalls
from fusermount3_proxy import options
from fusermount3_proxy.options import MountOptions, OptionError
from fusermount3_proxy.protocol import from_wire, to_wire

_FLAGS = {
    "ro": syscalls.MS_RDONLY,
    "noexec": syscalls.MS_NOEXEC,
    "sync": syscalls.MS_SYNCHRONOUS,
    "dirsync": syscalls.MS_DIRSYNC,
    "noatime": syscalls.MS_NOATIME,
    "nodiratime": syscalls.MS_NODIRATIME,
    "relatime": syscalls.MS_RELATIME,
    "strictatime": syscalls.MS_STRICTATIME,
    "lazytime": syscalls.MS_LAZYTIME,
    "nosymfollow": syscalls.MS_NOSYMFOLLOW,
}
_ALWAYS = syscalls.MS_NOSUID | syscalls.MS_NODEV
_KEPT = ("nosuid", "nodev")  # the same, by name

NO_DEFAULT_PERMISSIONS = "no_default_permissions"

OPTIONS_MAX = 4096  # characters of a volume's options; mount(2) takes as many bytes
_WARNINGS_MAX = 10

_NUMBER = re.compile(r"0[xX](?P<hex>[0-9a-fA-F]+)|(?P<octal>0[0-7]+)|[0-9]|[1-9][0-9]+")
_UINT_MAX = 2**32 - 1
_DIGITS_MAX = len(f"{_UINT_MAX:o}")

_DIRECTORY = 0o40000  # rootmode: kubelet's target is one


@dataclass(frozen=True, slots=True)
class VolumePolicy:
    """What a volume says: `options` in fusermount3's grammar, and whether the kernel's permission checks may be left out."""

    options: MountOptions
    may_drop_default_permissions: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class KernelMount:
    """The arguments of mount(2), but for the target and the fd that `data` begins with (see with_fd)."""

    source: bytes
    fstype: bytes
    flags: int
    data: bytes

    def with_fd(self, fd: int) -> bytes:
        """The data of mount(2) for this fd."""
        return b"fd=%d," % fd + self.data


class Refused(Exception):
    """What the program asks for cannot be mounted. The text is fusermount3's; `errno` goes with it."""

    def __init__(self, text: str, errno: int = EINVAL) -> None:
        super().__init__(text)
        self.errno = errno


def of_volume(read_only: bool, mount_flags: list[str], attribute: str) -> VolumePolicy:
    """A volume's policy. What is not known is left out with a warning, as manifests for the Go plugin need it.

    `attribute` is the text of `mountOptions`: comma-separated, and `o=X` means X.
    """
    merged = MountOptions()
    warnings: list[str] = []
    may_drop = False
    if read_only:
        merged.flags["ro"] = True
    flags = [option for text in mount_flags for option in _split(text)]
    attributes = [option.removeprefix("o=") for option in _split(attribute)]
    for where, said in (("mount flags", flags), ("mountOptions", attributes)):
        may_drop = may_drop or NO_DEFAULT_PERMISSIONS in said
        source = MountOptions()
        for option in said:
            if option == NO_DEFAULT_PERMISSIONS:
                continue
            try:
                parsed = options.parse(option)
                _check(parsed)
            except (OptionError, Refused) as error:
                text = from_wire(f"{error} ({option})").decode("utf-8", "replace")
                warnings.append(f"{where}: {text}; ignored")
                continue
            warnings += [f"{where}: {warning}" for warning in parsed.warnings]
            # Within one source the last word counts, as in a -o.
            later, source = source, parsed
            _merge(source, later)
        _merge(merged, source)
    if len(warnings) > _WARNINGS_MAX:
        warnings[_WARNINGS_MAX:] = [f"{len(warnings) - _WARNINGS_MAX} more warnings"]
    return VolumePolicy(merged, may_drop, tuple(warnings))


def kernel_mount(volume: VolumePolicy, asked: str, uid: int, gid: int) -> KernelMount:
    """What to give to mount(2) for a program that asks for the options `asked` and runs as `uid` and `gid`.

    Raises Refused.
    """
    try:
        program = options.parse(asked)
    except OptionError as error:
        raise Refused(str(error)) from None
    _check_numbers(program)
    merged = MountOptions()
    _merge(merged, volume.options)
    _merge(merged, program)

    flags = _ALWAYS
    for flag, on in merged.flags.items():
        if on:
            flags |= _FLAGS.get(flag, 0)

    # The driver mounts for containers of any uid, so the kernel's "only the mounter" rule goes, and in its place the
    # kernel checks modes, unless both the program and the volume ask it not to.
    data = [f"rootmode={_DIRECTORY:o}", f"user_id={uid}", f"group_id={gid}", "allow_other"]
    wants_none = "allow_other" in program.access and "default_permissions" not in program.access
    if not (wants_none and volume.may_drop_default_permissions):
        data.append("default_permissions")
    for name, texts in merged.numbers.items():
        data.append(f"{name}={_number(texts[-1])}")

    # fusermount3's rule for what mount tables show.
    source = merged.fsname if merged.fsname is not None else merged.subtype if merged.subtype is not None else "/dev/fuse"
    fstype = "fuse" if merged.subtype is None else f"fuse.{merged.subtype}"
    if merged.subtype == "":
        raise Refused("mount failed: Invalid argument")
    return KernelMount(_raw(source), _raw(fstype), flags, ",".join(data).encode("ascii"))


def lacking(volume: VolumePolicy, options: str, super_options: str) -> list[str]:
    """What a volume asks for and a mount that was there before does not have; its options as mountinfo has them."""
    there = {*options.split(","), *super_options.split(",")}
    return [flag for flag in ("ro", "noexec", "nosuid", "nodev") if (volume.options.flags.get(flag) or flag in _KEPT) and flag not in there]


def _merge(into: MountOptions, more: MountOptions) -> None:
    """Take from `more` what `into` does not say yet."""
    for flag, on in more.flags.items():
        into.flags.setdefault(flag, on)
    for name, texts in more.numbers.items():
        into.numbers.setdefault(name, texts)
    into.fsname = more.fsname if into.fsname is None else into.fsname
    into.subtype = more.subtype if into.subtype is None else into.subtype


def _wire(text: str) -> str:
    return to_wire(text.encode("utf-8", "surrogateescape"))


def _check(said: MountOptions) -> None:
    """Raises Refused for a volume's option that would make every mount fail."""
    if "blksize" in said.numbers:
        raise Refused("blksize is for block devices")
    _check_numbers(said)
    for name in (said.fsname, said.subtype):
        if name is not None:
            _raw(name)


def _check_numbers(said: MountOptions) -> None:
    for texts in said.numbers.values():
        for text in texts:
            _number(text)


def _number(text: str) -> int:
    """A number as the kernel reads it, kstrtouint() with base 0.

    Only the number is passed on: a text could end the option and begin another one.
    """
    digits = text.removesuffix("\n").removeprefix("+")
    match = _NUMBER.fullmatch(digits)
    if match is not None:
        base = 16 if match["hex"] else 8 if match["octal"] else 10
        significant = (match["hex"] or digits).lstrip("0") or "0"
        # int() takes no text of thousands of digits.
        if len(significant) <= _DIGITS_MAX and (value := int(significant, base)) <= _UINT_MAX:
            return value
    raise Refused("mount failed: Invalid argument")


def _split(text: str) -> list[str]:
    # YAML's block scalars bring newlines. (strip() alone would take the ends of UTF-8 characters, too.)
    parts = (option.strip(" \t\r\n") for option in options.split(_wire(text)))
    return [option for option in parts if option]


def _raw(text: str) -> bytes:
    raw = from_wire(text)
    if not raw or b"\0" in raw:
        raise Refused("mount failed: Invalid argument")
    return raw
