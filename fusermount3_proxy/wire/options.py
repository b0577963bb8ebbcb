"""Parses the text of `-o` as libfuse's fusermount3 3.14 does, and also accepts the options of later versions.

The client parses the text to warn and refuse in fusermount3's own words. The driver parses it
again by the same rules, since a pod can send anything, and then applies the volume's policy (driver/model/policy.py).
"""

import posix

# Maps each flag to the mount option that it turns on or off. driver/model/policy.py has the flag of mount(2) for each option.
FLAGS = {
    "rw": ("ro", False),
    "ro": ("ro", True),
    "exec": ("noexec", False),
    "noexec": ("noexec", True),
    "async": ("sync", False),
    "sync": ("sync", True),
    "atime": ("noatime", False),
    "noatime": ("noatime", True),
    "dirsync": ("dirsync", True),
    # 3.17 knows these, and 3.14 does not. They are harmless, because they ask for the kernel's default, or for something that
    # only the program and the users of its files notice.
    "diratime": ("nodiratime", False),
    "nodiratime": ("nodiratime", True),
    "lazytime": ("lazytime", True),
    "nolazytime": ("lazytime", False),
    "relatime": ("relatime", True),
    "norelatime": ("relatime", False),
    "strictatime": ("strictatime", True),
    "nostrictatime": ("strictatime", False),
    "symfollow": ("nosymfollow", False),
    "nosymfollow": ("nosymfollow", True),
    "nosuid": ("nosuid", True),
    "nodev": ("nodev", True),
}

# Ignored with a warning: libfuse accepts them only from root, and a pod's root is not the node's.
UNSAFE = ("suid", "dev")

# libfuse adds the first four after its own mount(2) has failed, and the driver uses values of its own. `x-*` options are for
# tools that read mount tables: 3.14 refuses them as unknown, and 3.17 only writes them to /etc/mtab.
SKIPPED_PREFIXES = ("fd=", "rootmode=", "user_id=", "group_id=", "x-")
SKIPPED = ("nonempty",)  # libfuse 2 needs it to mount on a folder that is not empty

ACCESS = ("allow_other", "default_permissions")
NUMBERS = ("max_read", "blksize")


class OptionError(Exception):
    """Reports that an option is refused. The text is fusermount3's, without the program's name.

    `warnings` are those for the options before the refused one.
    """

    def __init__(self, text: str, warnings: list[str]) -> None:
        super().__init__(text)
        self.warnings = warnings


class MountOptions:
    """Holds what one `-o` text asks for.

    `flags` maps a mount option (the values of FLAGS) to whether it is on; `access` holds the names of ACCESS that were
    given; `numbers` maps the names of NUMBERS to all texts that were given, of which the last counts and each must be a
    number; `fsname` and `subtype` are None where they were not given; `warnings` are lines that fusermount3 prints and
    goes on.
    """

    __slots__ = ("access", "auto_unmount", "flags", "fsname", "numbers", "subtype", "warnings")

    def __init__(self) -> None:
        self.flags: dict[str, bool] = {}
        self.access: set[str] = set()
        self.numbers: dict[str, list[str]] = {}
        self.fsname: str | None = None
        self.subtype: str | None = None
        self.auto_unmount = False
        self.warnings: list[str] = []


def parse(text: str) -> MountOptions:
    """Parse the text of one -o. If two options contradict each other, the last one counts. Raises OptionError."""
    found = MountOptions()
    for option in split(text):
        name, equals, value = option.partition("=")
        if name == "fsname" and equals:
            found.fsname = unescape(value)
        elif name == "subtype" and equals:
            found.subtype = unescape(value)
        elif option.startswith(SKIPPED_PREFIXES) or option in SKIPPED:
            continue
        elif option in FLAGS:
            flag, on = FLAGS[option]
            found.flags[flag] = on
        elif option in ACCESS:
            found.access.add(option)
        elif name in NUMBERS and equals:
            found.numbers.setdefault(name, []).append(value)
        elif option == "auto_unmount":
            found.auto_unmount = True
        elif option in UNSAFE:
            found.warnings.append(f"unsafe option {option} ignored")
        elif option == "large_read":
            release = ".".join(posix.uname().release.split(".")[:2])
            found.warnings.append(f"note: 'large_read' mount option is deprecated for {release} kernels")
        elif option == "blkdev":
            raise OptionError("option blkdev is privileged", found.warnings)
        else:
            raise OptionError(f"unknown option '{option}'", found.warnings)
    return found


def split(text: str) -> list[str]:
    """Split a text at its commas. No empty option follows a comma at the end.

    A backslash escapes a comma only in the values of fsname and subtype. It stays in the option's text, for unescape().
    """
    parts = []
    start = 0
    while start < len(text):
        end = text.find(",", start)
        if text.startswith(("fsname=", "subtype="), start):
            end = _end_of_value(text, start)
        elif end < 0:
            end = len(text)
        parts.append(text[start:end])
        start = end + 1
    return parts


def _end_of_value(text: str, start: int) -> int:
    end = start
    while end < len(text) and text[end] != ",":
        end += 2 if text[end] == "\\" else 1
    return min(end, len(text))


def unescape(value: str) -> str:
    """Return the value without its escapes. A backslash stands for the character after it, and for itself at the end."""
    if "\\" not in value:
        return value
    out = []
    characters = iter(value)
    for character in characters:
        out.append(next(characters, "\\") if character == "\\" else character)
    return "".join(out)
