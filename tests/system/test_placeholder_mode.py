"""Test that a placeholder whose mode an application has changed gets its mode again, so that any program can mount."""

import stat

import pytest
from harness.events import wait_until
from harness.pod import Node, Pod

CHANGE = "chown 5000 /data; chmod 700 /data"
AS_USER = "setpriv --reuid=1000 --regid=1000 --clear-groups"


@pytest.mark.parametrize("when", ["republish", "mount and unmount", "mount and death", "restart and republish"])
def test_what_an_entrypoint_changes_does_not_last(node: Node, pod: Pod, when: str) -> None:
    volume = pod.publish()
    application, fuse = pod.application(volume), pod.fuse(volume)
    fuse.check("mkdir /source && chmod 777 /source")
    application.check(CHANGE)
    assert stat.S_IMODE(volume.target.stat().st_mode) == 0o700
    if when.startswith("mount"):
        program = volume.mounted_by(fuse, "bindfs -f /source /data")
        if when == "mount and unmount":
            fuse.check("fusermount3 -u /data")
        else:
            program.kill("KILL")
        program.wait()
        volume.wait_waiting()
    elif when == "restart and republish":
        node.driver.restart()
    if when.endswith("republish"):
        volume.republish()
    wait_until("the placeholder has its mode", lambda: stat.S_IMODE(volume.target.stat().st_mode) == 0o777)
    fuse.check(f"{AS_USER} ls /data")
    volume.mounted_by(fuse, f"{AS_USER} bindfs -f /source /data")


def test_the_mode_of_a_programs_own_root_stays(pod: Pod) -> None:
    volume = pod.publish()
    fuse = pod.fuse(volume)
    fuse.check("mkdir /source && chmod 700 /source")
    volume.mounted_by(fuse, "bindfs -f /source /data")
    volume.republish()
    assert fuse.check("stat -c %a /source /data") == "700\n700\n"
