"""Test that a placeholder whose owner, mode or ACL an application has changed gets them again, so that any program can mount."""

import os
import stat

import pytest
from harness.events import wait_until
from harness.kubelet import Published
from harness.pod import Node, Pod

AS_USER = "setpriv --reuid=1000 --regid=1000 --clear-groups"


def access(volume: Published) -> tuple[int, int, int, list[str]]:
    """Return owner, group, mode and extended attributes of what is at the target."""
    found = volume.target.stat()
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode), os.listxattr(volume.target)


USUAL = 0, 0, 0o777, list[str]()


@pytest.mark.parametrize(
    "change", ["chown 5000:6000 /data; chmod 700 /data", "chown 5000 /data", "chmod 1777 /data", "setfacl -m u:1000:--- /data"]
)
@pytest.mark.parametrize("when", ["republish", "mount and unmount", "mount and death", "restart and republish"])
def test_what_an_entrypoint_changes_does_not_last(node: Node, pod: Pod, when: str, change: str) -> None:
    volume = pod.publish()
    application, fuse = pod.application(volume), pod.fuse(volume)
    fuse.check("mkdir /source && chmod 777 /source")
    assert access(volume) == USUAL
    application.check(change)
    assert access(volume) != USUAL
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
    if when.endswith("republish") or "setfacl" in change:
        volume.republish()
    wait_until("the placeholder has its owner and mode", lambda: access(volume) == USUAL)
    fuse.check(f"{AS_USER} ls /data")
    volume.mounted_by(fuse, f"{AS_USER} bindfs -f /source /data")


def test_the_mode_of_a_programs_own_root_stays(pod: Pod) -> None:
    volume = pod.publish()
    fuse = pod.fuse(volume)
    fuse.check("mkdir /source && chmod 700 /source")
    volume.mounted_by(fuse, "bindfs -f /source /data")
    volume.republish()
    assert fuse.check("stat -c %a /source /data") == "700\n700\n"
