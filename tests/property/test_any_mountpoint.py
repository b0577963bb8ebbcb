"""Compares real_path() with the C library's realpath(3), in a small tree."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fusermount3_proxy import mountpoint

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.realpath.restype = ctypes.c_char_p

names = st.sampled_from([b"a", b"b", b"link", b"up", b"dead", b"loop", b"file", b"missing", b".", b"..", b"", b"\xff", b"x" * 256])
paths = st.builds(
    lambda start, parts, times: (start + b"/".join(parts)) * times or b".",
    st.sampled_from([b"", b"/", b"./", b"a/../", b"././"]),
    st.lists(names, max_size=6),
    st.sampled_from([1, 1, 1, 1100]),
)


@pytest.fixture(autouse=True, scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("tree")
    (folder / "a/b").mkdir(parents=True)
    (folder / "a/file").touch()
    os.mkdir(os.fsencode(folder) + b"/\xff")
    for link, target in {"link": "a", "a/up": "..", "dead": "nowhere", "loop": "loop"}.items():
        (folder / link).symlink_to(target)
    before = Path.cwd()
    os.chdir(folder)
    yield
    os.chdir(before)


@given(paths)
@example(b"./link/." * 1100)  # more symlinks than are followed
@example(b"./" * 3000 + b"a/file/")
@example(b"./" * 3000 + b"link/../a/up/link/b")
def test_any_path_is_resolved_as_realpath_does(path: bytes) -> None:
    wanted = LIBC.realpath(path, None)
    error = ctypes.get_errno()
    try:
        assert mountpoint.real_path(path) == wanted
    except OSError as found:
        assert wanted is None
        assert found.errno == error
