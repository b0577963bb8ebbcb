import os
import subprocess

from driver.linux.usernamespace import is_root_over

NOBODY = 65534


def test_root_of_the_initial_namespace_is_root_over_everybody() -> None:
    assert is_root_over(os.getpid(), 0, NOBODY)
    assert not is_root_over(os.getpid(), 1000, NOBODY)


def test_root_of_ones_own_namespace_is_root_over_oneself() -> None:
    uid = os.getuid()
    process = subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "sh", "-c", "echo; read x"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdin is not None
    process.stdout.readline()
    assert is_root_over(process.pid, uid, uid)
    assert not is_root_over(process.pid, uid, uid + 1)
    process.communicate(b"\n")
    assert not is_root_over(process.pid, uid, uid), "a process that has ended"
