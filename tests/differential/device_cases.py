"""Define what both sides are asked where mounts appear at their mountpoints, beside what cases.py has."""

import cases
from cases import Case, Words
from device_sides import FILES, GROUPS
from hypothesis import strategies as st

_OF_OTHER_MOUNTS = (
    *(b"read-only", b"read-only/x", b"read-only/file", b"tmpfs", b"tmpfs/x", b"tmpfs/file"),
    *(b"shared", b"shared/x", b"shared/file", b"bound", b"bound/m", b"/dev/shm", b"/dev/shm/mine", b"/dev", b"/dev/pts", b"/dev/mqueue"),
    *(b"ramfs", b"ramfs/file", b"hugetlbfs", b"hugetlbfs/file", b"foreign", b"foreign/d", b"foreign/f", b"/proc/sys"),
    *(b"/sys/fs/cgroup", b"/sys/kernel", b"/opt", b"/opt/mfcp", b"/opt/mfcp/socket", b"/tmp", b"/usr/bin/fusermount3", b"/etc"),
)

MOUNTPOINTS = (*cases.MOUNTPOINTS, *(name.encode() for name in (*GROUPS, *FILES)), *_OF_OTHER_MOUNTS)

_shapes = st.sampled_from(["{}", "{}", "{}/", "{}//", "{}/.", "./{}", "{}/..", ".//{}", "{}/x"])
_places = st.builds(lambda raw, shape: shape.encode().replace(b"{}", raw) if raw else raw, st.sampled_from(MOUNTPOINTS), _shapes)


def _at(mountpoint: bytes, options: Words) -> Case:
    return Case((*options, b"--", mountpoint), mountpoint=mountpoint)


mountpoints = st.builds(_at, _places, st.sampled_from([(), (), (b"-o", b"ro"), (b"-u",), (b"-u", b"-q"), (b"-uz",)]))
