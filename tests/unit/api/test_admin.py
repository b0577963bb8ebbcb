"""Tests the driver's own service."""

import asyncio
from types import SimpleNamespace
from typing import Any

from driver.api import admin
from driver.api.rpc import admin_pb2
from driver.model.paths import VolumePaths
from driver.model.policy import of_volume
from driver.model.publication import Publication
from driver.model.state import Past, State
from driver.volumes.condition import Condition


def volume(options: str = "", root: str = "/pods") -> Any:
    """Return a stand-in for a volume, with the attributes that the service reads."""
    return SimpleNamespace(
        publication=Publication(
            "csi-1", VolumePaths(root, "uid/mount", "uid/empty", "data"), "fuse.sock", False, (), options, "default/pod"
        ),
        mounts=SimpleNamespace(current=None, state=State.WAITING, past=Past(1.5, 3), count_detached=lambda: 0),
        policy=of_volume(False, [], options),
    )


def test_a_path_may_have_any_bytes() -> None:
    shown = admin.message_of(volume(root="/pods\udcff/日本"))
    assert shown.target_path == "/pods\\udcff/日本/uid/mount"
    assert shown.socket_path == "/pods\\udcff/日本/uid/empty/fuse.sock"


def test_warnings_are_shown_once() -> None:
    """They are left out if the condition has them: mountOptions may be long, and there may be many volumes."""
    assert "bogus" in admin.message_of(volume("bogus")).warnings[0]
    shown = admin.message_of(volume("bogus"), Condition(True, "bogus is unknown"))
    assert (list(shown.warnings), shown.condition, shown.abnormal) == ([], "bogus is unknown", True)


def test_readiness_looks_at_no_volume() -> None:
    """A pod whose programs hang must not make the node NotReady."""
    service = admin.Admin(volumes=None, standalone=None, problem=lambda: "no /dev/fuse below /x\udcff")  # type: ignore[arg-type]
    answer = asyncio.run(service.GetReadiness(admin_pb2.GetReadinessRequest(), None))  # type: ignore[arg-type]
    assert answer.problem == "no /dev/fuse below /x\\udcff"
