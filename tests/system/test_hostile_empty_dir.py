"""Test that nothing outside the emptyDir is touched, whatever the pod puts there and however fast it changes it."""

import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from harness import mounts
from harness.events import wait_until
from harness.hostile import mount_and_end
from harness.kubelet import SOCKET, refused
from harness.pod import Node, Pod
from harness.programs import SOURCES

_ALL = os.environ.get("MFCP_ALL")
_ROUNDS = 3000 if _ALL else 200
_SECONDS = 900 if _ALL else 120  # the racer computes all the time, and other tests run beside it
NAMES = (SOCKET, f"{SOCKET}.v1", "dev-fuse", ".mfcp-bind")


class Outside:
    """Represents a folder of the node that must stay as it is."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        folder.mkdir()
        for name in names:
            (folder / name).write_text(name)
            (folder / name).chmod(0o600)
        (folder / "sub").mkdir(mode=0o700)
        self._before = self._state()

    def _state(self) -> dict[str, tuple[int, int, int, int]]:
        found = {}
        for path in [self.folder, *self.folder.rglob("*")]:
            info = path.lstat()
            found[str(path)] = (info.st_ino, info.st_mode, info.st_size, info.st_mtime_ns)
        return found

    def is_untouched(self) -> bool:
        return self._state() == self._before


@contextmanager
def folder_outside(node: Node, names: Sequence[str]) -> Iterator[Outside]:
    made = Outside(node.driver.pods_dir / "outside", names)  # on the same mount, where hard links reach it
    yield made
    assert made.is_untouched()
    shutil.rmtree(made.folder)


@pytest.fixture
def outside(node: Node) -> Iterator[Outside]:
    with folder_outside(node, (*NAMES, "file")) as made:
        yield made


@pytest.fixture
def free_outside(node: Node) -> Iterator[Outside]:
    """Make one in which the driver's names are free: a driver that is led there could make its own files there."""
    with folder_outside(node, ("file",)) as made:
        yield made


@contextmanager
def racing(how: str, directory: Path, outside: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the racer while the block lasts; it must have swapped thousands of times."""
    command = [sys.executable, "-I", SOURCES / "racer.py", how, directory, outside, *NAMES]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"races\n"
    try:
        yield process
    finally:
        process.terminate()
        swaps = int(process.stdout.read())
        process.wait()
    print(how, swaps, "swaps")
    assert swaps > 1000


@pytest.mark.timeout(_SECONDS)
@pytest.mark.parametrize("how", ["links", "exchange", "remove"])
def test_a_race_for_the_names_in_the_empty_dir(pod: Pod, outside: Outside, how: str) -> None:
    directory = pod.folder.empty_dir()
    published = 0
    with racing(how, directory, outside.folder):
        for _ in range(_ROUNDS):
            try:
                volume = pod.publish()
            except grpc.RpcError:
                pass
            else:
                published += 1
                volume.republish()
                volume.unpublish()
            # A publish that was refused may have followed a link, too.
            assert outside.is_untouched()
    print(published, "of", _ROUNDS)
    clear(directory)
    volume = pod.publish()
    mount_and_end(volume)


@pytest.mark.timeout(_SECONDS)
def test_a_race_for_the_empty_dir_itself(pod: Pod, free_outside: Outside) -> None:
    """No container whose emptyDir it is can do that, and the driver does not rely on this."""
    directory = pod.folder.empty_dir()
    with racing("directory", directory, free_outside.folder):
        for _ in range(_ROUNDS):
            with suppress(grpc.RpcError):
                volume = pod.publish()
                volume.republish()
                volume.unpublish()
            assert free_outside.is_untouched()
    if directory.is_symlink():
        directory.unlink()
        directory.mkdir()
    clear(directory)
    mount_and_end(pod.publish())


def clear(directory: Path) -> None:
    for path in directory.iterdir():
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    for path in directory.parent.glob("*.other"):
        path.unlink() if path.is_symlink() else path.rmdir()


PUT: dict[str, Callable[[Path, Path], object]] = {
    "link": lambda path, outside: path.symlink_to(outside / path.name),
    "dangling link": lambda path, outside: path.symlink_to(outside / "not there"),
    "link to a directory": lambda path, outside: path.symlink_to(outside),
    "directory": lambda path, outside: path.mkdir(),
    "fifo": lambda path, outside: os.mkfifo(path),
    "device": lambda path, outside: os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3)),
    "unreadable": lambda path, outside: path.touch(mode=0),
    "hard link": lambda path, outside: os.link(outside / "file", path),
}


@pytest.mark.parametrize("kind", PUT)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_there_already_is_neither_followed_nor_opened(pod: Pod, outside: Outside, name: str, kind: str) -> None:
    path = pod.folder.empty_dir() / name
    try:
        PUT[kind](path, outside.folder)
    except OSError as error:
        pytest.fail(f"cannot put a {kind}: {error}")
    before = path.lstat()
    began = time.monotonic()
    if name == "dev-fuse" and kind == "directory":
        pod.publish().unpublish()
        assert stat.S_ISREG(path.lstat().st_mode)
        path.unlink()
        return
    if name == "dev-fuse":
        pod.publish().unpublish()
    else:
        with refused(grpc.StatusCode.FAILED_PRECONDITION) as refusal:
            pod.publish()
        assert name in refusal.text and "remove it" in refusal.text
    assert time.monotonic() - began < 5
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)
    path.rmdir() if kind == "directory" else path.unlink()


def test_an_empty_dir_that_cannot_be_written_is_reported(pod: Pod) -> None:
    directory = pod.folder.empty_dir()
    mounts.mount("--bind", "-o", "ro", directory, directory)
    try:
        with refused(grpc.StatusCode.INTERNAL) as refusal:
            pod.publish()
        assert "Read-only" in refusal.text
    finally:
        mounts.unmount(directory)
    mount_and_end(pod.publish())


def test_something_is_mounted_over_the_empty_dir_after_publish(pod: Pod) -> None:
    """kubelet mounts a memory emptyDir so, and unmounts it when unpublish has answered."""
    volume = pod.publish()
    directory = volume.socket.parent
    mounts.mount("-t", "tmpfs", "mfcp-test-memory", directory)
    try:
        volume.republish()
        assert volume.socket.is_socket()
        mount_and_end(volume)
        volume.unpublish()
    finally:
        # A plain unmount succeeds, because nothing of the driver's keeps it busy.
        mounts.unmount(directory)
    clear(directory)


def test_the_empty_dir_is_replaced_after_publish(pod: Pod, free_outside: Outside) -> None:
    volume = pod.publish()
    directory = volume.socket.parent
    former = directory.rename(directory.with_name("former.other"))
    directory.symlink_to(free_outside.folder)
    volume.republish()
    assert free_outside.is_untouched()
    directory.unlink()
    directory.mkdir()
    volume.republish()
    mount_and_end(volume)
    volume.unpublish()
    clear(former)


@pytest.mark.parametrize("replacement", ["nothing", "link", "file", "directory", "other socket"])
def test_the_pod_replaces_a_socket(pod: Pod, outside: Outside, replacement: str) -> None:
    volume = pod.publish()
    volume.socket.unlink()
    if replacement == "other socket":
        with socket.socket(socket.AF_UNIX) as other:
            folder = os.open(volume.socket.parent, os.O_PATH)
            other.bind(f"/proc/self/fd/{folder}/{volume.socket.name}")
            os.close(folder)
    elif replacement == "link":
        volume.socket.symlink_to(outside.folder / SOCKET)
    elif replacement == "file":
        volume.socket.touch()
    elif replacement == "directory":
        volume.socket.mkdir()
    volume.republish()
    if replacement in ("link", "file"):
        volume.socket.unlink()
    elif replacement == "directory":
        volume.socket.rmdir()

    def is_served() -> bool:
        volume.republish()
        return volume.socket.is_socket() and volume.socket.with_name(f"{volume.socket.name}.v1").is_socket()

    wait_until("the sockets are there again", is_served)  # the former ones may have to be closed first
    mount_and_end(volume)
