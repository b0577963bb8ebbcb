"""Test that fusermount3 gets a signal at any moment of its life, leaves nothing mounted, and the volume can be mounted again."""

import json
import re
import signal

import pytest
from harness.container import Bind
from harness.pod import TEST_PROGRAMS, Pod
from harness.programs import static_fuse_program

MOMENTS = 40


# How many requests of killed helpers are served at once depends on how fast the machine is.
pytestmark = pytest.mark.alone


@pytest.mark.parametrize("name", ["TERM", "INT", "PIPE", "KILL", "HUP"])
def test_a_signal_at_any_moment(pod: Pod, name: str) -> None:
    """This is the tree's fusermount3: docs/compatibility.md says what the single file's two processes do with a signal."""
    volume = pod.publish()
    binds = [TEST_PROGRAMS, Bind(static_fuse_program(), "/usr/bin/hello", read_only=True)]
    application, fuse = pod.application(volume), pod.fuse(volume, binds=binds)
    application.check("true")  # the engine cannot bind the mount of a program that has just ended, so the container must run before
    lines = fuse.check(f"python3 /programs/interrupted.py {name} {MOMENTS} /data", timeout=100)
    results = [json.loads(line) for line in lines.splitlines()]
    assert len(results) >= MOMENTS
    for result in results:
        assert result["code"] in (0, 1, -signal.Signals[f"SIG{name}"])
        # It may find the former mount, which the driver is about to detach.
        assert re.fullmatch(r"(fusermount3: mount failed: Device or resource busy: .* has mounted it since .*\n)?", result["err"])
        assert result["fd"] or result["code"] != 0
    # The moments covered its whole life.
    assert {result["code"] for result in results} >= {0, -signal.Signals[f"SIG{name}"]}
    volume.wait_waiting()
    volume.mounted_by(fuse, "hello -f /data")
    assert application.check("cat /data/hello") == "Hello World!\n"
