"""Test that a person can follow one pod's volume in the log by its name alone, from publish to unpublish."""

import json
import os
import re
from collections.abc import Callable

import pytest
from harness import mounts
from harness.events import wait_until
from harness.hostile import mount
from harness.kubelet import Published
from harness.pod import Node, Pod

LIFE = [
    r"mountOptions: .*bogus",
    r"published at \S+, waiting, in \d+\.\d ms",
    r"mounted fuse '/srv' for uid 0, pid \d+, asked for at '/data', in \d+\.\d ms",
    r"request refused: mount failed: Device or resource busy: bindfs \(pid \d+ in its container\) has mounted it since .*",
    r"the FUSE program has ended; its mount is detached, and another program can mount",
    r"mounted fuse .*",
    r"unmounted, as the pod asked for",
    r"restored at \S+, waiting",
    r"mounted fuse .*",
    r"unpublished in \d+\.\d ms",
]


def live(node: Node, pod: Pod) -> Published:
    """Make everything happen that can happen to a volume; another pod's volume is there at the same time."""
    other = node.pod().publish()
    volume = pod.publish(attributes={"mountOptions": "bogus"})
    fuse = pod.fuse(volume)
    program = volume.mounted_by(fuse)
    assert fuse.run("mkdir /other && bindfs -f /srv /other").code != 0
    program.kill("KILL")
    volume.wait_waiting()
    program = volume.mounted_by(fuse)
    fuse.check("ls /data")
    fuse.check("fusermount3 -u /data")
    program.wait()
    node.driver.restart()
    volume.mounted_by(fuse)
    volume.unpublish()
    other.unpublish()
    return volume


def check_life(messages: Callable[[], list[str]]) -> None:
    # The log is written before kubelet has its answer, and it is read through a file, so all of it is there.
    found = wait_until("the whole life is logged", lambda: found if len(found := messages()) >= len(LIFE) else None)
    for message, expected in zip(found, LIFE, strict=True):
        assert re.fullmatch(expected, message) or re.search(f"^{expected}", message), (message, expected)


def test_a_pods_lines_tell_the_life_of_its_volume(node: Node, pod: Pod) -> None:
    volume = live(node, pod)
    place = f" pod=default/pod-{pod.folder.uid[:8]} volume={volume.request.volume_id}: "
    check_life(lambda: [line.split(place, 1)[1] for line in node.driver.log.splitlines() if place in line])
    # No line about the volume is logged without the pod's name.
    for line in node.driver.log.splitlines():
        if volume.request.volume_id in line or volume.request.target_path in line:
            assert place in line


def test_an_unpublish_that_fails_names_the_pod(node: Node, pod: Pod) -> None:
    volume = pod.publish()
    # A file beneath the placeholder keeps rmdir from removing the target.
    node.driver.stop()
    unmount_all(volume)
    (volume.target / "file").write_text("somebody's\n")
    node.driver.start()
    with pytest.raises(Exception, match="not empty"):
        volume.unpublish()
    (line,) = [line for line in node.driver.log.splitlines() if "unpublish failed" in line and volume.request.volume_id in line]
    assert f"pod=default/pod-{pod.folder.uid[:8]} " in line
    unmount_all(volume)
    (volume.target / "file").unlink()


def unmount_all(volume: Published) -> None:
    for _ in volume.mounts:
        mounts.unmount(volume.target)


def test_json_lines_tell_the_same(node: Node, pod: Pod) -> None:
    node.driver.stop()
    node.driver.options = ("--log-format", "json")
    node.driver.start()
    try:
        begin = len(node.driver.log)
        volume = live(node, pod)

        def entries() -> list[dict[str, str]]:
            return [json.loads(line) for line in node.driver.log[begin:].splitlines()]

        def messages() -> list[str]:
            ours = [entry for entry in entries() if entry.get("pod") == f"default/pod-{pod.folder.uid[:8]}"]
            assert all(entry["volume"] == volume.request.volume_id for entry in ours)
            return [entry["message"] for entry in ours]

        check_life(messages)
        for entry in entries():
            assert {"time", "level", "message"} <= set(entry)
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry["time"])
            assert entry["level"] in ("info", "warning", "error")
    finally:
        node.driver.stop()
        node.driver.options = ()
        node.driver.start()


def test_a_pod_that_mounts_in_a_loop_does_not_fill_the_log(node: Node, pod: Pod) -> None:
    volume = pod.publish()
    said = len(node.driver.log)
    for _ in range(100):
        os.close(mount(volume))
    volume.wait_waiting()
    lines = [line for line in node.driver.log[said:].splitlines() if volume.request.volume_id in line]
    assert len([line for line in lines if " INFO " in line]) == 20
