"""Test auto_unmount where the program has mounted by itself: the container has CAP_SYS_ADMIN, and the driver plays no part."""

import pytest
from harness.container import Background, Container
from harness.events import wait_until
from harness.pod import TEST_PROGRAMS, Pod


@pytest.fixture
def privileged(pod: Pod) -> Container:
    """Start a container that may mount, and has no socket of the driver's."""
    binds = [TEST_PROGRAMS]
    container = pod.fuse(None, dev_fuse=False, binds=binds, options=["--cap-add=SYS_ADMIN", "--device=/dev/fuse"])
    container.check("mkdir /mnt/volume")
    return container


def mounted(container: Container, command: str = "python3 /programs/direct_mount.py /mnt/volume") -> tuple[Background, int]:
    """Return the program, and the pid of its helper."""
    program = container.start(command)
    container.wait_for("cat /mnt/volume/hello")
    return program, int(wait_until("the helper has started", lambda: program.out.strip()))


def gone(container: Container, helper: int) -> None:
    """Wait until the mount and the helper are gone."""
    container.wait_for("! grep -q ' /mnt/volume ' /proc/self/mountinfo")
    container.wait_for(f"! test -e /proc/{helper} || grep -q '^State:.Z' /proc/{helper}/status")


def test_a_killed_programs_mount_is_taken_off(privileged: Container) -> None:
    for _ in range(3):
        program, helper = mounted(privileged)
        program.kill("KILL")
        gone(privileged, helper)


def test_a_killed_process_groups_mount_is_taken_off(privileged: Container) -> None:
    """A terminal kills a whole process group. The helper has a session of its own, and only SIGKILL ends it."""
    program, helper = mounted(privileged, "setsid python3 /programs/direct_mount.py /mnt/volume")
    privileged.wait_for(f"test $(ps -o sid= -p {helper}) = {helper}")
    privileged.check(f"kill -TERM {helper}; kill -INT {helper}; kill -HUP {helper}")
    assert privileged.check("cat /mnt/volume/hello") == "Hello World!\n"
    privileged.check(f"kill -KILL -{program.pid}")
    gone(privileged, helper)


def test_after_an_orderly_end_the_helper_ends_and_prints_nothing(privileged: Container) -> None:
    program, helper = mounted(privileged)
    privileged.check("umount /mnt/volume")
    assert program.wait() == 0
    assert program.out == f"{helper}\n0\n"
    assert program.err == ""
    gone(privileged, helper)


def test_a_mount_that_another_program_serves_by_then_stays(privileged: Container) -> None:
    program, helper = mounted(privileged)
    privileged.check(f"kill -STOP {helper}")
    program.kill("KILL")
    privileged.check("umount /mnt/volume")
    other, _ = mounted(privileged)
    privileged.check(f"kill -CONT {helper}")
    privileged.wait_for(f"! test -e /proc/{helper} || grep -q '^State:.Z' /proc/{helper}/status")
    assert privileged.check("cat /mnt/volume/hello") == "Hello World!\n"
    privileged.check("umount /mnt/volume")
    assert other.wait() == 0


def test_without_the_capability_the_helper_prints_nothing_and_ends(privileged: Container) -> None:
    """Nobody reads its output any more."""
    program, helper = mounted(privileged, "python3 /programs/direct_mount.py /mnt/volume setpriv --bounding-set=-sys_admin --inh-caps=-all")
    program.kill("KILL")
    privileged.wait_for(f"! test -e /proc/{helper} || grep -q '^State:.Z' /proc/{helper}/status")
    assert "not connected" in privileged.run("ls /mnt/volume").err
    assert program.err in ("", "Killed\n")
    privileged.check("umount /mnt/volume")


def test_a_child_keeps_the_fd_a_moment_longer_than_the_socket(privileged: Container) -> None:
    """The helper asks a connection that ends during the question."""
    for seconds in (0.05, 0.2):
        program, helper = mounted(privileged, f"python3 /programs/direct_mount.py /mnt/volume --keeper {seconds}")
        program.kill("KILL")
        gone(privileged, helper)


def test_the_helper_does_not_keep_the_programs_output_open(privileged: Container) -> None:
    """A shell that captures a daemon's output would wait as long as the mount lives. The helper holds no /dev/fuse either."""
    program, helper = mounted(privileged)
    privileged.wait_for(f"test $(ps -o sid= -p {helper}) = {helper}")
    links = privileged.check(f"ls -l /proc/{helper}/fd | grep -o '[-]> .*'").split("\n")
    assert sorted(link.split(":")[0] for link in links if link) == ["-> /dev/null"] * 3 + ["-> socket"]
    program.kill("KILL")
    gone(privileged, helper)
