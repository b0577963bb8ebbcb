"""Test the folder of the records on a disk that fails: volumes go on without it."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import mounts
from harness.hostile import mount_and_end
from harness.pod import Node


@pytest.fixture
def state(module_node: Node) -> Iterator[Path]:
    """Give the driver a --state-dir that is a file system of its own."""
    driver = module_node.driver
    folder = module_node.folder / "state"
    folder.mkdir()
    mounts.mount("-t", "tmpfs", "mfcp-test-state", folder)
    driver.stop()
    driver.options = ("--state-dir", str(folder))
    driver.start()
    yield folder
    driver.end()
    driver.options = ()
    driver.start()
    module_node.delete_pods()
    mounts.unmount(folder)
    folder.rmdir()


def test_the_folder_becomes_read_only(module_node: Node, state: Path) -> None:
    """Disks become read-only after an error. This keeps no pod from working, and no driver from starting."""
    ends, stays = (module_node.pod().publish() for _ in range(2))
    mounts.mount("-o", "remount,ro", state)
    mount_and_end(ends)
    assert "cannot be recorded" in ends.condition
    ends.unpublish()
    ends.unpublish()
    said = len(module_node.driver.log)
    module_node.driver.restart()
    log = module_node.driver.log[said:]
    assert f"ERROR {state} (--state-dir) cannot be written" in log
    assert f"{ends.target} is not there any more" in log
    stays.republish()
    assert "cannot be recorded" not in stays.condition  # it is recorded as it was
    mount_and_end(stays)
    mounts.mount("-o", "remount,rw", state)
    stays.republish()
    assert "cannot be recorded" not in stays.condition
    module_node.driver.restart()
    (record,) = state.iterdir()
    assert str(stays.target) in record.read_text().replace('", "target": "', "/")
    stays.unpublish()
    assert os.listdir(state) == []


def test_the_folder_has_room_again(module_node: Node, state: Path) -> None:
    """What could not be recorded is recorded at kubelet's next republish."""
    mounts.mount("-o", "remount,nr_inodes=2", state)
    first, second = (module_node.pod().publish() for _ in range(2))
    said = len(module_node.driver.log)
    for _ in range(3):
        second.republish()
        assert "cannot be recorded" in second.condition
    assert module_node.driver.log[said:] == ""  # it was logged before
    first.unpublish()
    second.republish()
    assert "cannot be recorded" not in second.condition
    assert len(os.listdir(state)) == 1
    second.unpublish()


def test_a_record_in_it_that_no_driver_wrote_costs_no_other_volume(module_node: Node, state: Path) -> None:
    broken, other = (module_node.pod().publish() for _ in range(2))
    module_node.driver.stop()
    for path in state.iterdir():
        record = json.loads(path.read_text())
        if str(broken.target).endswith(record["publication"]["paths"]["target"]):
            record["past"]["since"] = 1e300
            path.write_text(json.dumps(record))
    module_node.driver.start()
    status = module_node.driver.cli("status", "--output", "wide")
    assert (status.returncode, status.stderr) == (0, "")
    assert str(other.target) in status.stdout
    assert str(broken.target) not in status.stdout
    broken.republish()
    assert str(broken.target) in module_node.driver.cli("status", "--output", "wide").stdout


@pytest.mark.parametrize("root", ["pods", "volumes"])
def test_a_record_of_a_target_elsewhere_is_not_restored_and_stays(module_node: Node, state: Path, tmp_path: Path, root: str) -> None:
    """A placeholder would be mounted on any directory of the node. A record of another --pods-dir is not restored either."""
    driver = module_node.driver
    volume = module_node.pod().publish()
    (file,) = state.iterdir()
    record = json.loads(file.read_text())
    roots = {"pods": driver.pods_dir, "volumes": driver.run_dir / "volumes"}
    places = {"root": str(roots[root]), "target": os.path.relpath(tmp_path, roots[root]), "sockets": "sock", "volume_name": "v"}
    record["publication"]["paths"] = places
    target = f"{places['root']}/{places['target']}"
    forged = state / f"{hashlib.sha256(target.encode()).hexdigest()[:32]}.json"
    forged.write_text(json.dumps(record))
    driver.stop()
    said = len(driver.log)
    driver.start()
    assert mounts.below(tmp_path) == []
    assert "it is recorded, but not restored" in driver.log[said:]
    assert forged.exists()
    assert str(volume.target) in driver.cli("status", "--output", "wide").stdout
    volume.unpublish()


def test_a_removed_folder_is_made_again(module_node: Node, state: Path) -> None:
    driver = module_node.driver
    driver.stop()
    folder = state / "made"
    driver.options = ("--state-dir", str(folder))
    driver.start()
    first, second = (module_node.pod().publish() for _ in range(2))
    shutil.rmtree(folder)
    mount_and_end(first)
    assert "cannot be recorded" not in first.condition
    driver.restart()
    status = driver.cli("status", "--output", "wide").stdout
    assert str(first.target) in status
    assert str(second.target) in status
    for volume in (first, second):
        volume.unpublish()


def test_a_folder_that_cannot_be_made_is_reported(module_node: Node, state: Path) -> None:
    driver = module_node.driver
    driver.stop()
    mounts.mount("-o", "remount,ro", state)
    driver.options = ("--state-dir", f"{state}/missing")
    with pytest.raises(AssertionError, match="the driver ended with 1"):
        driver.start()
    assert driver.wait() == 1
    reported = driver.log.splitlines()[-1]
    assert reported.startswith(f"Error: cannot prepare {state}/missing (--state-dir): Read-only file system")
    driver.options = ()
    driver.start()
