"""Tests which control groups a process is moved into. That the kernel moves it, a system test shows."""

import os
from errno import EXDEV
from pathlib import Path

import pytest

from driver.linux import controlgroups

POD = b"/kubepods/burstable/pod1"


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, bytes]]:
    """Collect the hierarchies and groups into which a process would be moved."""
    found: list[tuple[bytes, bytes]] = []
    monkeypatch.setattr(controlgroups, "_move", lambda pid, controllers, path, options: found.append((controllers, path)))
    return found


@pytest.mark.parametrize(
    ("init", "ours", "expected"),
    [
        (b"/", POD + b"/driver", [b"/"]),  # a node without systemd
        (b"/", b"/driver", [b"/"]),
        (b"/init.scope", POD + b"/driver", [b"/init.scope"]),
        (b"/init.scope", b"/system.slice/driver.service", [b"/init.scope"]),
        (POD + b"/driver", POD + b"/driver", []),  # pid 1 is the container's own
        (POD + b"/pause", POD + b"/driver", []),  # pid 1 is the pod's own
        (b"/", b"/", []),
    ],
)
def test_a_process_goes_to_the_groups_of_the_nodes_pid_1(
    monkeypatch: pytest.MonkeyPatch, moved: list[tuple[bytes, bytes]], init: bytes, ours: bytes, expected: list[bytes]
) -> None:
    monkeypatch.setattr(controlgroups, "_groups", lambda pid: {b"": init} if pid == "1" else {b"": ours})
    controlgroups.move_to_groups_of_init(1, [])
    assert moved == [(b"", path) for path in expected]


def test_names_with_any_bytes_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cgroup").write_bytes(b"2:cpu,cpuacct:/a:b\r\xff\n1:name=systemd:/\n0::/\n")
    monkeypatch.setattr(controlgroups, "open", lambda path, mode: (tmp_path / "cgroup").open(mode), raising=False)
    assert controlgroups._groups("1") == {b"cpu,cpuacct": b"/a:b\r\xff", b"name=systemd": b"/", b"": b"/"}


def test_no_process_is_asked_where_version_2_was_never_mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controlgroups, "_groups", lambda pid: {b"cpu": b"/"})
    monkeypatch.setattr(controlgroups, "open", lambda *_: pytest.fail("a mount table was read"), raising=False)
    assert controlgroups.options_of_version_2() is None


def test_a_group_outside_the_namespace_is_not_mistaken_for_one_in_it() -> None:
    with pytest.raises(OSError, match="cgroup namespace of its own") as raised:
        controlgroups._move(os.getpid(), b"cpu", b"/../..", [])
    assert raised.value.errno == EXDEV


def test_cgroup2_is_not_mounted_where_its_options_are_not_known() -> None:
    with pytest.raises(OSError, match="options of cgroup2 are not known"):
        controlgroups._move(os.getpid(), b"", b"/", None)
