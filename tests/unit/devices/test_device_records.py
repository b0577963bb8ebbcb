"""Test the records of mounts of fuse devices."""

import json
from pathlib import Path
from typing import Any

import pytest

from driver.devices import records
from driver.devices.records import DeviceRecord, DeviceRecords
from driver.model.fusemount import FuseMount
from driver.volumes.recordfiles import RecordFiles

RECORD = DeviceRecord(
    allocation="any",
    mount=FuseMount(b"/m\xff\n", "0:50", "host:", "fuse.sshfs", "0123456789abcdef", mounter=1000),
    namespace=4026532000,
    container="pid namespace 4026532001",
    uid=0,
    gid=0,
    pid=77,
    since=1_700_000_000.5,
    is_root=True,
)


def test_a_record_comes_back_as_it_was() -> None:
    assert records.from_json(json.loads(json.dumps(records.to_json(RECORD)))) == RECORD


def test_records_are_written_replaced_and_deleted(tmp_path: Path) -> None:
    files = DeviceRecords(RecordFiles(str(tmp_path)))
    files.save(RECORD)
    assert files.load() == [RECORD]
    files.delete(RECORD)
    assert files.load() == []
    files.delete(RECORD)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"namespace": "1"},
        {"uid": None},
        {"mount": {**records.to_json(RECORD)["mount"], "device": "../../etc/passwd"}},
        {"mount": {**records.to_json(RECORD)["mount"], "device": None}},
        {"mount": {**records.to_json(RECORD)["mount"], "mountpoint": "\u0100"}},
        {"mount": 3},
    ],
)
def test_a_record_that_no_driver_has_written_is_left_out(tmp_path: Path, change: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    files = DeviceRecords(RecordFiles(str(tmp_path)))
    files.save(RECORD)
    (file,) = tmp_path.glob("*.json")
    content = json.loads(file.read_text())
    (tmp_path / "broken.json").write_text(json.dumps(content | change))
    assert files.load() == [RECORD]
    assert "broken.json cannot be read" in caplog.text
