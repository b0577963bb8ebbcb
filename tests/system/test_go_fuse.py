"""Test gocryptfs and rclone mount2 as examples of clients that are built on go-fuse.

They start fusermount3 with only _FUSE_COMMFD in its environment and a SEQPACKET socket, wait for its end first, take
any output on standard error for a failure, and look into their mountpoint afterwards.
"""

import pytest
from harness.container import Container
from harness.kubelet import Published
from harness.pod import SOCKETS, VARIABLE, Pod, single_file, tree


class Program:
    """Represents one of them: a command that makes its file system, and one that mounts it."""

    def __init__(self, setup: str, command: str) -> None:
        self.setup = setup
        self.command = command

    def mounts_and_serves(self, pod: Pod, fuse: Container, volume: Published, before: Container) -> None:
        fuse.check(f"mkdir /behind && {self.setup}")
        program = fuse.start(self.command)
        volume.wait_mounted(program)
        after = pod.application(volume)
        after.check("mkdir /data/folder && echo secret >/data/folder/file")
        assert before.check("cat /data/folder/file") == "secret\n"
        # The data has also reached the folder behind the file system.
        fuse.wait_for("find /behind -type f -size +0 | grep -qv /gocryptfs")
        fuse.check("fusermount3 -u /data")
        assert program.wait() == 0, program.err
        assert program.err == ""
        assert before.check("ls -A /data") == ""


PROGRAMS = {
    "gocryptfs": Program(
        # The lowest cost that the program accepts: the strength of the key is not tested.
        "echo password >/password && gocryptfs -q -init -scryptn 10 -passfile /password /behind",
        "gocryptfs -q -fg -passfile /password /behind /data",
    ),
    "rclone mount2": Program(
        "touch /rclone.conf",
        "rclone --config /rclone.conf mount2 --allow-non-empty --vfs-cache-mode writes --vfs-write-back 0 :local:/behind /data",
    ),
}
both_programs = pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)


@both_programs
@pytest.mark.parametrize("helper", ["tree", "single file"])
def test_with_the_variable_in_the_programs_environment(pod: Pod, program: Program, helper: str) -> None:
    """There are two sockets, so only the variable of fusermount3's parent says which one is meant."""
    volume = pod.publish()
    pod.publish(volume="other", socket="other.sock")
    before = pod.application(volume)
    fuse = pod.fuse(volume, helper=tree() if helper == "tree" else single_file())
    program.mounts_and_serves(pod, fuse, volume, before)


@both_programs
def test_without_any_variable(pod: Pod, program: Program) -> None:
    """The only socket in the folder where manifests mount the emptyDir is found."""
    volume = pod.publish()
    before, fuse = pod.application(volume), pod.fuse(volume, environment={})
    assert fuse.run(f"test -S {SOCKETS}/{volume.socket.name} && env | grep {VARIABLE}").code == 1
    program.mounts_and_serves(pod, fuse, volume, before)
