from random import Random

from hypothesis import given
from hypothesis import strategies as st

from fusermount3_proxy.wire import mountinfo
from fusermount3_proxy.wire.mountinfo import Mount

LINE = b"541 530 0:61 / /mnt rw,nosuid shared:310 - fuse.sshfs user@host:/srv rw,user_id=0\n"
paths = st.binary(max_size=20).map(lambda name: b"/" + name.replace(b"\0", b""))


def escaped(raw: bytes) -> bytes:
    """Return the bytes as the kernel writes them: mangle_path() in fs/seq_file.c."""
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\#" else bytes([byte]) for byte in raw)


@given(
    st.binary()
    | st.lists(st.sampled_from([*LINE.split(b" "), b"-", b"", b"\n", b"\\", b"\\040", b"\xff", b"9" * 5000])).map(b" ".join)
    | st.builds(lambda at, noise: LINE[:at] + noise + LINE[at:], st.integers(0, len(LINE)), st.binary(max_size=4))
)
def test_the_parser_raises_nothing(text: bytes) -> None:
    for mount in mountinfo.parse(text):
        assert isinstance(mount.path, bytes)
        assert isinstance(mount.is_fuse, bool)


@given(paths, paths, paths, st.text(st.characters(codec="latin-1", exclude_characters="\0"), min_size=1, max_size=8))
def test_any_path_source_and_type_come_back(root: bytes, path: bytes, source: bytes, fstype: str) -> None:
    fields = [b"5", b"4", b"0:61", escaped(root), escaped(path), b"rw", b"-", escaped(fstype.encode("latin-1")), escaped(source), b"rw"]
    (mount,) = mountinfo.parse(b" ".join(fields) + b"\n")
    assert (mount.root, mount.path, mount.source, mount.fstype) == (root, path, source, fstype)


@given(st.binary())
def test_unescaping_is_the_opposite_of_the_kernels_escaping(raw: bytes) -> None:
    assert mountinfo.unescape(escaped(raw)) == raw


@given(st.binary())
def test_any_bytes_can_be_unescaped(field: bytes) -> None:
    assert len(mountinfo.unescape(field)) <= len(field)


def mount_of(mount_id: int, parent_id: int, path: bytes) -> Mount:
    return Mount(mount_id, parent_id, "0:1", b"/", path, "rw", False, "tmpfs", b"t", "rw")


ids = st.integers(0, 6)
tables = st.lists(st.builds(mount_of, ids, ids, st.sampled_from([b"/", b"/a", b"/a/b"])))


@given(tables, st.sampled_from([b"/", b"/a", b"/a/b", b"/a/b/c", b"/c"]))
def test_any_table_has_an_answer(mounts: list[Mount], path: bytes) -> None:
    # Some of the tables have circles, which the kernel never writes.
    stack = mountinfo.stack(mounts, path)
    assert all(mount.path == path for mount in stack)
    assert mountinfo.topmost(mounts, path) is (stack[-1] if stack else None)
    holding = mountinfo.holding(mounts, path)
    assert holding is None or path == holding.path or path.startswith(holding.path.rstrip(b"/") + b"/")


@given(st.integers(1, 6), st.randoms())
def test_a_stack_is_found_in_any_order_of_lines(height: int, random: Random) -> None:
    root = mount_of(100, 1, b"/")
    layers = [mount_of(100 + n, 100 + n - 1, b"/a") for n in range(1, height + 1)]
    mounts = [root, *layers, mount_of(200, 100, b"/b")]
    random.shuffle(mounts)
    assert mountinfo.stack(mounts, b"/a") == layers
