"""Tests what the driver puts on the node for containers, and what it says that they bind."""

import errno
import os
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from driver.devices import kit as kit_module
from driver.devices import selinux
from driver.devices.kit import Kit, KitError, own_tree
from driver.linux import features
from driver.model.kit import Bind, Device

NULL = "/dev/null"  # a device that is not FUSE's, on every machine


SET_UID = {"fusermount3", "bin/fusermount3", "bin/fusermount"}
TRAMPOLINE = ": the set-uid bit of this file cannot be given up\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a folder that has what a client tree must have."""
    return make_tree(tmp_path / "mfcp")


def make_tree(folder: Path, content: str = "first") -> Path:
    for name in ("fusermount3", "bin/fusermount3", "bin/fusermount", "_internal/fusermount3", "_internal/encodings/utf_8.pyc"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{content} {name}{TRAMPOLINE if name in SET_UID else ''}")
        (folder / name).chmod(0o755 if "fusermount" in name else 0o644)
    (folder / "socket").mkdir()
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Return the folder to install into, which pytest can remove afterwards although nothing in it may be written."""
    folder = tmp_path / "fuse"
    yield folder
    for each in [folder, *folder.rglob("*")]:
        if each.is_dir() and not each.is_symlink():
            each.chmod(0o755)


def expected(tree: Path) -> dict[str, tuple[int, str]]:
    """Return what an installed copy of a tree holds."""
    return {name: (mode & 0o555 | (0o4000 if name in SET_UID else 0), text) for name, (mode, text) in contents(tree).items()}


def contents(folder: Path) -> dict[str, tuple[int, str]]:
    return {
        str(path.relative_to(folder)): (stat.S_IMODE(path.lstat().st_mode), path.read_text() if path.is_file() else "")
        for path in folder.rglob("*")
    }


def trees(place: Path) -> set[str]:
    return {path.name for path in place.iterdir() if path.name.startswith("tree-")}


# ---- installing


def test_the_tree_is_copied_and_nothing_of_it_may_be_written(tree: Path, place: Path) -> None:
    Kit(str(place), "/node", str(tree)).install()
    link = place / "tree"
    assert [link.resolve().name] == list(trees(place))
    assert not os.path.isabs(os.readlink(link))  # the node sees the folder elsewhere
    assert contents(link) == expected(tree)
    assert stat.S_IMODE(link.stat().st_mode) == 0o555
    assert {path.name for path in place.iterdir()} == {"tree", link.resolve().name, "dev-fuse"}


def test_no_bit_of_a_file_gives_another_users_rights(tree: Path, place: Path) -> None:
    """But for the trampoline, which gives them up itself."""
    for name in ("fusermount3", "_internal/fusermount3"):
        (tree / name).chmod(0o6755)
    Kit(str(place), "/node", str(tree)).install()
    assert stat.S_IMODE((place / "tree/fusermount3").stat().st_mode) == 0o4555
    assert stat.S_IMODE((place / "tree/_internal/fusermount3").stat().st_mode) == 0o555


@pytest.mark.parametrize("content", ["a former version", TRAMPOLINE + 20000 * "x"])
def test_only_a_trampoline_that_gives_the_bit_up_gets_it(tree: Path, place: Path, content: str) -> None:
    (tree / "bin/fusermount3").write_text(content)
    Kit(str(place), "/node", str(tree)).install()
    assert stat.S_IMODE((place / "tree/bin/fusermount3").stat().st_mode) == 0o555


def test_the_umask_does_not_matter(tree: Path, place: Path) -> None:
    before = os.umask(0o077)
    try:
        Kit(str(place), "/node", str(tree)).install()
    finally:
        os.umask(before)
    assert stat.S_IMODE(place.stat().st_mode) == 0o755
    assert stat.S_IMODE((place / "dev-fuse").stat().st_mode) == 0o666
    assert stat.S_IMODE((place / "tree/_internal/encodings").stat().st_mode) == 0o555


def test_a_tree_that_is_there_is_left_alone(tree: Path, place: Path) -> None:
    kit = Kit(str(place), "/node", str(tree))
    kit.install()
    before = {path: path.lstat().st_ctime_ns for path in place.rglob("*") if path.name != "dev-fuse"}
    time.sleep(0.01)  # the clock of the kernel's times has ticks
    kit.install()
    assert {path: path.lstat().st_ctime_ns for path in before} == before


def break_content(tree: Path) -> None:
    file = tree / "_internal/fusermount3"
    file.chmod(0o755)
    file.write_text("another program")


def break_mode(tree: Path) -> None:
    (tree / "fusermount3").chmod(0o700)


def break_by_removal(tree: Path) -> None:
    (tree / "bin").chmod(0o755)
    (tree / "bin/fusermount").unlink()


def break_by_an_addition(tree: Path) -> None:
    tree.chmod(0o755)
    (tree / "more/inner").mkdir(parents=True)
    (tree / "more/inner/file").touch()
    (tree / "more/inner").chmod(0o555)


def break_by_a_folder_in_place_of_a_file(tree: Path) -> None:
    """containerd makes a folder where a path to bind is missing."""
    tree.chmod(0o755)
    (tree / "fusermount3").unlink()
    (tree / "fusermount3").mkdir()


def break_by_a_symlink(tree: Path) -> None:
    tree.chmod(0o755)
    (tree / "fusermount3").unlink()
    (tree / "fusermount3").symlink_to("bin/fusermount3")


@pytest.mark.parametrize(
    "damage",
    [
        break_content,
        break_mode,
        break_by_removal,
        break_by_an_addition,
        break_by_a_folder_in_place_of_a_file,
        break_by_a_symlink,
    ],
)
def test_a_damaged_tree_is_repaired_where_containers_have_bound_it(
    tree: Path, place: Path, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    kit = Kit(str(place), "/node", str(tree))
    kit.install()
    link = place / "tree"
    good, inode = contents(link), link.stat().st_ino
    damage(link.resolve())  # type: ignore[operator]
    assert contents(link) != good
    kit.install()
    assert contents(link) == good
    assert link.stat().st_ino == inode
    (line,) = caplog.messages
    assert "repaired" in line
    assert str(link.resolve()) in line


def test_a_program_that_runs_keeps_its_file_when_that_is_replaced(tree: Path, place: Path) -> None:
    kit = Kit(str(place), "/node", str(tree))
    kit.install()
    break_content((place / "tree").resolve())
    with (place / "tree/_internal/fusermount3").open() as held:
        kit.install()
        assert held.read() == "another program"


def test_what_a_killed_driver_left_half_done_is_finished(tree: Path, place: Path) -> None:
    half = place / "tree-new"
    half.mkdir(parents=True)
    (half / "bin").mkdir()
    (half / "bin/fusermount3").write_text("hal")
    (half / "bin/fusermount3.new").write_text("hal")
    (place / "link-new").symlink_to("tree-0")
    (place / "dev-fuse.new").touch()
    Kit(str(place), "/node", str(tree)).install()
    assert contents(place / "tree") == expected(tree)
    assert {path.name for path in place.iterdir()} == {"tree", (place / "tree").resolve().name, "dev-fuse"}


def test_what_a_killed_driver_of_another_version_left_is_removed(tree: Path, place: Path) -> None:
    kit = Kit(str(place), "/node", str(tree))
    kit.install()
    (place / "tree-new/bin").mkdir(parents=True)
    kit.install()
    assert {path.name for path in place.iterdir()} == {"tree", (place / "tree").resolve().name, "dev-fuse"}


def test_folders_that_an_engine_made_where_a_path_was_missing_are_replaced(tree: Path, place: Path) -> None:
    for name in ("tree/fusermount3", "dev-fuse"):
        (place / name).mkdir(parents=True)
    Kit(str(place), "/node", str(tree)).install()
    assert (place / "tree").is_symlink()
    assert stat.S_ISFIFO((place / "dev-fuse").lstat().st_mode)


def test_a_stand_in_that_not_everybody_may_open_is_replaced(tree: Path, place: Path) -> None:
    kit = Kit(str(place), "/node", str(tree))
    kit.install()
    (place / "dev-fuse").chmod(0o600)
    kit.install()
    assert stat.S_IMODE((place / "dev-fuse").stat().st_mode) == 0o666


def test_the_stand_in_for_the_device_opens_for_everybody_at_once_and_holds_nothing(tree: Path, place: Path) -> None:
    Kit(str(place), "/node", str(tree)).install()
    info = (place / "dev-fuse").stat()
    assert (stat.S_IMODE(info.st_mode), info.st_size) == (0o666, 0)
    os.close(os.open(place / "dev-fuse", os.O_RDWR))


# ---- former trees


@pytest.fixture
def upgraded(tree: Path, place: Path, tmp_path: Path) -> tuple[Kit, str]:
    """Return a kit of the second version in place of the first, and the name of the first tree."""
    Kit(str(place), "/node", str(tree)).install()
    (first,) = trees(place)
    kit = Kit(str(place), "/node", str(make_tree(tmp_path / "mfcp-2", "second")))
    kit.install()
    return kit, first


def test_the_link_names_the_new_tree_and_the_former_one_stays_for_now(upgraded: tuple[Kit, str], place: Path) -> None:
    """An engine may have read the link just before."""
    assert (place / "tree/fusermount3").read_text().startswith("second fusermount3")
    assert upgraded[1] in trees(place)


def test_a_former_tree_is_removed_at_the_next_start(upgraded: tuple[Kit, str], place: Path) -> None:
    kit, _ = upgraded
    kit.install()
    assert trees(place) == {(place / "tree").resolve().name}
    assert (place / "tree/fusermount3").read_text().startswith("second fusermount3")


def test_a_former_tree_that_kubelet_names_stays(upgraded: tuple[Kit, str], place: Path) -> None:
    kit, first = upgraded
    kit.install(named={f"/node/{first}/fusermount3", "/elsewhere"})
    assert first in trees(place)
    kit.install(named={f"/node/{first}x"})
    assert first not in trees(place)


@pytest.mark.parametrize("part", ["", "/fusermount3", "//deleted"])
def test_a_former_tree_that_a_process_has_mounted_stays(
    upgraded: tuple[Kit, str], place: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    kit, first = upgraded
    tables = [b"21 1 0:5 / / rw - tmpfs x rw\n", f"22 21 0:6 /f/{first}{part} /opt/mfcp ro,relatime - tmpfs x rw\n".encode()]
    monkeypatch.setattr(kit_module, "_mount_tables", lambda: iter(tables))
    kit.install()
    assert first in trees(place)
    del tables[1]
    kit.install()
    assert first not in trees(place)


def test_the_mounts_of_every_process_are_read() -> None:
    own = Path("/proc/self/mountinfo").read_bytes()
    assert own in set(kit_module._mount_tables())


def test_every_former_tree_stays_where_the_processes_of_the_node_are_not_seen(
    upgraded: tuple[Kit, str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit, first = upgraded
    monkeypatch.setattr(features, "sees_host_pids", lambda: False)
    kit.install()
    assert first in trees(place)


# ---- what cannot work


def check_error(kit: Kit, *words: str) -> None:
    with pytest.raises(KitError) as caught:
        kit.install()
    assert len(str(caught.value).splitlines()) == 1
    for word in words:
        assert word in str(caught.value)


def test_a_missing_tree_is_named(tmp_path: Path, place: Path) -> None:
    check_error(Kit(str(place), "/node", f"{tmp_path}/none"), f"{tmp_path}/none", "packaging/build")
    assert not place.exists()


@pytest.mark.parametrize("lacks", ["fusermount3", "bin/fusermount", "_internal/fusermount3", "socket"])
def test_what_an_incomplete_tree_lacks_is_named(tree: Path, place: Path, lacks: str) -> None:
    (tree / lacks).rmdir() if lacks == "socket" else (tree / lacks).unlink()
    check_error(Kit(str(place), "/node", str(tree)), str(tree), f"lacks {lacks}", "packaging/build")


def test_the_mountpoint_of_the_socket_is_a_folder(tree: Path, place: Path) -> None:
    (tree / "socket").rmdir()
    (tree / "socket").touch()
    check_error(Kit(str(place), "/node", str(tree)), "lacks socket/")


def test_a_program_that_nobody_may_run_counts_as_missing(tree: Path, place: Path) -> None:
    (tree / "fusermount3").chmod(0o744)
    check_error(Kit(str(place), "/node", str(tree)), "lacks fusermount3")


def test_a_tree_with_a_symlink_is_refused(tree: Path, place: Path) -> None:
    (tree / "bin/more").symlink_to("fusermount")
    check_error(Kit(str(place), "/node", str(tree)), "bin/more", "neither a file nor a folder")


def test_a_file_system_without_exec_is_refused(tree: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs

    def statvfs(path: str) -> object:
        values = list(real(path))
        values[8] |= os.ST_NOEXEC  # f_flag
        return os.statvfs_result(values)

    monkeypatch.setattr(os, "statvfs", statvfs)
    check_error(Kit(str(place), "/node", str(tree)), str(place), "noexec", "--fuse-dir")
    assert trees(place) == set()


def test_a_folder_that_cannot_be_made_is_named(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_error(Kit(f"{tmp_path}/file/fuse", "/node", str(tree)), f"{tmp_path}/file/fuse", "--fuse-dir")


# ---- SELinux


def test_all_is_labelled_where_selinux_is_on(tree: Path, place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file_systems = tmp_path / "filesystems"
    file_systems.write_text("nodev\tsysfs\nnodev\tselinuxfs\n\text4\n")
    monkeypatch.setattr(selinux, "_FILE_SYSTEMS", str(file_systems))
    labelled: dict[str, bytes] = {}
    monkeypatch.setattr(os, "getxattr", lambda path, name, follow_symlinks: b"system_u:object_r:var_lib_t:s0\0")
    monkeypatch.setattr(os, "setxattr", lambda path, name, value, follow_symlinks: labelled.update({f"{path} {name}": value}))
    Kit(str(place), "/node", str(tree)).install()
    assert set(labelled.values()) == {b"system_u:object_r:container_file_t:s0"}
    paths = {key.removesuffix(" security.selinux") for key in labelled}
    assert paths >= {f"{place}/dev-fuse", f"{place}/tree-new", f"{place}/tree-new/socket", f"{place}/tree-new/bin/fusermount3"}


def test_a_label_that_cannot_be_set_is_reported_in_one_line(
    tree: Path, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: str, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(selinux, "is_on", lambda: True)
    monkeypatch.setattr(os, "getxattr", refuse)
    Kit(str(place), "/node", str(tree)).install()
    assert len(caplog.messages) == 2  # the stand-in, and the tree
    assert "SELinux" in caplog.messages[0]


def test_a_file_system_that_has_one_label_for_all_keeps_it(
    tree: Path, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as one that was mounted with the option context=."""

    def refuse(path: str, *_: object, **__: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported", path)

    monkeypatch.setattr(selinux, "is_on", lambda: True)
    monkeypatch.setattr(os, "getxattr", lambda *_, **__: b"system_u:object_r:nfs_t:s0")
    monkeypatch.setattr(os, "setxattr", refuse)
    Kit(str(place), "/node", str(tree)).install()
    assert caplog.messages == []


def test_nothing_is_labelled_without_selinux(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "filesystems").write_text("nodev\tsysfs\n\text4\n")
    monkeypatch.setattr(selinux, "_FILE_SYSTEMS", f"{tmp_path}/filesystems")
    assert not selinux.is_on()
    monkeypatch.setattr(selinux, "_FILE_SYSTEMS", f"{tmp_path}/none")
    assert not selinux.is_on()


# ---- what a container gets


PROGRAMS = (
    Bind("/node/tree", "/opt/mfcp"),
    Bind("/node/sockets/any", "/opt/mfcp/socket"),
    Bind("/node/tree/fusermount3", "/usr/bin/fusermount3"),
    Bind("/node/tree/fusermount3", "/usr/bin/fusermount"),
    Bind("/node/tree/fusermount3", "/bin/fusermount3"),
    Bind("/node/tree/fusermount3", "/bin/fusermount"),
)


@pytest.fixture
def null_is_fuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take /dev/null for the device, since a machine of unit tests need not have FUSE."""
    number = os.stat(NULL).st_rdev
    monkeypatch.setattr(kit_module, "DEVICE_NUMBER", (os.major(number), os.minor(number)))


@pytest.mark.usefixtures("null_is_fuse")
def test_a_container_gets_the_device_where_everybody_may_open_it() -> None:
    kit = Kit("/folder", "/node", "/mfcp", NULL)
    assert kit.problem == ""
    assert kit.for_socket("any").binds == PROGRAMS
    assert kit.for_socket("any").devices == (Device("/dev/fuse", "/dev/fuse", "rw"),)
    assert kit.for_socket_folder("/run/user/7/mfcp/x").binds[1] == Bind("/run/user/7/mfcp/x", "/opt/mfcp/socket")


def check_stand_in(kit: Kit, *words: str) -> None:
    for word in words:
        assert word in kit.problem
    assert kit.for_socket("any").binds == (*PROGRAMS, Bind("/node/dev-fuse", "/dev/fuse"))
    assert kit.for_socket("any").devices == ()
    assert all(bind.read_only for bind in kit.for_socket("any").binds)


@pytest.mark.usefixtures("null_is_fuse")
@pytest.mark.parametrize(
    ("mode", "words"),
    [
        (stat.S_IFCHR | 0o600, ("mode 0600", "chmod 0666 /dev/fuse")),
        (stat.S_IFCHR | 0o660, ("mode 0660", "chmod 0666 /dev/fuse")),
        (stat.S_IFBLK | 0o666, ("10:229",)),
    ],
)
def test_where_not_everybody_may_open_the_device_a_file_stands_in_for_it(
    monkeypatch: pytest.MonkeyPatch, mode: int, words: tuple[str, ...]
) -> None:
    real = os.stat

    def changed(path: str) -> object:
        return os.stat_result([mode, *real(path)[1:]], {"st_rdev": real(path).st_rdev})

    monkeypatch.setattr(os, "stat", changed)
    check_stand_in(Kit("/folder", "/node", "/mfcp", NULL), *words)


def test_another_device_is_not_given_to_containers() -> None:
    check_stand_in(Kit("/folder", "/node", "/mfcp", NULL), "10:229", "modprobe fuse")


def test_a_file_in_place_of_the_device_is_not_given_to_containers(tmp_path: Path) -> None:
    (tmp_path / "fuse").touch()
    check_stand_in(Kit("/folder", "/node", "/mfcp", f"{tmp_path}/fuse"), "10:229", "modprobe fuse")


def test_a_node_without_the_device_is_told_so(tmp_path: Path) -> None:
    check_stand_in(Kit("/folder", "/node", "/mfcp", f"{tmp_path}/none"), "No such file", "modprobe fuse")


# ---- where the driver's own tree is


def test_the_source_has_its_tree_in_dist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "isdir", lambda path: True)
    assert own_tree() == str(Path(__file__).resolve().parents[3] / "dist/mfcp")


def test_the_frozen_driver_has_its_tree_beside_its_folder_or_at_its_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "meta-fuse-csi-plugin/meta-fuse-csi-plugin"
    program.parent.mkdir()
    program.touch()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/link").symlink_to(program)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin/link"))
    assert own_tree() == "/opt/mfcp"
    (tmp_path / "mfcp").mkdir()
    assert own_tree() == f"{tmp_path}/mfcp"
