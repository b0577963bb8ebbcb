"""Test what the running driver may do: its capabilities, no_new_privs, the network, and the modes of what it makes."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

from harness.events import wait_until
from harness.hostile import mount
from harness.pod import Node, Pod
from harness.programs import REPOSITORY

# CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_SYS_ADMIN, CAP_MKNOD: capabilities(7)
USED = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 21 | 1 << 27
# CAP_DAC_READ_SEARCH, CAP_SETGID, CAP_SETUID, CAP_SYS_CHROOT, CAP_SYS_PTRACE, CAP_SYS_ADMIN
FOR_NAMESPACES = 1 << 2 | 1 << 6 | 1 << 7 | 1 << 18 | 1 << 19 | 1 << 21


def status(task: Path) -> dict[str, str]:
    return {name: value.strip() for name, _, value in (line.partition(":") for line in (task / "status").read_text().splitlines())}


def check(has: dict[str, str], used: int) -> None:
    sets = {name: int(has[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    assert sets == {"CapInh": 0, "CapPrm": used, "CapEff": used, "CapBnd": used, "CapAmb": 0}
    assert has["NoNewPrivs"] == "1"


def test_every_thread_has_only_the_capabilities_that_the_driver_uses(node: Node, pod: Pod) -> None:
    os.close(mount(pod.publish()))
    seen = set()
    for process in node.driver.own_processes():
        for task in Path(f"/proc/{process}/task").iterdir():
            try:
                has = status(task)
            except (FileNotFoundError, ProcessLookupError):  # the thread has ended
                continue
            seen.add(process)
            check(has, USED if process in (node.driver.pid, node.driver.starter()) else FOR_NAMESPACES)
    assert len(seen) == 3  # the driver and its starters


def test_nothing_is_opened_on_the_network(node: Node, pod: Pod) -> None:
    os.close(mount(pod.publish()))
    process = Path(f"/proc/{node.driver.pid}")

    def others() -> set[str]:
        """Return its sockets that are no Unix sockets. A socket that is closed meanwhile looks like one."""
        inodes = set()
        for name in os.listdir(process / "fd"):
            try:
                if found := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(process / "fd" / name)):
                    inodes.add(found[1])
            except FileNotFoundError:
                continue
        assert inodes
        return inodes - {line.split()[6] for line in (process / "net/unix").read_text().splitlines()[1:]}

    wait_until("all its sockets are Unix sockets", lambda: not others())


def test_what_the_driver_makes_is_for_root_alone(node: Node, pod: Pod) -> None:
    """Everything there is for root alone, except for what pods use."""
    volume = pod.publish()
    fd = mount(volume)
    assert status(Path(f"/proc/{node.driver.pid}"))["Umask"] == "0077"
    modes = {}
    for path, folders, files in os.walk(node.driver.run_dir):
        for name in [*folders, *files]:
            info = os.lstat(os.path.join(path, name))
            assert (info.st_uid, info.st_gid) == (0, 0)
            modes[os.path.join(path, name)] = info.st_mode
    os.close(fd)
    assert any(stat.S_ISCHR(mode) for mode in modes.values())
    assert {path: oct(mode) for path, mode in modes.items() if mode & 0o077} == {}
    for path in (node.driver.csi_socket, node.driver.admin_socket):
        assert os.lstat(path).st_mode == stat.S_IFSOCK | 0o600
    for name, kind in ((volume.socket.name, stat.S_IFSOCK), (f"{volume.socket.name}.v1", stat.S_IFSOCK), ("dev-fuse", stat.S_IFREG)):
        info = os.lstat(volume.socket.with_name(name))
        assert (info.st_mode, info.st_uid) == (kind | 0o666, 0)


_AS_UNKNOWN_USER = """
import os, prctl
from driver.linux import privileges
prctl.set_pdeathsig(9)
users = {privileges.run_as_unused_uid(os.geteuid) for _ in range(10)}
assert len(users) == 10 and min(users) >= 1 << 31, users
assert os.getresuid() == (0, 0, 0)
assert (prctl.get_dumpable(), prctl.get_pdeathsig()) == (1, 9)
"""


def test_being_another_user_for_a_moment_changes_nothing_for_later() -> None:
    """The driver becomes another user for a moment, so that its inotify instance is counted for that user."""
    subprocess.run([sys.executable, "-c", _AS_UNKNOWN_USER], cwd=REPOSITORY, check=True, timeout=20)
