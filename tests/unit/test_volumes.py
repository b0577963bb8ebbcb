"""What a former driver left is taken up, by a driver that meets something unforeseen."""

import asyncio
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from with_processes import the_starter

from driver import syscalls
from driver.calls import Bounds
from driver.device import DeviceNodes
from driver.filewatch import FileWatch
from driver.listeners import Listeners
from driver.paths import VolumePaths, standalone
from driver.records import Record, Records
from driver.targetmount import TargetMount
from driver.volume import Publication
from driver.volumes import Volumes

DEADLINE = 20.0


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


def test_a_volume_that_cannot_be_taken_up_serves_nobody_and_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod must not be served for a volume that nobody can unpublish."""
    pods = tmp_path / "pods"
    records = Records(str(tmp_path / "state"))
    for name in ("bad", "good"):
        volume_paths = standalone(name, str(pods))
        (pods / volume_paths.target).mkdir(parents=True)
        (pods / volume_paths.sockets).mkdir()
        records.save(Record(Publication(name, volume_paths, "fuse.sock", False, (), "", ""), None))

    def look(mount: Any) -> None:
        if "bad" in mount._target:
            raise RuntimeError("unforeseen")

    monkeypatch.setattr(TargetMount, "look_unless_held", look)
    monkeypatch.setattr("driver.fusemount.mount_placeholder", lambda target: "0:1")  # nothing of it needs root

    async def main() -> None:
        workspace: Any = SimpleNamespace(nodes=DeviceNodes(str(tmp_path / "dev")))
        listeners, watch = Listeners(), FileWatch(syscalls.inotify_init())
        volumes = Volumes(workspace, watch, listeners, records, Bounds(the_starter()))
        volumes.restore("/pods", str(pods))
        assert [volume.publication.volume_id for volume in volumes] == ["good"]
        assert answers(pods / "good" / "sock" / "fuse.sock.v1")
        assert not (pods / "bad" / "sock" / "fuse.sock").exists()
        assert not answers(pods / "bad" / "sock" / "fuse.sock.v1")
        for volume in volumes:
            volume.give_up()
            await asyncio.gather(*volume._closing)
        listeners.close()
        watch.close()

    asyncio.run(asyncio.wait_for(main(), DEADLINE))


def test_what_another_driver_kept_from_being_recorded_is_recorded_when_that_one_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = VolumePaths(str(tmp_path / "pods"), "uid/mount", "uid/empty", "data")
    (tmp_path / "pods" / paths.sockets).mkdir(parents=True)
    publication = Publication("csi-1", paths, "fuse.sock", False, (), "", "")
    monkeypatch.setattr("driver.fusemount.mount_placeholder", lambda target: "0:1")  # nothing of it needs root
    state = str(tmp_path / "state")
    other = Records(state)
    assert other.own()

    async def main() -> None:
        workspace: Any = SimpleNamespace(nodes=DeviceNodes(str(tmp_path / "dev")))
        listeners, watch, records = Listeners(), FileWatch(syscalls.inotify_init()), Records(state)
        volumes = Volumes(workspace, watch, listeners, records, Bounds(the_starter()))
        volume = volumes.publish(publication)
        (told,) = volume.troubles.texts
        assert told.startswith("the volume cannot be recorded")
        assert told.endswith(f"another driver has it: '{state}'")
        os.close(other._lock)
        volumes.publish(publication)
        assert not volume.troubles.has("record")
        assert [each.publication for each in records.load()] == [publication]
        volume.give_up()
        watch.close()
        listeners.close()

    asyncio.run(asyncio.wait_for(main(), DEADLINE))
