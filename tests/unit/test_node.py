from pathlib import Path

import pytest

from driver import fusemount, node
from fusermount3_proxy import mountinfo


@pytest.mark.parametrize("release", ["5.12", "5.12.0-rc1", "5.15.0-91-generic", "6.1.0-18-amd64", "10.0", "6.18.5+"])
def test_a_kernel_that_is_new_enough_is_no_problem(release: str) -> None:
    assert node._kernel(release) == ""


@pytest.mark.parametrize("release", ["5.11.22", "4.18.0-553.el8.x86_64", "3.10.0"])
def test_an_older_kernel_is_told_with_its_version(release: str) -> None:
    text = node._kernel(release)
    assert release in text
    assert "use a newer one" in text


def test_a_release_of_no_known_form_is_no_problem() -> None:
    assert node._kernel("custom") == ""


def put_filesystems(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Let the module read this instead of /proc/filesystems."""
    file = folder / "filesystems"
    file.write_text(text)

    def opened(path: str, encoding: str) -> object:
        assert path == "/proc/filesystems"
        return file.open(encoding=encoding)

    monkeypatch.setattr(node, "open", opened, raising=False)


@pytest.mark.parametrize("text", ["nodev\ttmpfs\nnodev\tfuse\nnodev\tfusectl\n", "\text4\n\tfuseblk\nnodev\tfuse\n"])
def test_a_kernel_with_fuse_is_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    put_filesystems(tmp_path, monkeypatch, text)
    assert node._fuse() == ""


@pytest.mark.parametrize("text", ["", "nodev\ttmpfs\n\text4\n", "nodev\tfusectl\n\tfuseblk\n"])
def test_a_kernel_without_fuse_is_told_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    put_filesystems(tmp_path, monkeypatch, text)
    assert "modprobe fuse" in node._fuse()


def put_mounts(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Let the module see these mounts."""
    mounts = mountinfo.parse("\n".join(lines).encode())
    monkeypatch.setattr(fusemount, "mount_table", lambda: mounts)


def test_a_pods_folder_that_is_shared_is_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_mounts(monkeypatch, "1 0 0:1 / / rw - ext4 /dev/vda rw", f"2 1 0:2 / {tmp_path} rw shared:5 - tmpfs t rw")
    assert node._propagation(str(tmp_path)) == ""


def test_a_pods_folder_on_a_shared_root_is_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_mounts(monkeypatch, "1 0 0:1 / / rw shared:1 - ext4 /dev/vda rw")
    assert node._propagation(str(tmp_path)) == ""


@pytest.mark.parametrize("optional", ["", "master:3 "])
def test_a_pods_folder_that_is_not_shared_is_told_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optional: str) -> None:
    put_mounts(monkeypatch, "1 0 0:1 / / rw shared:1 - ext4 /dev/vda rw", f"2 1 0:2 / {tmp_path} rw {optional}- tmpfs t rw")
    text = node._propagation(str(tmp_path))
    assert f"mount --make-rshared {tmp_path}" in text
    assert "Bidirectional" in text


def test_a_link_to_the_pods_folder_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    put_mounts(monkeypatch, "1 0 0:1 / / rw shared:1 - ext4 /dev/vda rw", f"2 1 0:2 / {tmp_path}/real rw - tmpfs t rw")
    assert f"--make-rshared {tmp_path}/real" in node._propagation(str(tmp_path / "link"))


def test_without_a_pods_folder_there_are_no_pods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_mounts(monkeypatch, "1 0 0:1 / / rw - ext4 /dev/vda rw")
    assert node._propagation(str(tmp_path / "missing")) == ""


def test_the_first_problem_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_mounts(monkeypatch, "1 0 0:1 / / rw - ext4 /dev/vda rw")
    put_filesystems(tmp_path, monkeypatch, "nodev\tfuse\n")
    assert "--make-rshared /" in node.problem(str(tmp_path))
    put_filesystems(tmp_path, monkeypatch, "")
    assert "modprobe" in node.problem(str(tmp_path))
    put_mounts(monkeypatch, "1 0 0:1 / / rw shared:1 - ext4 /dev/vda rw")
    put_filesystems(tmp_path, monkeypatch, "nodev\tfuse\n")
    assert node.problem(str(tmp_path)) == ""
