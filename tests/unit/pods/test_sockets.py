"""Tests the sockets in a pod's emptyDir, which the pod can change at any moment."""

import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from open_fds import nothing_leaked

from driver.pods import sockets
from driver.pods.sockets import FolderBeneath, NameTaken, NoDirectory, PodSockets

NAME = "fuse.sock"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a pods folder that holds the emptyDir of one pod."""
    (tmp_path / "pod/volumes/empty").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def directory(root: Path) -> Path:
    return root / "pod/volumes/empty"


@pytest.fixture
def place(root: Path) -> FolderBeneath:
    return FolderBeneath(str(root), "pod/volumes/empty")


@pytest.fixture(autouse=True)
def no_fd_is_left() -> Iterator[None]:
    with nothing_leaked():
        yield


def test_both_sockets_and_dev_fuse_are_for_everybody(place: FolderBeneath, directory: Path) -> None:
    umask = os.umask(0o077)
    try:
        sockets = PodSockets.make(place, NAME)
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(umask)
    assert sorted(os.listdir(directory)) == ["dev-fuse", NAME, f"{NAME}.v1"]
    for name in (NAME, f"{NAME}.v1"):
        mode = (directory / name).stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o666
    dev_fuse = (directory / "dev-fuse").stat()
    assert stat.S_ISREG(dev_fuse.st_mode)
    assert (stat.S_IMODE(dev_fuse.st_mode), dev_fuse.st_size) == (0o666, 0)
    assert sockets.are_in_place()
    assert sockets.are_known_in_place()
    sockets.close()


def test_the_umask_of_other_threads_stays(place: FolderBeneath, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop would make files that everybody can open."""

    def umask() -> str:
        return next(line for line in Path("/proc/thread-self/status").read_text().splitlines() if line.startswith("Umask:"))

    seen: list[str] = []
    is_bound, is_seen = threading.Event(), threading.Event()
    whole = sockets._bind

    def bind(directory: int, name: str, kind: int) -> socket.socket:
        seen.append(umask())
        is_bound.set()
        assert is_seen.wait(20)
        return whole(directory, name, kind)

    monkeypatch.setattr(sockets, "_bind", bind)
    before = umask()
    worker = threading.Thread(target=lambda: PodSockets.make(place, NAME).discard())
    worker.start()
    assert is_bound.wait(20)
    during = umask()
    is_seen.set()
    worker.join()
    assert seen[0] == "Umask:\t0000"
    assert during == before != seen[0]


def test_they_are_a_stream_and_a_packet_socket_that_listen(place: FolderBeneath, directory: Path) -> None:
    sockets = PodSockets.make(place, NAME)
    sockets.listen()
    for name, kind, listener in ((NAME, socket.SOCK_STREAM, sockets.original), (f"{NAME}.v1", socket.SOCK_SEQPACKET, sockets.v1)):
        assert not listener.getblocking()
        assert not listener.get_inheritable()
        with socket.socket(socket.AF_UNIX, kind) as client:
            folder = os.open(directory, os.O_PATH)
            client.connect(f"/proc/self/fd/{folder}/{name}")
            os.close(folder)
            listener.accept()[0].close()
    sockets.close()


def test_its_files_are_removed(place: FolderBeneath, directory: Path) -> None:
    sockets = PodSockets.make(place, NAME)
    sockets.remove()
    # A client that connected now would never be served.
    sockets.close()
    assert os.listdir(directory) == ["dev-fuse"]


def test_a_name_of_any_length_is_bound(place: FolderBeneath, directory: Path) -> None:
    name = "n" * 252
    sockets = PodSockets.make(place, name)
    assert sockets.are_in_place()
    assert sorted(os.listdir(directory)) == ["dev-fuse", name, f"{name}.v1"]
    sockets.close()


def test_sockets_of_a_former_driver_are_replaced(place: FolderBeneath, directory: Path) -> None:
    former = PodSockets.make(place, NAME)
    inode = (directory / NAME).stat().st_ino
    sockets = PodSockets.make(place, NAME)
    former_is_there = former.are_in_place()
    # When the former driver ends, the new sockets stay.
    former.remove()
    former.close()
    assert not former_is_there or inode == (directory / NAME).stat().st_ino
    assert sockets.are_in_place()
    sockets.close()


@pytest.mark.parametrize("name", [NAME, f"{NAME}.v1"])
@pytest.mark.parametrize("kind", ["file", "folder", "link", "dangling link", "fifo"])
def test_what_is_no_socket_is_the_pods_and_stays(place: FolderBeneath, directory: Path, name: str, kind: str) -> None:
    there = directory / name
    if kind == "file":
        there.write_text("precious")
    elif kind == "folder":
        there.mkdir()
    elif kind == "fifo":
        os.mkfifo(there)
    else:
        there.symlink_to("/dev/null" if kind == "link" else "nowhere")
    before = there.lstat()
    with pytest.raises(NameTaken, match="no socket"):
        PodSockets.make(place, NAME)
    assert (there.lstat().st_ino, there.lstat().st_mode) == (before.st_ino, before.st_mode)


@pytest.mark.parametrize("part", ["pod", "pod/volumes", "pod/volumes/empty"])
def test_a_link_on_the_way_is_not_followed(root: Path, place: FolderBeneath, part: str) -> None:
    # A pod could replace a directory on the path by a symlink to somewhere else on the node.
    real = root / part
    moved = root / "elsewhere"
    real.rename(moved)
    real.symlink_to(moved)
    with pytest.raises(NoDirectory):
        PodSockets.make(place, NAME)
    assert [name for _, _, names in os.walk(root) for name in names] == []


@pytest.mark.parametrize("kind", ["missing", "file", "socket"])
def test_what_is_not_a_directory_is_reported(place: FolderBeneath, directory: Path, kind: str) -> None:
    directory.rmdir()
    if kind == "file":
        directory.touch()
    with pytest.raises(NoDirectory) as caught:
        PodSockets.make(place, NAME)
    assert str(directory) in str(caught.value)


@pytest.mark.parametrize("change", ["original gone", "v1 gone", "replaced", "directory gone", "directory replaced", "directory a link"])
def test_what_the_pod_changes_is_noticed_and_left_alone(place: FolderBeneath, directory: Path, change: str) -> None:
    sockets = PodSockets.make(place, NAME)
    assert sockets.are_in_place()
    moved = directory.with_name("moved")
    if change == "original gone":
        (directory / NAME).unlink()
    elif change == "v1 gone":
        (directory / f"{NAME}.v1").unlink()
    elif change == "replaced":
        (directory / NAME).rename(directory / "kept")
        (directory / NAME).touch()
    else:
        directory.rename(moved)
        if change == "directory replaced":
            # kubelet does this with an emptyDir that has medium Memory.
            directory.mkdir()
        elif change == "directory a link":
            directory.symlink_to(moved)
    before = sorted(os.listdir(directory)) if directory.exists() else None
    assert not sockets.are_in_place()
    assert not sockets.are_known_in_place()
    sockets.remove()
    sockets.close()
    assert (sorted(os.listdir(directory)) if directory.exists() else None) == before


def test_a_failure_closes_what_was_opened(place: FolderBeneath, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(directory: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sockets, "put_dev_fuse", fails)
    with pytest.raises(OSError, match="No space left"):
        PodSockets.make(place, NAME)


def test_nobody_can_connect_to_sockets_that_may_not_be_kept(place: FolderBeneath, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are closed in the thread of the directory, which could block for ever if a client had queued fds in them."""
    refused = 0

    def is_removed_meanwhile(folder: int, name: str) -> None:
        nonlocal refused
        for suffix, kind in (("", socket.SOCK_STREAM), (".v1", socket.SOCK_SEQPACKET)):
            with socket.socket(socket.AF_UNIX, kind) as client, pytest.raises(ConnectionRefusedError):
                client.connect(f"/proc/self/fd/{folder}/{name}{suffix}")
            refused += 1

    monkeypatch.setattr(sockets, "_identity", is_removed_meanwhile)
    with pytest.raises(OSError, match="the pod removes the sockets"):
        PodSockets.make(place, NAME)
    assert refused == 2 * sockets._TRIES
    assert os.listdir(directory) == ["dev-fuse"]


def test_an_empty_directory_in_place_of_dev_fuse_is_replaced(place: FolderBeneath, directory: Path) -> None:
    """Docker makes one if a container that binds the file starts before the volume exists."""
    there = directory / "dev-fuse"
    there.mkdir()
    PodSockets.make(place, NAME).close()
    assert there.is_file()
    assert stat.S_IMODE(there.stat().st_mode) == 0o666


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_a_dev_fuse_of_the_pods_own_stays(place: FolderBeneath, directory: Path, kind: str) -> None:
    there = directory / "dev-fuse"
    if kind == "directory":
        there.mkdir()
        (there / "file").touch()
    elif kind == "file":
        there.write_text("mine")
        there.chmod(0o600)
    else:
        (directory / "victim").touch(mode=0o600)
        there.symlink_to("victim")
    PodSockets.make(place, NAME).close()
    if kind == "directory":
        assert (there / "file").is_file()
    elif kind == "file":
        assert there.read_text() == "mine"
        assert stat.S_IMODE(there.stat().st_mode) == 0o600
    else:
        assert stat.S_IMODE((directory / "victim").stat().st_mode) == 0o600


class OwnFolder:
    """Opens a folder of the driver's own, which is not below a pods folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self, resolve: int = 0) -> int:
        return os.open(self._path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def test_another_kind_of_folder_serves_as_well(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    sockets = PodSockets.make(OwnFolder(folder), "socket")
    assert sorted(os.listdir(folder)) == ["dev-fuse", "socket", "socket.v1"]
    assert sockets.are_in_place()
    (folder / "socket").unlink()
    assert not sockets.are_in_place()
    sockets.close()
