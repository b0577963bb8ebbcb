"""Tests that a mountpoint is resolved to the real path of its parent and its own last name, as in fusermount3."""

import os
from pathlib import Path

import pytest

from fusermount3_proxy import mountpoint


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Make a current directory that holds real/sub, link -> real, dead -> nowhere, loop -> loop and file."""
    (tmp_path / "real/sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dead").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    return os.fsencode(tmp_path.resolve())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (b"real", b"/real"),
        (b"real/", b"/real"),
        (b"real///", b"/real"),
        (b"./real", b"/real"),
        (b"real/sub", b"/real/sub"),
        (b"link/sub", b"/real/sub"),
        (b"link/../real/sub", b"/real/sub"),
        (b"real/sub/..", b"/real"),
        (b"real/sub/.", b"/real/sub"),
        (b"link/.", b"/real"),
        (b"link/sub/../..", b""),
        (b".", b""),
        (b"real/..", b""),
        # The last name is not resolved, since it may be a dead mount. It may also be missing.
        (b"link", b"/link"),
        (b"link/", b"/link"),
        (b"dead", b"/dead"),
        (b"missing", b"/missing"),
        (b"link/missing", b"/real/missing"),
        (b"file/x", b"/file/x"),
        (b"a\nb", b"/a\nb"),
        (b"a,b\\", b"/a,b\\"),
        (b"\xff\xfe", b"/\xff\xfe"),
        (b"...", b"/..."),
    ],
)
def test_resolves_relative_to_the_current_directory(folder: bytes, given: bytes, expected: bytes) -> None:
    assert mountpoint.resolve(given) == folder + expected
    assert mountpoint.resolve(folder + b"/" + given) == folder + expected


@pytest.mark.parametrize(
    ("given", "expected"), [(b"/", b"/"), (b"//", b"/"), (b"/..", b"/"), (b"/x", b"/x"), (b"//x", b"/x"), (b"/./x/", b"/x")]
)
def test_resolves_absolute_paths(given: bytes, expected: bytes) -> None:
    assert mountpoint.resolve(given) == expected


def test_dot_dot_is_the_parent_of_the_current_directory(folder: bytes) -> None:
    assert mountpoint.resolve(b"..") == os.path.dirname(folder)


def test_a_parent_may_have_any_bytes(folder: bytes) -> None:
    os.mkdir(b"\xff\n")
    assert mountpoint.resolve(b"\xff\n/m") == folder + b"/\xff\n/m"


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (b"missing/m", FileNotFoundError),
        (b"missing/..", FileNotFoundError),
        (b"dead/m", FileNotFoundError),
        (b"file/x/m", NotADirectoryError),
        (b"file/.", NotADirectoryError),
        (b"loop/m", OSError),
        (b"x" * 300 + b"/m", OSError),
        (b"/x" * 5000, OSError),
    ],
)
def test_an_error_is_that_of_realpath(folder: bytes, given: bytes, error: type[OSError]) -> None:
    with pytest.raises(error):
        mountpoint.resolve(given)


@pytest.mark.parametrize("given", [b"", b"a\0/b"])
def test_an_empty_path_and_a_nul_are_a_value_error(given: bytes) -> None:
    with pytest.raises(ValueError):
        mountpoint.resolve(given)


@pytest.mark.parametrize("given", [b"m", b"."])
def test_a_removed_current_directory_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bytes) -> None:
    removed = tmp_path / "removed"
    removed.mkdir()
    monkeypatch.chdir(removed)
    removed.rmdir()
    with pytest.raises(FileNotFoundError):
        mountpoint.resolve(given)


def test_there_is_no_fuse_device_where_nothing_is_mounted(tmp_path: Path) -> None:
    assert mountpoint.fuse_device(os.fsencode(tmp_path)) is None
    assert mountpoint.fuse_device(b"/proc") is None
