"""Test which mountpoints a container may have, as rules without a kernel."""

import stat
from errno import EACCES, EPERM

import pytest

from driver.devices import rules
from driver.devices.rules import Caller, Mountpoint
from driver.linux.syscalls import FileInfo
from fusermount3_proxy.wire.mountinfo import Mount

USER = Caller(uid=1000, groups=(1000, 77), is_privileged=False, uid_inside=1000)
ROOT = Caller(uid=0, groups=(0,), is_privileged=True, uid_inside=0)
WEAK_ROOT = Caller(uid=0, groups=(0,), is_privileged=False, uid_inside=0)  # without CAP_DAC_OVERRIDE


def place(
    mode: int = stat.S_IFDIR | 0o755,
    uid: int = 1000,
    gid: int = 1000,
    fstype: str = "overlay",
    path: bytes = b"/mnt/m",
    path_in_namespace: bytes = b"",
    shared: bool = False,
    device: str = "0:50",
    options: str = "rw",
    super_options: str = "rw",
) -> Mountpoint:
    mount = Mount(7, 1, device, b"/", b"/", options, shared, fstype, b"source", super_options)
    return Mountpoint(FileInfo(mode, uid, gid, device, 7, False), mount, path, path_in_namespace or path)


def refusal(mountpoint: Mountpoint, caller: Caller = USER, own: tuple[str, ...] = ()) -> str:
    found = rules.check(mountpoint, caller, "/x", own)
    return "" if found is None else found.text


@pytest.mark.parametrize("kind", [stat.S_IFDIR, stat.S_IFREG])
def test_what_is_the_users_own(kind: int) -> None:
    assert refusal(place(kind | 0o755)) == ""


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK])
@pytest.mark.parametrize("caller", [USER, ROOT])
def test_only_directories_and_regular_files(kind: int, caller: Caller) -> None:
    assert refusal(place(kind | 0o777), caller) == "mountpoint /x is not a directory or a regular file"


@pytest.mark.parametrize(
    ("mode", "uid", "gid", "text"),
    [
        (0o555, 1000, 1000, "user has no write access to mountpoint /x"),
        (0o077, 1000, 1000, "user has no write access to mountpoint /x"),  # the owner's bits count, and no others
        (0o707, 5, 77, "user has no write access to mountpoint /x"),  # the group's
        (0o775, 5, 77, ""),
        (0o775, 5, 78, "user has no write access to mountpoint /x"),
        (0o777, 5, 5, ""),
        (0o1777, 5, 5, "mountpoint /x not owned by user"),
        (0o1700, 1000, 5, ""),
    ],
)
def test_owner_modes_and_sticky_directories(mode: int, uid: int, gid: int, text: str) -> None:
    assert refusal(place(stat.S_IFDIR | mode, uid, gid)) == text
    assert refusal(place(stat.S_IFDIR | mode, uid, gid), ROOT) == ""


def test_a_file_that_cannot_be_written() -> None:
    found = rules.check(place(stat.S_IFREG | 0o644, 5, 5), USER, "/x", ())
    assert found is not None
    assert (found.errno, found.text) == (EACCES, "failed to open /x: Permission denied")
    assert refusal(place(stat.S_IFREG | 0o1666, 5, 5)) == ""  # the sticky bit of a file means nothing


@pytest.mark.parametrize(("options", "super_options"), [("nosuid,ro", "rw"), ("rw", "ro,size=4k")])
def test_a_read_only_file_system(options: str, super_options: str) -> None:
    """A ConfigMap's files have mode 0777, and nobody can write them. What is the user's own may be read-only."""
    folder = place(stat.S_IFDIR | 0o777, uid=5, options=options, super_options=super_options)
    file = place(stat.S_IFREG | 0o777, uid=5, options=options, super_options=super_options)
    assert refusal(folder) == "user has no write access to mountpoint /x"
    assert refusal(file) == "failed to open /x: Read-only file system"
    assert refusal(folder, ROOT) == refusal(file, ROOT) == ""
    assert refusal(place(stat.S_IFDIR | 0o777, uid=5, options="rw,erofs", super_options="errors=remount-ro")) == ""
    assert refusal(place(options=options, super_options=super_options)) == ""


def test_root_without_the_capability_is_a_user() -> None:
    assert refusal(place(stat.S_IFDIR | 0o755, 5, 5), WEAK_ROOT) == "user has no write access to mountpoint /x"
    assert refusal(place(stat.S_IFDIR | 0o755, 0, 0), WEAK_ROOT) == ""


@pytest.mark.parametrize("fstype", ["proc", "sysfs", "devtmpfs", "cgroup2", "mqueue", "devpts", "9p", "virtiofs", "nsfs", "bpf"])
@pytest.mark.parametrize("caller", [USER, ROOT])
def test_file_systems_that_invent_their_files(fstype: str, caller: Caller) -> None:
    found = rules.check(place(fstype=fstype), caller, "/x", ())
    assert found is not None
    assert (found.errno, found.is_file_system) == (EPERM, True)


@pytest.mark.parametrize("fstype", ["fuse", "fuse.sshfs"])
@pytest.mark.parametrize("caller", [USER, ROOT])
def test_a_fuse_file_system_must_be_the_containers_own(fstype: str, caller: Caller) -> None:
    assert "a FUSE file system that this container has not mounted here" in refusal(place(fstype=fstype, device="0:60"), caller)
    assert refusal(place(fstype=fstype, device="0:60"), caller, ("0:60",)) == ""


@pytest.mark.parametrize("forbidden", [b"/proc", b"/sys", b"/dev", b"/opt/mfcp"])
@pytest.mark.parametrize("caller", [USER, ROOT])
def test_what_the_engine_has_made(forbidden: bytes, caller: Caller) -> None:
    """The caller's view and that of its namespace both count: chroot(2) changes one of them."""
    for path in (forbidden, forbidden + b"/shm/x"):
        assert "is forbidden" in refusal(place(fstype="tmpfs", path=path), caller)
        assert "is forbidden" in refusal(place(fstype="tmpfs", path_in_namespace=path), caller)
    assert refusal(place(fstype="tmpfs", path=forbidden + b"x"), caller) == ""


@pytest.mark.parametrize("caller", [USER, ROOT])
def test_the_root_directory_and_shared_mounts(caller: Caller) -> None:
    assert refusal(place(path=b"/"), caller) == "mounting on /x is forbidden: it is the root directory"
    assert refusal(place(path_in_namespace=b"/"), caller) == "mounting on /x is forbidden: it is the root directory"
    assert "shared propagation" in refusal(place(shared=True), caller)


@pytest.mark.parametrize(
    ("uid", "effective", "owns", "expected"),
    [(0, 2, True, True), (0, 0, True, False), (0, 2, False, False), (1000, 2, True, False)],
)
def test_whom_no_mode_bits_stop(uid: int, effective: int, owns: bool, expected: bool) -> None:
    assert rules.is_privileged(uid, effective, owns) is expected


def test_too_many() -> None:
    assert rules.too_many_mounts(3).text == "too many FUSE filesystems mounted; this fuse device allows 3 (--fuse-mounts-max)"


@pytest.mark.parametrize(
    ("options", "is_refused"),
    [
        ("rw,user_id=1000,group_id=1000", False),
        ("rw,user_id=1000,group_id=1000,default_permissions", True),
        ("rw,user_id=10001,group_id=1000,allow_other", True),
        ("rw,user_id=0,group_id=0,allow_other", True),
    ],
)
def test_the_users_own_program_says_who_may_write_in_its_file_system(options: str, is_refused: bool) -> None:
    """The owners in sshfs's file system are those of another machine."""
    there = place(stat.S_IFDIR | 0o755, 4711, 4711, fstype="fuse.sshfs", super_options=options)
    assert bool(refusal(there, own=("0:50",))) is is_refused
