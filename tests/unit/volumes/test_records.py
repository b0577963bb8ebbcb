"""Tests what survives the driver's process."""

import json
import math
import os
import shutil
from dataclasses import replace
from errno import EROFS
from pathlib import Path

import pytest

from driver.model.fusemount import DetachedMount, FuseMount
from driver.model.paths import VolumePaths
from driver.model.publication import Publication
from driver.model.state import End, Past
from driver.volumes.recordformat import Record
from driver.volumes.records import Records, _key

MOUNT = FuseMount(b"/m\xff\n", "0:61", "user@host:/srv", "fuse.sshfs", "0123456789abcdef")


def record(target: str = "uid/mount", mount: FuseMount | None = MOUNT, past: Past | None = None) -> Record:
    publication = Publication(
        volume_id="csi-1",
        paths=VolumePaths("/pods", target, "uid/empty", "data"),
        socket_name="fuse.sock",
        read_only=True,
        mount_flags=("noexec", "é\n"),
        mount_options="ro,fsname=日本\n",
        pod="default/pod",
    )
    return Record(publication, () if mount is None else (mount,), past)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


def next_driver(records: Records, folder: Path) -> Records:
    """Return the records of the process that comes after."""
    os.close(records._files._lock)
    return Records(str(folder))


@pytest.mark.parametrize("mount", [None, MOUNT, FuseMount(b"", "0:1", "", "fuse", None, False)])
def test_a_record_comes_back_as_it_was(folder: Path, mount: FuseMount | None) -> None:
    records = Records(str(folder))
    records.save(record(mount=mount))
    assert next_driver(records, folder).load() == [record(mount=mount)]


@pytest.mark.parametrize("past", [None, Past(1.5), Past(1e9, 3, End.DIED), Past(0.0, 1, End.ASKED), Past(0.0, 1, End.DIED, b"/data/\xff")])
def test_a_past_comes_back_as_it_was(folder: Path, past: Past | None) -> None:
    records = Records(str(folder))
    records.save(record(past=past))
    assert next_driver(records, folder).load() == [record(past=past)]


def test_a_record_of_a_driver_that_kept_no_past_is_read(folder: Path) -> None:
    records = Records(str(folder))
    records.save(record())
    (name,) = os.listdir(folder)
    content = json.loads((folder / name).read_text())
    del content["past"]
    (folder / name).write_text(json.dumps(content))
    assert next_driver(records, folder).load() == [record()]


def test_the_last_one_of_a_target_counts(folder: Path) -> None:
    records = Records(str(folder))
    records.save(record())
    records.save(record(mount=None))
    records.save(record("other/mount"))
    loaded = sorted(next_driver(records, folder).load(), key=lambda each: each.publication.paths.target)
    assert loaded == [record("other/mount"), record(mount=None)]


def test_what_is_deleted_is_gone(folder: Path) -> None:
    records = Records(str(folder))
    records.save(record())
    records.save(record("other/mount"))
    records.delete("/pods/uid/mount")
    records.delete("/pods/uid/mount")
    assert next_driver(records, folder).load() == [record("other/mount")]


def read_only(*_: object) -> None:
    raise OSError(EROFS, os.strerror(EROFS))


def test_where_nothing_can_be_deleted_only_what_is_there_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says of a read-only file system that it is one before it looks whether the file is there."""
    records = Records(str(folder))
    records.save(record())
    with monkeypatch.context() as failed:
        failed.setattr(os, "unlink", read_only)
        records.delete("/pods/other/mount")
        with pytest.raises(OSError, match="Read-only"):
            records.delete("/pods/uid/mount")
    assert next_driver(records, folder).load() == [record()]


def test_a_folder_that_cannot_be_read_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    records = Records(str(folder))
    monkeypatch.setattr(os, "listdir", read_only)
    assert records.load() == []
    assert "cannot be read" in caplog.text


def test_a_target_path_may_be_longer_than_a_files_name(folder: Path) -> None:
    records = Records(str(folder))
    records.save(record("x/" * 1500 + "mount"))
    assert len(next_driver(records, folder).load()) == 1


def test_records_are_for_nobody_else(folder: Path) -> None:
    umask = os.umask(0)
    try:
        Records(str(folder)).save(record())
    finally:
        os.umask(umask)
    assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe", b'{"version": 1}', b'{"version": 99, "bootId": "B"}', b'{"version": 1, "bootId": "B"}'],
)
def test_a_broken_record_costs_no_other_one(folder: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    records = Records(str(folder))
    records.save(record())
    (folder / "0.json").write_bytes(content.replace(b"B", records._files._boot_id.encode()))
    assert next_driver(records, folder).load() == [record()]
    assert "0.json" in caplog.text


@pytest.mark.parametrize("change", [{"mount": []}, {"mount": {}}, {"publication": None}, {"publication": {"paths": {}}}])
def test_a_record_with_other_fields_costs_no_other_one(folder: Path, change: dict[str, object]) -> None:
    records = Records(str(folder))
    records.save(record())
    (file,) = folder.iterdir()
    (folder / "0.json").write_text(json.dumps(json.loads(file.read_text()) | change))
    assert next_driver(records, folder).load() == [record()]


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        *(("past", "since", value) for value in (1e300, -1e18, math.nan, math.inf, "x", None)),
        *(("past", "mounts", value) for value in (10**30, -1, None)),
        ("past", "last_end", "x"),
        *(("past", "left", value) for value in (5, "\u0100")),
        *(("publication", "volume_id", value) for value in ("\ud800", "\udcff", 1, None)),
        *(("publication", "mount_flags", value) for value in ([1], ["\ud800"], None)),
        ("publication", "pod", None),
        ("publication", "read_only", "no"),
        ("publication", "paths", VolumePaths("/pods\ud800", "a", "b", "c")),
        ("publication", "paths", VolumePaths(5, "a", "b", "c")),  # type: ignore[arg-type]
        ("mount", "source", "\ud800"),
        ("mount", "node", 7),
        ("mount", "node", "../state/../../0"),
        ("mount", "on_placeholder", 1),
    ],
)
def test_a_record_that_no_driver_wrote_is_a_broken_one(
    folder: Path, section: str, field: str, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    """It would be taken up, and what is shown of all volumes would fail."""
    records = Records(str(folder))
    records.save(record("other/mount", past=Past(1.0)))
    (file,) = folder.iterdir()
    records.save(record(past=Past(1.0)))
    content = json.loads(file.read_text())
    content[section][field] = {name: getattr(value, name) for name in value.__slots__} if isinstance(value, VolumePaths) else value
    file.write_text(json.dumps(content))
    assert next_driver(records, folder).load() == [record(past=Past(1.0))]
    assert f"{file.name} cannot be read" in caplog.text


def test_a_copy_of_a_record_is_not_taken_up_and_stays(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = Records(str(folder))
    records.save(record())
    (file,) = folder.iterdir()
    copy = folder / "0.json"
    copy.write_bytes(file.read_bytes())
    assert next_driver(records, folder).load() == [record()]
    assert "0.json is not of the target" in caplog.text
    assert copy.exists()


def test_a_folder_that_somebody_has_removed_is_made_again_and_owned(folder: Path) -> None:
    records = Records(str(folder))
    assert records.save(record())
    shutil.rmtree(folder)
    assert not records.save(record("other/mount"))
    assert records.save(record())
    assert not Records(str(folder)).own()
    assert len(next_driver(records, folder).load()) == 2


def test_a_folders_name_may_have_any_bytes(folder: Path) -> None:
    kept = record()
    kept = replace(kept, publication=replace(kept.publication, paths=replace(kept.publication.paths, root="/run/\udcff")))
    records = Records(str(folder))
    records.save(kept)
    assert next_driver(records, folder).load() == [kept]


def test_a_record_of_an_earlier_boot_is_removed(folder: Path) -> None:
    records = Records(str(folder))
    records.save(record())
    (file,) = folder.iterdir()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"bootId": "an earlier one"}))
    assert next_driver(records, folder).load() == []
    assert not file.exists()


def test_what_a_killed_driver_left_half_written_is_cleared_away(folder: Path) -> None:
    records = Records(str(folder))
    records.save(record())
    (folder / "0123.json.new").write_text('{"version":')
    (folder / "something else").touch()
    assert next_driver(records, folder).load() == [record()]
    assert not (folder / "0123.json.new").exists()
    assert (folder / "something else").exists()


def test_a_second_driver_on_the_same_folder_changes_nothing_until_the_first_has_ended(folder: Path) -> None:
    records = Records(str(folder))
    records.save(record())
    second = Records(str(folder))
    assert not second.own()
    with pytest.raises(OSError, match="another driver has it"):
        second.save(record("other/mount"))
    second.delete("/pods/uid/mount")
    assert second.load() == []
    os.close(records._files._lock)
    second.save(record("other/mount"))
    assert {each.publication.paths.target for each in second.load()} == {"uid/mount", "other/mount"}


def test_a_record_that_does_not_fit_is_an_error_and_the_former_one_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = Records(str(folder))
    records.save(record())
    write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda fd, data: write(fd, data[:100]))
        with pytest.raises(OSError, match="No space left"):
            records.save(record(past=Past(1.0)))
    assert len(os.listdir(folder)) == 1
    assert next_driver(records, folder).load() == [record()]


RECORDS_OF_VERSION_1 = json.loads((Path(__file__).parent / "records-version-1.json").read_text())


def written(folder: Path, content: dict[str, object]) -> str:
    """Put a record into the folder as a driver of this boot would have written it. Returns its target."""
    records = Records(str(folder))
    paths = content["publication"]["paths"]  # type: ignore[index]
    target = f"{paths['root']}/{paths['target']}"
    Path(records._files._path(_key(target))).write_text(json.dumps(content | {"bootId": records._files._boot_id}))
    os.close(records._files._lock)
    return target


@pytest.mark.parametrize("content", RECORDS_OF_VERSION_1, ids=["waiting", "mounted", "left by a dead program", "adopted, no past"])
def test_what_the_last_driver_of_version_1_wrote_is_read_and_written_again_to_the_letter(folder: Path, content: dict[str, object]) -> None:
    """Records that a driver wrote before the list of mounts; an older driver finds every volume after a downgrade."""
    target = written(folder, content)
    records = Records(str(folder))
    (loaded,) = records.load()
    assert loaded.publication.paths.target_path == target
    records.save(loaded)
    (file,) = folder.iterdir()
    assert json.loads(file.read_text()) == content | {"bootId": records._files._boot_id}


def test_what_version_1_has_no_field_for_lies_where_it_does_not_look(folder: Path) -> None:
    records = Records(str(folder))
    records.save(record(mount=replace(MOUNT, mounter=1000)))
    (file,) = folder.iterdir()
    content = json.loads(file.read_text())
    assert content["version"] == 1
    assert set(content) - {"more"} == {"version", "bootId", "publication", "mount", "past"}
    assert set(content["mount"]) == {"mountpoint", "device", "source", "fstype", "node", "on_placeholder"}
    assert next_driver(records, folder).load() == [record(mount=replace(MOUNT, mounter=1000))]


def test_several_mounts_are_version_2(folder: Path) -> None:
    kept = replace(record(), mounts=(MOUNT, replace(MOUNT, device_number="0:62", mounter=0)))
    records = Records(str(folder))
    records.save(kept)
    (file,) = folder.iterdir()
    assert json.loads(file.read_text())["version"] == 2
    assert next_driver(records, folder).load() == [kept]


def test_what_was_unmounted_lazily_is_where_an_older_driver_ignores_it(folder: Path) -> None:
    records = Records(str(folder))
    kept = replace(record(mount=MOUNT), detached=(DetachedMount(replace(MOUNT, device_number="0:62", mounter=0), "7 8"),))
    records.save(kept)
    (file,) = folder.glob("*.json")
    content = json.loads(file.read_text())
    assert content["version"] == 1
    assert content.pop("more").keys() == {"detached"}
    records.save(record(mount=MOUNT))
    assert json.loads(file.read_text()) == content
    records.save(kept)
    assert next_driver(records, folder).load() == [kept]


@pytest.mark.parametrize("broken", [{}, 7, None, ["0:62"], {"on_placeholder": 1}, {"mountpoint": "/\u20ac"}], ids=repr)
def test_an_entry_of_a_lazy_unmount_that_cannot_be_read_costs_nothing_else(folder: Path, broken: object) -> None:
    kept = replace(record(mount=MOUNT), detached=(DetachedMount(replace(MOUNT, device_number="0:62", mounter=0), "7 8"),))
    records = Records(str(folder))
    records.save(kept)
    (file,) = folder.glob("*.json")
    content = json.loads(file.read_text())
    (entry,) = content["more"]["detached"]
    content["more"]["detached"] = [entry | broken if isinstance(broken, dict) and broken else broken, entry]
    file.write_text(json.dumps(content))
    assert next_driver(records, folder).load() == [kept]


@pytest.mark.parametrize("mounter", [-1, 1 << 32, "0", 1.5])
def test_a_mounter_that_is_no_uid_is_a_broken_record(folder: Path, mounter: object, caplog: pytest.LogCaptureFixture) -> None:
    written(folder, RECORDS_OF_VERSION_1[1] | {"more": {"mounter": mounter}})
    assert Records(str(folder)).load() == []
    assert "mounter" in caplog.text
