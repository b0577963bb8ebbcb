"""Test that the other tests prove what they claim: their containers can do nothing that needs privileges."""

import os

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
