"""Tests the folder of a socket for one user of the node, who owns the folder above it."""

import os
import stat
from pathlib import Path

import pytest

from driver.devices import userfolder
from driver.model.errors import Code, VolumeError

UID = 4321


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / str(UID)).mkdir(mode=0o700)
    return tmp_path / str(UID)


def check_refused(below: Path, *words: str) -> None:
    with pytest.raises(VolumeError) as caught:
        userfolder.make(UID, "data", str(below))
    assert caught.value.code is Code.FAILED_PRECONDITION
    for word in words:
        assert word in str(caught.value)


def test_the_folder_belongs_to_the_driver_and_everybody_may_enter_it(home: Path) -> None:
    before = os.umask(0o077)
    try:
        for _ in range(2):  # it may be there already
            fd = userfolder.make(UID, "data", str(home.parent))
            path = userfolder.path_of(UID, "data", str(home.parent))
            assert os.path.samestat(os.fstat(fd), os.stat(path))
            os.close(fd)
    finally:
        os.umask(before)
    for folder in (home / "mfcp", home / "mfcp/data"):
        info = folder.stat()
        assert (stat.S_IMODE(info.st_mode), info.st_uid) == (0o755, os.geteuid())


def test_a_user_without_a_folder_is_told_how_to_get_one(tmp_path: Path) -> None:
    check_refused(tmp_path, f"{tmp_path}/{UID}", f"loginctl enable-linger {UID}")


@pytest.mark.parametrize("name", ["mfcp", "mfcp/data"])
def test_a_symlink_of_the_users_is_not_followed(home: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").mkdir(mode=0o700)
    (home / name).parent.mkdir(exist_ok=True)
    (home / name).symlink_to(tmp_path / "secret")
    check_refused(tmp_path, "mfcp/data", "remove what is in its place")
    assert list((tmp_path / "secret").iterdir()) == []
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o700


def test_a_folder_of_another_user_is_not_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "mfcp/data").mkdir(parents=True)
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    check_refused(home.parent, "mfcp belongs to another user")


def test_the_folder_is_removed_where_it_is_there(home: Path) -> None:
    userfolder.remove(UID, "data", str(home.parent))
    os.close(userfolder.make(UID, "data", str(home.parent)))
    userfolder.remove(UID, "data", str(home.parent))
    userfolder.remove(UID, "data", str(home.parent))
    assert list((home / "mfcp").iterdir()) == []


def test_a_user_is_given_by_name_or_uid() -> None:
    assert (userfolder.uid_of("root"), userfolder.uid_of("4321")) == (0, 4321)


@pytest.mark.parametrize("user", ["no-such-user", "-1", "4294967295", "٣", "a\0b", "99999999999999999999"])
def test_a_user_who_is_not_there_is_named(user: str) -> None:
    with pytest.raises(VolumeError) as caught:
        userfolder.uid_of(user)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert repr(user) in str(caught.value)
