"""Test that the processes which ask FUSE programs are not in the control groups of the driver's container."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.events import wait_until
from harness.pod import Node, Pod

from fusermount3_proxy.wire import mountinfo


def mount_table() -> list[mountinfo.Mount]:
    return mountinfo.parse(Path("/proc/self/mountinfo").read_bytes())


def options_of_version_2() -> list[str]:
    """Return the options of the node's cgroup2 hierarchy, which each mount of it can change."""
    return [mount.super_options for mount in mount_table() if mount.fstype == "cgroup2"]


@pytest.fixture
def group() -> Iterator[Path]:
    """Make a control group in the first hierarchy that can be found."""
    first = next(mount.path for mount in mount_table() if mount.fstype in ("cgroup", "cgroup2"))
    made = Path(os.fsdecode(first)) / f"mfcp-test-{secrets.token_hex(6)}"
    made.mkdir()
    yield made
    wait_until("the group is empty", lambda: not (made / "cgroup.procs").read_text())
    made.rmdir()


def test_only_the_driver_is_in_its_group(node: Node, pod: Pod, group: Path) -> None:
    before = options_of_version_2()
    node.driver.stop()
    node.driver.wrapper = ("sh", "-c", f'echo $$ >{group}/cgroup.procs && exec "$@"', "sh")
    node.driver.start()
    pod.publish()
    assert len(node.driver.own_processes()) == 3  # the driver and its starters
    assert (group / "cgroup.procs").read_text() == f"{node.driver.pid}\n"
    assert "control groups" not in node.driver.log
    assert options_of_version_2() == before
    node.driver.wrapper = ()
    node.driver.restart()
