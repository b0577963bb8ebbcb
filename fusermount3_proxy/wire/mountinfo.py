"""Parses /proc/PID/mountinfo, which proc_pid_mountinfo(5) describes. A line looks like this:

    36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
    (1)(2)(3)   (4)   (5)     (6)       (7)   (8) (9)   (10)         (11)

(1) mount id (2) parent id (3) major:minor of st_dev (4) root of the mount within its file system (5) mount point
(6) mount options (7) optional fields (8) separator (9) file system type (10) source (11) super block options.
Space, tab, newline and backslash are written as \\040, \\011, \\012 and \\134. Paths and sources are bytes, since they may hold any.
"""

# What the driver mounts at a volume that waits for its FUSE program.
PLACEHOLDER_TYPE = "tmpfs"
PLACEHOLDER_SOURCE = "mfcp-waiting"


class Mount:
    """Holds the fields of one line. `device` is MAJOR:MINOR, and `shared` is whether the mount has a peer group."""

    __slots__ = ("device", "fstype", "mount_id", "options", "parent_id", "path", "root", "shared", "source", "super_options")

    def __init__(
        self,
        mount_id: int,
        parent_id: int,
        device: str,
        root: bytes,
        path: bytes,
        options: str,
        shared: bool,
        fstype: str,
        source: bytes,
        super_options: str,
    ) -> None:
        self.mount_id = mount_id
        self.parent_id = parent_id
        self.device = device
        self.root = root
        self.path = path
        self.options = options
        self.shared = shared
        self.fstype = fstype
        self.source = source
        self.super_options = super_options

    @property
    def is_fuse(self) -> bool:
        """Return whether the file system is a FUSE one: its type is `fuse`, or `fuse.` and a subtype."""
        return self.fstype == "fuse" or self.fstype.startswith("fuse.")


def is_placeholder(mount: Mount) -> bool:
    """Return whether a mount is a placeholder of this driver or a former one."""
    return mount.fstype == PLACEHOLDER_TYPE and mount.source == PLACEHOLDER_SOURCE.encode()


def parse(text: bytes) -> list[Mount]:
    """Parse the text of a mountinfo file. A line that is cut off or has another format is left out."""
    mounts = []
    for line in text.split(b"\n"):
        fields = line.split(b" ")
        try:
            separator = fields.index(b"-", 6)
            mounts.append(
                Mount(
                    mount_id=int(fields[0]),
                    parent_id=int(fields[1]),
                    device=fields[2].decode("ascii"),
                    root=unescape(fields[3]),
                    path=unescape(fields[4]),
                    options=fields[5].decode("latin-1"),
                    shared=any(field.startswith(b"shared:") for field in fields[6:separator]),
                    fstype=unescape(fields[separator + 1]).decode("latin-1"),
                    source=unescape(fields[separator + 2]),
                    super_options=fields[separator + 3].decode("latin-1"),
                )
            )
        except (ValueError, IndexError):
            continue
    return mounts


def unescape(field: bytes) -> bytes:
    """Return the field with its octal escapes replaced by the bytes that they stand for."""
    if b"\\" not in field:
        return field
    head, *rest = field.split(b"\\")
    out = [head]
    for part in rest:
        digits = part[:3]
        if len(digits) == 3 and all(c in b"01234567" for c in digits) and int(digits, 8) < 256:
            out.append(bytes([int(digits, 8)]) + part[3:])
        else:
            out.append(b"\\" + part)
    return b"".join(out)


def stack(mounts: list[Mount], path: bytes) -> list[Mount]:
    """Return the mounts at `path`. Each lies on the one before it, so a path walk ends at the last one."""
    here = {mount.parent_id: mount for mount in mounts if mount.path == path}
    ids = {mount.mount_id for mount in here.values()}
    lowest = [mount for mount in here.values() if mount.parent_id not in ids]
    ordered = lowest[-1:]
    while ordered and (above := here.get(ordered[-1].mount_id)) is not None and above not in ordered:
        ordered.append(above)
    return ordered


def topmost(mounts: list[Mount], path: bytes) -> Mount | None:
    """Return the mount that a path walk to `path` ends at, None if `path` is no mount point."""
    here = stack(mounts, path)
    return here[-1] if here else None


def holding(mounts: list[Mount], path: bytes) -> Mount | None:
    """Return the mount that holds `path`, which is absolute and without symlinks; None if the table has no root."""
    at = path
    while True:
        mount = topmost(mounts, at)
        if mount is not None or at == b"/":
            return mount
        at = at.rpartition(b"/")[0] or b"/"
