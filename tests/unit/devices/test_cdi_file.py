"""Tests the file by which engines know the fuse device. tests/system/test_cdi.py gives it to an engine."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from driver.devices import cdi
from driver.model.kit import Bind, ContainerKit, Device

KIT = ContainerKit((Bind("/f/tree", "/opt/mfcp"), Bind("/f/sockets/any", "/opt/mfcp/socket")), (Device("/dev/fuse", "/dev/fuse"),))
NODE = {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o666, "permissions": "rw"}


def spec(folder: Path) -> Any:
    (file,) = folder.iterdir()
    return json.loads(file.read_text())


def test_each_device_has_its_mounts_and_the_device_node(tmp_path: Path) -> None:
    other = ContainerKit((Bind("/f/tree", "/opt/mfcp", read_only=False),), ())
    assert cdi.write(str(tmp_path), {"other": other, "any": KIT})
    written = spec(tmp_path)
    assert (written["cdiVersion"], written["kind"]) == ("0.3.0", "mfcp.storage.pfn.io/fuse")
    first, second = written["devices"]
    assert first == {
        "name": "any",
        "containerEdits": {
            "deviceNodes": [NODE],
            "mounts": [
                {"hostPath": "/f/tree", "containerPath": "/opt/mfcp", "options": ["ro", "bind", "nosuid", "nodev"]},
                {"hostPath": "/f/sockets/any", "containerPath": "/opt/mfcp/socket", "options": ["ro", "bind", "nosuid", "nodev"]},
            ],
        },
    }
    assert second["name"] == "other"
    assert second["containerEdits"]["mounts"][0]["options"][0] == "rw"


def test_the_engine_makes_the_device_where_the_nodes_own_is_closed(tmp_path: Path) -> None:
    cdi.write(str(tmp_path), {"any": ContainerKit((Bind("/f/dev-fuse", "/dev/fuse"),), ())})
    (device,) = spec(tmp_path)["devices"]
    assert device["containerEdits"] == {"deviceNodes": [NODE], "mounts": []}


def test_the_file_is_written_again_only_where_it_differs(tmp_path: Path) -> None:
    folder = tmp_path / "etc/cdi"
    assert cdi.write(str(folder), {"any": KIT, "b": KIT})
    (file,) = folder.iterdir()
    before = file.stat().st_ino, file.read_bytes()
    assert not cdi.write(str(folder), {"b": KIT, "any": KIT})
    assert (file.stat().st_ino, file.read_bytes()) == before
    assert cdi.write(str(folder), {"any": KIT})
    assert [device["name"] for device in spec(folder)["devices"]] == ["any"]


@pytest.mark.parametrize("umask", [0, 0o077])
def test_every_user_can_read_it_and_only_its_owner_write(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        cdi.write(str(tmp_path / "cdi"), {"any": KIT})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "cdi").stat().st_mode) == 0o755
    (file,) = (tmp_path / "cdi").iterdir()
    assert file.suffix == ".json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o644


def test_a_name_that_an_engine_would_refuse_does_not_spoil_the_file(tmp_path: Path) -> None:
    cdi.write(str(tmp_path), {"any": KIT, "7": KIT, "x-": KIT, "": KIT, "x y": KIT})
    assert [device["name"] for device in spec(tmp_path)["devices"]] == ["any"]


def test_a_failed_write_leaves_the_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cdi.write(str(tmp_path), {"any": KIT})

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        cdi.write(str(tmp_path), {"b": KIT})
    assert [device["name"] for device in spec(tmp_path)["devices"]] == ["any"]


def test_the_mode_of_a_folder_that_is_there_is_the_administrators(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    cdi.write(str(tmp_path), {"any": KIT})
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o750


def test_it_is_removed_and_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "nvidia.json").write_text("{}")
    cdi.write(str(tmp_path), {"any": KIT})
    cdi.remove(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["nvidia.json"]
    cdi.remove(str(tmp_path))
    cdi.remove(str(tmp_path / "none"))
