"""Decides the mount options of a FUSE file system, from the volume's options and those that the FUSE program asks for.

The volume's options have precedence (its `readOnly`, then CSI `mount_flags`, then the attribute `mountOptions`), and the
program cannot override them. nosuid and nodev always apply: the program decides what its files look like, and a setuid file
or a device node that it invents must give no rights on the node.
"""

import logging
import re
from dataclasses import dataclass
from errno import EINVAL

from driver.linux import syscalls
from fusermount3_proxy.wire import options
from fusermount3_proxy.wire.options import MountOptions, OptionError
from fusermount3_proxy.wire.protocol import from_wire, to_wire

# The flag of mount(2) for each mount option that options.FLAGS sets or clears.
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
    "nosuid": syscalls.MS_NOSUID,
    "nodev": syscalls.MS_NODEV,
}
# The same for fsmount(2). A flag that is missing here is the kernel's default, or one of the file system and not of the mount.
_ATTRIBUTES = {
    "ro": syscalls.MOUNT_ATTR_RDONLY,
    "noexec": syscalls.MOUNT_ATTR_NOEXEC,
    "noatime": syscalls.MOUNT_ATTR_NOATIME,
    "nodiratime": syscalls.MOUNT_ATTR_NODIRATIME,
    "strictatime": syscalls.MOUNT_ATTR_STRICTATIME,
    "nosymfollow": syscalls.MOUNT_ATTR_NOSYMFOLLOW,
    "nosuid": syscalls.MOUNT_ATTR_NOSUID,
    "nodev": syscalls.MOUNT_ATTR_NODEV,
}
_SUPER_BLOCK_FLAGS = ("ro", "sync", "dirsync", "lazytime")
_FSCONFIG_MAX = 255  # bytes of a value that fsconfig(2) takes; mount(2) takes longer ones
_ALWAYS = ("nosuid", "nodev")

NO_DEFAULT_PERMISSIONS = "no_default_permissions"

OPTIONS_MAX = 4096  # characters of a volume's options: mount(2) accepts no more bytes than that
_WARNINGS_MAX = 10

_NUMBER = re.compile(r"0[xX](?P<hex>[0-9a-fA-F]+)|(?P<octal>0[0-7]+)|[0-9]|[1-9][0-9]+")
_UINT_MAX = 2**32 - 1
_DIGITS_MAX = len(f"{_UINT_MAX:o}")

_DIRECTORY = 0o40000  # S_IFDIR: the root of the mount must be a directory, as a volume's target is


@dataclass(frozen=True, slots=True)
class VolumePolicy:
    """Holds the mount options that a volume prescribes, and whether a FUSE program may turn off default_permissions.

    `warnings` names the options that were ignored.
    """

    options: MountOptions
    may_drop_default_permissions: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class MountArguments:
    """Holds the arguments of mount(2), without the target and without the fd of the FUSE device."""

    source: bytes
    fstype: bytes
    flags: int
    data: bytes

    def with_fd(self, fd: int) -> bytes:
        """Return the `data` argument of mount(2), with the fd of the FUSE device."""
        return b"fd=%d," % fd + self.data


class Refused(Exception):
    """Reports that a FUSE program's request is refused. The text is fusermount3's own, and `errno` is sent along with it."""

    level = logging.WARNING  # of the line in the log

    def __init__(self, text: str, errno: int = EINVAL) -> None:
        super().__init__(text)
        self.errno = errno


class NotMounted(Refused):
    """Reports that there is nothing to unmount. That is usual: start scripts unmount what a crash could have left."""

    level = logging.INFO


def of_volume(read_only: bool, mount_flags: list[str], attribute: str, where_attribute: str = "mountOptions") -> VolumePolicy:
    """Return a volume's policy. Unknown options are ignored with a warning, because manifests for the Go plugin have some.

    `attribute` is the text of the volume attribute `mountOptions`, with commas between options. `o=X` in it means X. Warnings say
    that an option of it is from `where_attribute`.
    """
    merged = MountOptions()
    warnings: list[str] = []
    may_drop = False
    if read_only:
        merged.flags["ro"] = True
    flags = [option for text in mount_flags for option in _split(text)]
    attributes = [option.removeprefix("o=") for option in _split(attribute)]
    for where, given in (("mount flags", flags), (where_attribute, attributes)):
        may_drop = may_drop or NO_DEFAULT_PERMISSIONS in given
        source = MountOptions()
        for option in given:
            if option == NO_DEFAULT_PERMISSIONS:
                continue
            try:
                parsed = options.parse(option)
                _check_option(parsed)
            except (OptionError, Refused) as error:
                reason = str(error).removeprefix("mount failed: ")  # nothing is mounted yet
                text = reason if option in reason else f"{reason} ({option})"
                text = from_wire(text).decode("utf-8", "replace")
                warnings.append(f"{where}: {text}; ignored")
                continue
            warnings += [f"{where}: {warning}" for warning in parsed.warnings]
            # If two options of one source contradict each other, the last one applies, as in `-o`.
            later, source = source, parsed
            _merge(source, later)
        _merge(merged, source)
    if len(warnings) > _WARNINGS_MAX:
        warnings[_WARNINGS_MAX:] = [f"{len(warnings) - _WARNINGS_MAX} more warnings"]
    return VolumePolicy(merged, may_drop, tuple(warnings))


def mount_arguments(volume: VolumePolicy, requested: str, uid: int, gid: int) -> MountArguments:
    """Return the arguments of mount(2) for a program that requests these options (`-o`) and runs as `uid` and `gid`.

    Raises Refused.
    """
    program = _parse(requested)
    merged = MountOptions()
    _merge(merged, volume.options)
    _merge(merged, program)

    # These flags stop a pod from giving setuid files or device nodes to the node and to other containers.
    flags = _FLAGS["nosuid"] | _FLAGS["nodev"]
    for flag, on in merged.flags.items():
        if on:
            flags |= _FLAGS[flag]

    # Containers of any uid use the volume, so allow_other turns off the kernel's rule that only the mounter has access. Instead
    # the kernel checks the files' modes, unless both the program and the volume turn that off.
    data = [f"rootmode={_DIRECTORY:o}", f"user_id={uid}", f"group_id={gid}", "allow_other"]
    checks_by_itself = "allow_other" in program.access and "default_permissions" not in program.access
    if not (checks_by_itself and volume.may_drop_default_permissions):
        data.append("default_permissions")
    for name, texts in merged.numbers.items():
        data.append(f"{name}={_number(texts[-1])}")

    # The source and the type in mount tables are those of a mount by fusermount3.
    source = merged.fsname if merged.fsname is not None else merged.subtype if merged.subtype is not None else "/dev/fuse"
    fstype = "fuse" if merged.subtype is None else f"fuse.{merged.subtype}"
    if merged.subtype == "":
        raise Refused("mount failed: Invalid argument")
    return MountArguments(_to_bytes(source), _to_bytes(fstype), flags, ",".join(data).encode("ascii"))


@dataclass(frozen=True, slots=True)
class DetachedArguments:
    """Holds the arguments of a FUSE mount by fsconfig(2) and fsmount(2), but those that depend on the mountpoint and on the caller.

    `source` and `fstype` are what mount tables will show.
    """

    options: tuple[bytes, ...]
    attributes: int
    source: str
    fstype: str


def detached_arguments(requested: str, may_allow_other: bool) -> DetachedArguments:
    """Return the arguments for a mount in the program's own container, which are those that fusermount3 would use. Raises Refused."""
    program = _parse(requested)
    if "allow_other" in program.access and not may_allow_other:
        raise Refused("option allow_other only allowed if the driver runs with --fuse-allow-other")
    if program.subtype == "":
        raise Refused("mount failed: Invalid argument")
    source = _to_bytes(program.fsname if program.fsname is not None else program.subtype or "/dev/fuse")[:_FSCONFIG_MAX]
    given = [b"source=" + source]
    if program.subtype is not None:
        given.append(b"subtype=" + _to_bytes(program.subtype))
    given += [name.encode() for name in sorted(program.access)]
    given += [f"{name}={_number(texts[-1])}".encode() for name, texts in program.numbers.items()]
    # These attributes stop a program from giving its container setuid files or device nodes that it does not have.
    attributes = _ATTRIBUTES["nosuid"] | _ATTRIBUTES["nodev"]
    for flag, on in program.flags.items():
        if on:
            # noatime and strictatime exclude each other, as the flags of mount(2) do not.
            attributes |= _ATTRIBUTES.get(flag, 0) if flag != "strictatime" or not program.flags.get("noatime") else 0
            if flag in _SUPER_BLOCK_FLAGS:
                given.append(flag.encode())
    shown = source.decode("utf-8", "replace")
    fstype = "fuse" if program.subtype is None else f"fuse.{_to_bytes(program.subtype).decode('utf-8', 'replace')}"
    return DetachedArguments(tuple(given), attributes, shown, fstype)


def _parse(requested: str) -> MountOptions:
    """Return what a program's -o asks for. Raises Refused."""
    try:
        program = options.parse(requested)
    except OptionError as error:
        raise Refused(str(error)) from None
    _check_numbers(program)
    return program


def lacking(volume: VolumePolicy, options: str, super_options: str) -> list[str]:
    """Return which restrictions of the volume an existing mount lacks. The mount's options are given as in mountinfo (proc(5))."""
    present = {*options.split(","), *super_options.split(",")}
    required = [flag for flag in ("ro", "noexec", "nosuid", "nodev") if volume.options.flags.get(flag) or flag in _ALWAYS]
    return [flag for flag in required if flag not in present]


def _merge(into: MountOptions, more: MountOptions) -> None:
    """Add to `into` the options of `more` that `into` does not set yet."""
    for flag, on in more.flags.items():
        into.flags.setdefault(flag, on)
    for name, texts in more.numbers.items():
        into.numbers.setdefault(name, texts)
    into.fsname = more.fsname if into.fsname is None else into.fsname
    into.subtype = more.subtype if into.subtype is None else into.subtype


def _check_option(given: MountOptions) -> None:
    """Raise Refused for a volume's option that would make every mount fail."""
    if "blksize" in given.numbers:
        raise Refused("blksize is for block devices")
    _check_numbers(given)
    for name in (given.fsname, given.subtype):
        if name is not None:
            _to_bytes(name)


def _check_numbers(given: MountOptions) -> None:
    for texts in given.numbers.values():
        for text in texts:
            _number(text)


def _number(text: str) -> int:
    """Parse a number as the kernel's kstrtouint() does with base 0. Raises Refused.

    The caller passes the number to mount(2), and never the text. This stops a pod from adding options of its own with a text
    that ends this option and begins another one.
    """
    digits = text.removesuffix("\n").removeprefix("+")
    match = _NUMBER.fullmatch(digits)
    if match is not None:
        base = 16 if match["hex"] else 8 if match["octal"] else 10
        significant = (match["hex"] or digits).lstrip("0") or "0"
        # int() raises on a text of thousands of digits.
        if len(significant) <= _DIGITS_MAX and (value := int(significant, base)) <= _UINT_MAX:
            return value
    raise Refused("mount failed: Invalid argument")


def _split(text: str) -> list[str]:
    # Block scalars of YAML have newlines. strip() without arguments would also remove bytes at the end of UTF-8 characters.
    parts = (option.strip(" \t\r\n") for option in options.split(to_wire(text.encode("utf-8", "surrogateescape"))))
    return [option for option in parts if option]


def _to_bytes(text: str) -> bytes:
    """Return a name as bytes for mount(2). Raises Refused for an empty one and for one that holds NUL, as the kernel would."""
    raw = from_wire(text)
    if not raw or b"\0" in raw:
        raise Refused("mount failed: Invalid argument")
    return raw
