"""gocryptfs, for the clients that are built on go-fuse.

They start fusermount3 with an environment of _FUSE_COMMFD alone, over a SEQPACKET socket, wait for its end first, take
any word on standard error for a failure, and look into their mountpoint afterwards.
"""

import pytest
from harness.container import Container
from harness.kubelet import Published
from harness.pod import SOCKETS, VARIABLE, Pod, single_file, tree

# The lowest cost that it takes: the key's strength is not what is tested.
_MAKE = "mkdir /cipher && echo password >/password && gocryptfs -q -init -scryptn 10 -passfile /password /cipher"
_MOUNT = "gocryptfs -fg -passfile /password /cipher /data"


def mounts_and_serves(pod: Pod, fuse: Container, volume: Published, before: Container) -> None:
    fuse.check(_MAKE)
    program = fuse.start(_MOUNT)
    volume.wait_mounted(program)
    after = pod.application(volume)
    after.check("mkdir /data/folder && echo secret >/data/folder/file")
    assert before.check("cat /data/folder/file") == "secret\n"
    assert fuse.run("grep -r secret /cipher").code == 1
    fuse.check("fusermount3 -u /data")
    assert program.wait() == 0, program.err
    assert before.check("ls -A /data") == ""


@pytest.mark.parametrize("helper", ["tree", "single file"])
def test_with_the_variable_in_the_programs_environment(pod: Pod, helper: str) -> None:
    """There are two sockets, so the variable of fusermount3's parent is what tells."""
    volume = pod.publish()
    pod.publish(volume="other", socket="other.sock")
    before = pod.application(volume)
    fuse = pod.fuse(volume, helper=tree() if helper == "tree" else single_file())
    mounts_and_serves(pod, fuse, volume, before)


def test_without_any_variable(pod: Pod) -> None:
    """The one socket in the folder where manifests mount the emptyDir is found."""
    volume = pod.publish()
    before, fuse = pod.application(volume), pod.fuse(volume, environment={})
    assert fuse.run(f"test -S {SOCKETS}/{volume.socket.name} && env | grep {VARIABLE}").code == 1
    mounts_and_serves(pod, fuse, volume, before)
