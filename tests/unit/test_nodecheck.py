import os
from errno import EACCES, ENODEV, ENOSYS, ENXIO, EPERM, EROFS
from pathlib import Path
from types import SimpleNamespace

import pytest
from open_fds import nothing_leaked

from driver import nodecheck
from driver.linux import mounttable, privileges
from driver.mounts.device import OpenDevice
from fusermount3_proxy.wire import mountinfo


@pytest.mark.parametrize("release", ["5.12", "5.12.0-rc1", "5.15.0-91-generic", "6.1.0-18-amd64", "10.0", "6.18.5+"])
def test_a_kernel_that_is_new_enough_is_no_problem(release: str) -> None:
    assert nodecheck._kernel(release) == ""


@pytest.mark.parametrize("release", ["5.11.22", "4.18.0-553.el8.x86_64", "3.10.0"])
def test_an_older_kernel_is_reported_with_its_version(release: str) -> None:
    text = nodecheck._kernel(release)
    assert release in text
    assert "use a newer one" in text


def test_a_release_of_no_known_form_is_no_problem() -> None:
    assert nodecheck._kernel("custom") == ""


def put_filesystems(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Make the module read this text instead of /proc/filesystems."""
    file = folder / "filesystems"
    file.write_text(text)

    def opened(path: str, encoding: str) -> object:
        assert path == "/proc/filesystems"
        return file.open(encoding=encoding)

    monkeypatch.setattr(nodecheck, "open", opened, raising=False)


@pytest.mark.parametrize("text", ["nodev\ttmpfs\nnodev\tfuse\nnodev\tfusectl\n", "\text4\n\tfuseblk\nnodev\tfuse\n"])
def test_a_kernel_with_fuse_is_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    put_filesystems(tmp_path, monkeypatch, text)
    assert nodecheck._fuse() == ""


@pytest.mark.parametrize("text", ["", "nodev\ttmpfs\n\text4\n", "nodev\tfusectl\n\tfuseblk\n"])
def test_a_kernel_without_fuse_is_reported_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    put_filesystems(tmp_path, monkeypatch, text)
    assert "modprobe fuse" in nodecheck._fuse()


def put_mounts(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Make the module read these mounts."""
    mounts = mountinfo.parse("\n".join(lines).encode())
    monkeypatch.setattr(mounttable, "read_mount_table", lambda: mounts)


def test_a_pods_folder_that_is_shared_is_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_mounts(monkeypatch, "1 0 0:1 / / rw - ext4 /dev/vda rw", f"2 1 0:2 / {tmp_path} rw shared:5 - tmpfs t rw")
    assert nodecheck.propagation_problem(str(tmp_path)) == ""


def test_a_pods_folder_on_a_shared_root_is_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_mounts(monkeypatch, "1 0 0:1 / / rw shared:1 - ext4 /dev/vda rw")
    assert nodecheck.propagation_problem(str(tmp_path)) == ""


@pytest.mark.parametrize("optional", ["", "master:3 "])
def test_a_pods_folder_that_is_not_shared_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optional: str) -> None:
    put_mounts(monkeypatch, "1 0 0:1 / / rw shared:1 - ext4 /dev/vda rw", f"2 1 0:2 / {tmp_path} rw {optional}- tmpfs t rw")
    text = nodecheck.propagation_problem(str(tmp_path))
    assert f"mount --make-rshared {tmp_path}" in text
    assert "Bidirectional" in text


def test_a_link_to_the_pods_folder_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    put_mounts(monkeypatch, "1 0 0:1 / / rw shared:1 - ext4 /dev/vda rw", f"2 1 0:2 / {tmp_path}/real rw - tmpfs t rw")
    assert f"--make-rshared {tmp_path}/real" in nodecheck.propagation_problem(str(tmp_path / "link"))


def test_without_a_pods_folder_there_are_no_pods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_mounts(monkeypatch, "1 0 0:1 / / rw - ext4 /dev/vda rw")
    assert nodecheck.propagation_problem(str(tmp_path / "missing")) == ""


def test_capabilities_that_are_missing_are_reported_with_the_remedy() -> None:
    assert nodecheck._capabilities([]) == ""
    text = nodecheck._capabilities(["CAP_SYS_ADMIN", "CAP_MKNOD"])
    assert text.startswith("CAP_SYS_ADMIN, CAP_MKNOD missing: ")
    assert "privileged: true" in text


STATUS = "Name:\tx\nCapInh:\t0000000000000000\nCapPrm:\t000001ffffffffff\nCapEff:\t{:016x}\nCapBnd:\t000001ffffffffff\n"


@pytest.mark.parametrize(
    ("effective", "missing"),
    [
        (0x1FFFFFFFFFF, []),
        (0, ["CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_DAC_OVERRIDE", "CAP_CHOWN", "CAP_FOWNER"]),
        (0xA80425FB, ["CAP_SYS_ADMIN"]),  # Docker's default
    ],
)
def test_what_is_missing_is_what_is_not_effective(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, effective: int, missing: list[str]
) -> None:
    file = tmp_path / "status"
    file.write_text(STATUS.format(effective))
    monkeypatch.setattr(privileges, "open", lambda path, **options: file.open(**options), raising=False)
    assert privileges.missing_capabilities() == missing


def test_system_calls_that_are_refused_are_reported_with_the_remedy() -> None:
    assert nodecheck._system_calls({}) == ""
    text = nodecheck._system_calls({"open_tree": ENOSYS, "mount": EPERM})
    assert "open_tree (Function not implemented), mount (Operation not permitted)" in text
    assert "seccomp" in text


class Devices:
    """Stands in for the folder of devices. The step `fails` raises OSError with `errno`."""

    def __init__(self, fails: str, errno: int) -> None:
        self._fails = fails
        self._errno = errno
        self.there: list[str] = []
        self.is_closed = False

    def __call__(self, folder: str) -> "Devices":
        self._step("prepare")
        return self

    def open(self) -> OpenDevice:
        self._step("open")
        self.there.append("name")
        return OpenDevice("name", os.open("/dev/null", os.O_RDWR))

    def discard(self, opened: OpenDevice) -> None:
        os.close(opened.fd)
        self.there.remove(opened.name)

    def close(self) -> None:
        self.is_closed = True

    def _step(self, name: str) -> None:
        if name == self._fails:
            raise OSError(self._errno, os.strerror(self._errno))


@pytest.mark.parametrize(
    ("step", "errno", "words"),
    [
        ("prepare", ENOSYS, ["prepare a folder", "privileged: true"]),
        ("prepare", EROFS, ["prepare a folder", "tmpfs of the node"]),
        ("open", EPERM, ["make and open a FUSE device", "privileged: true"]),
        ("open", EACCES, ["make and open a FUSE device", "privileged: true"]),
        ("open", ENODEV, ["make and open a FUSE device", "modprobe fuse"]),
        ("open", ENXIO, ["make and open a FUSE device", "modprobe fuse"]),
    ],
)
def test_a_device_that_cannot_be_made_is_reported_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, errno: int, words: list[str]
) -> None:
    nodes = Devices(step, errno)
    monkeypatch.setattr(nodecheck, "DeviceFolder", nodes)
    with nothing_leaked():
        text = nodecheck._device(f"{tmp_path}/run/mfcp")
    for word in [*words, os.strerror(errno), f"{tmp_path}/run/mfcp"]:
        assert word in text
    assert nodes.there == []
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_can_be_made_is_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Devices("", 0)
    monkeypatch.setattr(nodecheck, "DeviceFolder", nodes)
    with nothing_leaked():
        assert nodecheck._device(f"{tmp_path}/run/mfcp") == ""
    assert (nodes.there, nodes.is_closed) == ([], True)
    assert list(tmp_path.iterdir()) == []


def put_mount_max(folder: Path, monkeypatch: pytest.MonkeyPatch, most: str, there: int) -> None:
    texts = {"/proc/sys/fs/mount-max": most, "/proc/self/mountinfo": "line\n" * there}
    for path, text in texts.items():
        (folder / Path(path).name).write_text(text)
    monkeypatch.setattr(nodecheck, "open", lambda path, *rest, **options: (folder / Path(path).name).open(*rest, **options), raising=False)


@pytest.mark.parametrize(("most", "there", "is_problem"), [("1000\n", 899, False), ("1000\n", 950, True), ("what\n", 950, False)])
def test_a_mount_table_that_is_nearly_full_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: str, there: int, is_problem: bool
) -> None:
    put_mount_max(tmp_path, monkeypatch, most, there)
    text = nodecheck._room_for_mounts()
    assert bool(text) is is_problem
    if is_problem:
        assert "950" in text
        assert "sysctl -w fs.mount-max" in text


def test_the_first_problem_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # These checks need root, and have tests of their own.
    monkeypatch.setattr(nodecheck, "_capabilities", lambda missing: "")
    monkeypatch.setattr(nodecheck, "_system_calls", lambda refused: "")
    monkeypatch.setattr(nodecheck, "_device", lambda run_dir: "")
    monkeypatch.setattr(nodecheck, "_room_for_mounts", lambda: "")
    places = (str(tmp_path), f"{tmp_path}/run")
    put_mounts(monkeypatch, "1 0 0:1 / / rw - ext4 /dev/vda rw")
    put_filesystems(tmp_path, monkeypatch, "nodev\tfuse\n")
    assert "--make-rshared /" in nodecheck.first_problem(*places)
    put_filesystems(tmp_path, monkeypatch, "")
    assert "modprobe" in nodecheck.first_problem(*places)
    put_mounts(monkeypatch, "1 0 0:1 / / rw shared:1 - ext4 /dev/vda rw")
    put_filesystems(tmp_path, monkeypatch, "nodev\tfuse\n")
    assert nodecheck.first_problem(*places) == ""
    assert all(not check.problem for check in nodecheck.checks(*places))


@pytest.mark.parametrize(
    ("release", "has_tmpfs", "has_fuse"),
    [("6.2.16", False, False), ("6.3", True, False), ("6.11.9", True, False), ("6.12", True, True), ("7.0", True, True)],
)
def test_what_the_driver_can_do_without_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str, has_tmpfs: bool, has_fuse: bool
) -> None:
    monkeypatch.setattr(nodecheck.os, "uname", lambda: SimpleNamespace(release=release))
    found = {note.name: note for note in nodecheck.notes(str(tmp_path))}
    assert found["tmpfs in idmapped mounts"].is_there is has_tmpfs
    assert found["FUSE in idmapped mounts"].is_there is has_fuse
    assert all("hostUsers: false" in found[name].text for name in ("tmpfs in idmapped mounts", "FUSE in idmapped mounts"))
    assert all(note.text.isprintable() and (note.text or note.is_there) for note in found.values())


def test_a_file_in_the_place_of_the_run_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert nodecheck._device(str(file)) == f"{file} (--run-dir) is not a directory: remove it, or give another path"
