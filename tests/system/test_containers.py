"""Test that the other tests prove what they claim: their containers can do nothing that needs privileges.

A container that has CAP_SYS_ADMIN, from a former set-up, gets nothing from the driver: its program does not ask.
"""

import os

from harness.events import wait_until
from harness.pod import Pod

_CAP_SYS_ADMIN = 21  # capabilities(7)
_SECCOMP_FILTER = 2  # /proc/PID/status, proc(5)


def test_the_fuse_container_has_no_privileges(pod: Pod) -> None:
    fuse = pod.fuse(pod.publish())
    status = dict(line.split(":\t", 1) for line in fuse.check("cat /proc/self/status").splitlines())
    for which in ("CapEff", "CapPrm", "CapBnd"):
        assert not int(status[which], 16) >> _CAP_SYS_ADMIN & 1
    assert int(status["Seccomp"]) == _SECCOMP_FILTER
    for namespace in ("mnt", "pid", "net", "ipc", "uts"):
        assert fuse.check(f"readlink /proc/self/ns/{namespace}").strip() != os.readlink(f"/proc/self/ns/{namespace}")
    assert fuse.run("mount -t tmpfs none /mnt").code != 0


def test_a_program_cannot_mount_by_itself(pod: Pod) -> None:
    """With the distribution's fusermount3 nothing is mounted, so the mounts in other tests are the driver's."""
    volume = pod.publish()
    fuse = pod.fuse(volume, helper=[])
    result = fuse.run("bindfs -f /srv /data")
    assert result.code != 0
    assert "fusermount" in result.err
    assert volume.fuse is None


def test_with_cap_sys_admin_libfuse_mounts_the_empty_file_and_fails(pod: Pod) -> None:
    volume = pod.publish()
    result = pod.fuse(volume, options=["--cap-add=SYS_ADMIN"]).run("bindfs -f /srv /data")
    assert (result.code, result.err) == (1, "fuse: mount failed: Invalid argument\n")
    volume.wait_waiting()


def test_with_cap_sys_admin_and_the_device_libfuse_mounts_in_its_own_container_alone(pod: Pod) -> None:
    """Nobody reports an error: the program serves, and the application sees the placeholder."""
    volume = pod.publish()
    application = pod.application(volume)
    fuse = pod.fuse(volume, dev_fuse=False, options=["--cap-add=SYS_ADMIN", "--device=/dev/fuse"])
    fuse.check("mkdir /source && echo content >/source/file")
    program = fuse.start("bindfs -f /source /data")
    wait_until("the container itself reads", lambda: fuse.run("cat /data/file").out == "content\n")
    assert application.check("ls -A /data") == ""
    assert program.err == ""
    volume.wait_waiting()
    program.kill("TERM")  # as root it unmounts by itself
    assert program.wait() == 0, program.err
