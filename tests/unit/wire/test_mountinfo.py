import pytest

from fusermount3_proxy.wire import mountinfo

# These lines were captured on nodes and in containers.
ROOT = b"22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,discard,errors=remount-ro"
PROC = b"23 22 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw"
KUBELET = b"410 22 254:1 /var/lib/kubelet /var/lib/kubelet rw,relatime shared:1 - ext4 /dev/vda1 rw,discard,errors=remount-ro"
POD = b"/var/lib/kubelet/pods/0b1e/volumes/kubernetes.io~csi/data/mount"
PLACEHOLDER = b"530 410 0:60 / " + POD + b" rw,nosuid,nodev,noexec,relatime shared:301 - tmpfs mfcp-waiting rw,size=4k,nr_inodes=1,mode=777"
SSHFS = b"541 530 0:61 / " + POD + b" rw,nosuid,nodev,relatime shared:310 - fuse.sshfs user@host:/srv rw,user_id=0,group_id=0,allow_other"
IN_CONTAINER = b"700 650 0:61 / /data rw,nosuid,nodev,relatime master:310 - fuse.sshfs user@host:/srv rw,user_id=0,group_id=0"
SPACES = b"801 22 0:70 / /mnt/a\\040b\\011c\\012d\\134e\\043f rw,relatime - fuse a\\040source rw,user_id=0,group_id=0"
TWO_FIELDS = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 propagate_from:2 unbindable - ext3 /dev/root rw,errors=continue"
NO_SOURCE = b"900 22 0:80 / /run/x rw,relatime - tmpfs  rw"
NAMESPACE = b"911 22 0:4 mnt:[4026532280] /run/snapd/ns/lxd.mnt rw - nsfs nsfs rw"


def one(line: bytes) -> mountinfo.Mount:
    (mount,) = mountinfo.parse(line + b"\n")
    return mount


def test_reads_every_field() -> None:
    mount = one(SSHFS)
    assert (mount.mount_id, mount.parent_id, mount.device) == (541, 530, "0:61")
    assert (mount.root, mount.path) == (b"/", POD)
    assert mount.options == "rw,nosuid,nodev,relatime"
    assert mount.shared
    assert (mount.fstype, mount.source) == ("fuse.sshfs", b"user@host:/srv")
    assert mount.super_options == "rw,user_id=0,group_id=0,allow_other"


def test_undoes_escapes() -> None:
    mount = one(SPACES)
    assert mount.path == b"/mnt/a b\tc\nd\\e#f"
    assert mount.source == b"a source"


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        (b"plain", b"plain"),
        (b"\\040", b" "),
        (b"a\\0401", b"a 1"),
        (b"\\134040", b"\\040"),
        (b"\\", b"\\"),
        (b"\\04", b"\\04"),
        (b"\\999", b"\\999"),
        (b"\\777", b"\\777"),
        (b"\\377", b"\xff"),
        (b"\\+40", b"\\+40"),
        (b"\xff\xfe", b"\xff\xfe"),
    ],
)
def test_unescaping_changes_only_escapes(field: bytes, expected: bytes) -> None:
    assert mountinfo.unescape(field) == expected


@pytest.mark.parametrize(("line", "shared"), [(ROOT, True), (IN_CONTAINER, False), (TWO_FIELDS, False), (NO_SOURCE, False)])
def test_a_mount_is_shared_if_it_has_the_optional_field(line: bytes, shared: bool) -> None:
    assert one(line).shared is shared


@pytest.mark.parametrize(
    ("fstype", "is_fuse"),
    [(b"fuse", True), (b"fuse.sshfs", True), (b"fuse.", True), (b"fuseblk", False), (b"fusectl", False), (b"ext4", False), (b"", False)],
)
def test_fuse_is_recognized_by_its_type(fstype: bytes, is_fuse: bool) -> None:
    assert one(b"1 0 0:1 / /x rw - " + fstype + b" source rw").is_fuse is is_fuse


def test_reads_optional_fields_of_any_number_and_an_empty_source() -> None:
    assert one(TWO_FIELDS).fstype == "ext3"
    assert (one(NO_SOURCE).fstype, one(NO_SOURCE).source, one(NO_SOURCE).super_options) == ("tmpfs", b"", "rw")
    assert one(NAMESPACE).root == b"mnt:[4026532280]"


def test_a_path_may_be_a_separator() -> None:
    mount = one(b"1 0 0:1 - - rw master:1 - fuse - rw")
    assert (mount.root, mount.path, mount.shared) == (b"-", b"-", False)
    assert (mount.fstype, mount.source, mount.super_options) == ("fuse", b"-", "rw")


@pytest.mark.parametrize(
    "line", [b"", b"\n", b"garbage", SSHFS[:30], SSHFS.rpartition(b" ")[0], b"x" + SSHFS, SSHFS.replace(b" - ", b" "), b"\xff" * 99]
)
def test_a_line_that_is_cut_off_or_unknown_is_left_out(line: bytes) -> None:
    assert [mount.path for mount in mountinfo.parse(ROOT + b"\n" + line + b"\n" + PROC + b"\n")] == [b"/", b"/proc"]


def test_reads_this_machines_own() -> None:
    with open("/proc/self/mountinfo", "rb") as file:
        text = file.read()
    mounts = mountinfo.parse(text)
    assert len(mounts) == text.count(b"\n")
    root = mountinfo.topmost(mounts, b"/")
    assert root is not None
    assert root.path == b"/"


def table(*lines: bytes) -> list[mountinfo.Mount]:
    return mountinfo.parse(b"\n".join(lines) + b"\n")


# The lines of the table are not always in the order in which the mounts were made.
@pytest.mark.parametrize("lines", [(ROOT, KUBELET, PLACEHOLDER, SSHFS), (SSHFS, PLACEHOLDER, KUBELET, ROOT)])
def test_a_stack_is_in_the_order_of_its_layers(lines: tuple[bytes, ...]) -> None:
    mounts = table(*lines)
    assert [mount.fstype for mount in mountinfo.stack(mounts, POD)] == ["tmpfs", "fuse.sshfs"]
    top = mountinfo.topmost(mounts, POD)
    assert top is not None
    assert top.mount_id == 541


def test_there_is_no_stack_where_nothing_is_mounted() -> None:
    mounts = table(ROOT, PROC)
    assert mountinfo.stack(mounts, POD) == []
    assert mountinfo.topmost(mounts, POD) is None
    assert mountinfo.topmost([], b"/") is None


def test_a_mount_whose_parent_is_not_in_the_table_is_the_lowest() -> None:
    # The parents of mounts in a container or a chroot may be invisible there.
    assert [mount.mount_id for mount in mountinfo.stack(table(IN_CONTAINER), b"/data")] == [700]


def test_a_mount_that_is_its_own_parent_causes_no_endless_loop() -> None:
    mountinfo.stack(table(b"5 5 0:1 / /x rw - tmpfs t rw"), b"/x")
    mountinfo.stack(table(b"5 6 0:1 / /x rw - tmpfs t rw", b"6 5 0:1 / /x rw - tmpfs t rw"), b"/x")


@pytest.mark.parametrize(
    ("path", "mount_id"),
    [(b"/", 22), (b"/var/lib", 22), (b"/var/lib/kubelet/pods", 410), (POD + b"/a/b", 541), (POD, 541), (b"/procx", 22)],
)
def test_holding_is_the_mount_that_a_path_lies_on(path: bytes, mount_id: int) -> None:
    mount = mountinfo.holding(table(ROOT, PROC, KUBELET, PLACEHOLDER, SSHFS), path)
    assert mount is not None
    assert mount.mount_id == mount_id


def test_nothing_holds_a_path_where_the_root_is_not_in_the_table() -> None:
    assert mountinfo.holding(table(PROC), b"/elsewhere") is None
