"""Test that mounts are detached although a mount namespace has as many as it may have (fs.mount-max)."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import full, mounts
from harness.container import Background
from harness.events import wait_until
from harness.fleet import Application, Fleet, shows
from harness.kubelet import Published
from harness.pod import Node


@pytest.fixture
def fleet(node: Node) -> Iterator[Fleet]:
    fleet = Fleet(node)
    yield fleet
    fleet.close()


@contextmanager
def full_table(folder: Path) -> Iterator[None]:
    """Fill the driver's namespace, which is the tests' own."""
    place = folder / "full"
    place.mkdir()
    try:
        full.fill(place)
        yield
    finally:
        mounts.unmount_lazily(place)
        place.rmdir()


@contextmanager
def full_pod(node: Node, volume: Published) -> Iterator[None]:
    """Start a process in a namespace of its own, in which only this volume is mounted, as in a container that starts now."""
    place = Path(tempfile.mkdtemp(prefix="full-pod-", dir=node.folder))
    (place / "volume").mkdir()
    (place / "full").mkdir()
    script = (
        'mount --bind "$0" "$2/volume" && umount --lazy "$1" && mount -t tmpfs mfcp-test "$2/full" && mkdir "$2/full/folder" && '
        '"$3" "$4" "$2/full/folder" && echo full && exec sleep 100000'
    )
    arguments = [volume.target, volume.pod.kubelet.pods_dir, place, sys.executable, full.__file__]
    command = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "full\n"
            yield
        finally:
            process.kill()


def serving(fleet: Fleet, volume: Published, text: str) -> Background:
    program = fleet.start(volume, "serves", text)
    shows(fleet.seen(volume), text)
    return program


def wait_detached(volume: Published) -> None:
    """Wait until the driver has detached the mount. A mount table of that length is not read again and again."""
    wait_until("the driver calls it waiting", lambda: volume.condition.startswith("waiting since"), 2)


def test_the_mount_table_of_the_driver_is_full(node: Node, fleet: Fleet) -> None:
    """An application that has bound the mount does not keep its program alive, however the mount is detached."""
    dying, asked, unpublished = volumes = [node.pod().publish() for _ in range(3)]
    programs = [serving(fleet, volume, "first") for volume in volumes]
    applications = [Application(volume) for volume in volumes]
    with full_table(node.folder):
        programs[0].kill("KILL")
        wait_detached(dying)
        unmount = fleet.unmount(asked)
        assert unmount.wait() == 0, unmount.err
        programs[1].wait()
        unpublished.unpublish()
        programs[2].wait()
        dying.unpublish()
        asked.unpublish()
    for application in applications:
        application.end()


@pytest.mark.parametrize("how", ["unpublish", "unmount", "death"])
def test_the_mount_table_of_a_pod_is_full(node: Node, fleet: Fleet, how: str) -> None:
    volume = node.pod().publish()
    program = serving(fleet, volume, "first")
    said = len(node.driver.log)
    with full_pod(node, volume):
        if how == "unpublish":
            volume.unpublish()
            return
        if how == "unmount":
            unmount = fleet.unmount(volume)
            assert unmount.wait() == 0, unmount.err
        else:
            program.kill("KILL")
        wait_detached(volume)
        assert "may stay in containers until they restart" in node.driver.log[said:]
        serving(fleet, volume, "second").kill("KILL")
    volume.wait_waiting()
