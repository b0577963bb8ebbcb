"""Tests all volumes together: what a driver restores, records and repairs, also where something unforeseen happens."""

import asyncio
import fcntl
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from real_volumes import volumes_in, without_placeholders
from with_processes import DEADLINE, run, the_starter, until

from driver.blocking.calls import Bounds
from driver.linux import syscalls
from driver.linux.filewatch import FileWatch
from driver.model import limits
from driver.model.errors import VolumeError
from driver.model.paths import VolumePaths, standalone
from driver.model.publication import Publication
from driver.mounts.device import DeviceFolder
from driver.volumes.mounts import VolumeMounts
from driver.volumes.recordformat import Record
from driver.volumes.records import Records
from driver.volumes.volume import Volume
from driver.volumes.volumes import Volumes


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


def test_a_volume_that_cannot_be_restored_serves_nobody_and_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A pod must not be served for a volume that nobody can unpublish."""
    pods = tmp_path / "pods"
    records = Records(str(tmp_path / "state"))
    for name in ("bad", "good"):
        volume_paths = standalone(name, str(pods))
        (pods / volume_paths.target).mkdir(parents=True)
        (pods / volume_paths.sockets).mkdir()
        records.save(Record(Publication(name, volume_paths, "fuse.sock", False, (), "", "")))

    def check(mounts: VolumeMounts) -> None:
        if "bad" in mounts.place.path:
            raise RuntimeError("unforeseen")

    monkeypatch.setattr(VolumeMounts, "check_unless_held", check)
    without_placeholders(monkeypatch)

    async def main() -> None:
        async with volumes_in(tmp_path, records) as volumes:
            await volumes.restore("/pods", str(pods))
            assert [volume.publication.volume_id for volume in volumes] == ["good"]
            assert answers(pods / "good" / "sock" / "fuse.sock.v1")
            assert not (pods / "bad" / "sock" / "fuse.sock").exists()
            assert not answers(pods / "bad" / "sock" / "fuse.sock.v1")

    run(main())
    (told,) = [line for line in caplog.records if line.exc_info]
    assert told.getMessage() == (
        f"internal error while restoring the volume at {pods}/bad/mount, which serves no program until kubelet publishes it again; "
        "please report it with the traceback"
    )
    assert "unforeseen" in caplog.text and told.__dict__["volume"] == "bad"


async def test_what_another_driver_kept_from_being_recorded_is_recorded_when_that_one_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = VolumePaths(str(tmp_path / "pods"), "uid/mount", "uid/empty", "data")
    (tmp_path / "pods" / paths.sockets).mkdir(parents=True)
    publication = Publication("csi-1", paths, "fuse.sock", False, (), "", "")
    without_placeholders(monkeypatch)
    state = str(tmp_path / "state")
    other = Records(state)
    assert other.own()
    async with volumes_in(tmp_path) as volumes:
        volume = await volumes.publish(publication)
        (told,) = volume.troubles.texts
        assert told.startswith("the volume cannot be recorded")
        assert told.endswith(f"another driver has it: '{state}'")
        os.close(other._files._lock)
        await volumes.publish(publication)
        assert not volume.troubles.has("record")
        assert [each.publication for each in volumes._records.load()] == [publication]


async def test_sockets_that_two_republishes_find_missing_are_made_again_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paths = VolumePaths(str(tmp_path), "uid/mount", "uid/empty", "data")
    sockets = tmp_path / paths.sockets
    sockets.mkdir(parents=True)
    publication = Publication("csi-1", paths, "fuse.sock", False, (), "", "")
    without_placeholders(monkeypatch)
    async with volumes_in(tmp_path) as volumes:
        volume = await volumes.publish(publication)
        (sockets / "fuse.sock").unlink()
        await volumes.publish(publication)
        # The sockets that were replaced are still being closed, so both of these wait.
        (sockets / "fuse.sock").unlink()
        await asyncio.gather(volumes.publish(publication), volumes.publish(publication))
        assert volume.troubles.texts == []
        assert answers(sockets / "fuse.sock.v1")
    assert "cannot repair" not in caplog.text


@pytest.mark.parametrize("serves", [True, False])
async def test_a_mount_that_has_ended_has_its_volume_repaired_as_long_as_the_driver_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serves: bool
) -> None:
    """While volumes are restored their sockets are still made, and a second set would be closed by nobody."""
    paths = VolumePaths(str(tmp_path), "uid/mount", "uid/empty", "data")
    sockets = tmp_path / paths.sockets
    sockets.mkdir(parents=True)
    publication = Publication("csi-1", paths, "fuse.sock", False, (), "", "")
    without_placeholders(monkeypatch)
    async with volumes_in(tmp_path) as volumes:
        if serves:
            await volumes.restore(str(tmp_path), str(tmp_path / "standalone"))
        volume = await volumes.publish(publication)
        (sockets / "fuse.sock").unlink()
        volumes._changed(volume.target)
        if serves:
            await until(lambda: (sockets / "fuse.sock").exists() and not volumes._publishing)
            volumes._is_serving = False
            (sockets / "fuse.sock").unlink()
            volumes._changed(volume.target)
        assert not volumes._publishing


async def test_an_internal_error_in_a_repair_for_which_nobody_waits_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(volume: Volume) -> None:
        raise RuntimeError("a mistake")

    paths = VolumePaths(str(tmp_path), "uid/mount", "uid/empty", "data")
    (tmp_path / paths.sockets).mkdir(parents=True)
    without_placeholders(monkeypatch)
    async with volumes_in(tmp_path) as volumes:
        await volumes.restore(str(tmp_path), str(tmp_path / "standalone"))
        volume = await volumes.publish(Publication("csi-1", paths, "fuse.sock", False, (), "", ""))
        monkeypatch.setattr(Volume, "republish", fails)
        volumes._changed(volume.target)
        await until(lambda: "internal error while repairing the volume" in caplog.text)
    assert "a mistake" in caplog.text


async def test_it_is_quiet_when_nobody_connects_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = VolumePaths(str(tmp_path), "uid/mount", "uid/empty", "data")
    (tmp_path / paths.sockets).mkdir(parents=True)
    without_placeholders(monkeypatch)
    monkeypatch.setattr("driver.volumes.volumes._MOMENT", 0.1)  # a busy machine can stop this process for the usual moment
    monkeypatch.chdir(tmp_path / paths.sockets)  # a socket's address holds 107 bytes

    loop = asyncio.get_running_loop()
    async with volumes_in(tmp_path) as volumes:
        volume = await volumes.publish(Publication("csi-1", paths, "fuse.sock", False, (), "", ""))
        await asyncio.wait_for(volumes.quiet(DEADLINE), DEADLINE / 2)

        connections = 0

        def connect() -> None:
            nonlocal connections
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
                client.connect("fuse.sock.v1")
            connections += 1

        async def connect_again_and_again() -> None:
            while True:
                connect()
                # More slowly than connections are accepted: with a full queue, connect(2) would block the server's own loop.
                await asyncio.sleep(limits.ACCEPT_WINDOW / 2)

        # As long as somebody connects again and again, the limit ends the wait.
        flood = loop.create_task(connect_again_and_again())
        began = loop.time()
        await volumes.quiet(0.2)
        assert loop.time() - began >= 0.2
        assert connections > 1
        flood.cancel()
        await asyncio.wait_for(volumes.quiet(DEADLINE), DEADLINE / 2)
        assert volume.accepted_connections == connections


async def test_nothing_is_kept_of_a_former_drivers_device_node_when_its_program_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A file stands in for the device node, which needs root.
    monkeypatch.setattr(DeviceFolder, "is_there", lambda nodes, name: (tmp_path / "dev" / name).exists())
    (tmp_path / "dev").mkdir(mode=0o700)
    program = os.open(tmp_path / "dev" / "0123456789abcdef", os.O_RDWR | os.O_CREAT)
    fcntl.flock(program, fcntl.LOCK_SH)
    workspace: Any = SimpleNamespace(devices=DeviceFolder(str(tmp_path / "dev")))
    watch = FileWatch(syscalls.inotify_init())
    await Volumes(workspace, watch, Records(str(tmp_path / "state")), Bounds(the_starter())).restore("/pods", "/standalone")
    assert len(watch._callbacks) == 1
    os.close(program)
    await until(lambda: not watch._callbacks)
    assert os.listdir(tmp_path / "dev") == []
    watch.close()


async def test_a_command_names_one_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_placeholders(monkeypatch)
    inline = f"csi-{'0123456789ab' * 6}"[:68]
    async with volumes_in(tmp_path) as volumes:
        for name, volume_id in (("a", inline), ("b", inline[:16]), ("c", f"{inline[:20]}{'f' * 48}"), ("d", "pv"), ("e", "pv")):
            paths = standalone(name, str(tmp_path))
            (tmp_path / paths.sockets).mkdir(parents=True)
            await volumes.publish(Publication(volume_id, paths, "fuse.sock", False, (), "", ""))
        named = {name: volumes.named(name).publication for name in (inline, inline[:16], inline[:21], str(tmp_path / "d/mount"))}
        assert [Path(publication.paths.target_path).parent.name for publication in named.values()] == ["a", "b", "a", "d"]
        for name, text in (
            ("pv", f"'pv' names 2 volumes: give the path of one: {tmp_path}/d/mount, {tmp_path}/e/mount"),
            (inline[:17], f"'{inline[:17]}' names 2 volumes: give the path of one: {tmp_path}/a/mount, {tmp_path}/c/mount"),
            ("none", "there is no volume 'none'; status lists all volumes"),
        ):
            with pytest.raises(VolumeError) as error:
                volumes.named(name)
            assert str(error.value) == text
