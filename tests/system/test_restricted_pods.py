"""Test pods that may do nothing (Kubernetes' restricted profile), of any user, and what the modes of files mean for them.

They have no capabilities, no_new_privs, a read-only root file system, and the engine's seccomp profile. See also
test_root_file_systems.py and test_user_namespaces.py.
"""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from harness.container import Bind, Container
from harness.kubelet import Published
from harness.pod import PLACE, SOCKETS, Pod, single_file, tree
from harness.programs import static_fuse_program

RESTRICTED = ["--read-only", "--read-only-tmpfs=false", "--cap-drop", "all", "--security-opt", "no-new-privileges"]


def user(uid: int, gid: int, *more: int) -> list[str]:
    return ["--user", f"{uid}:{gid}", *(f"--group-add={group}" for group in more)]


# ---- programs


@pytest.mark.parametrize("uid", [1, 1000, 65534, 2000000000])
def test_a_restricted_program_of_any_user_mounts_dies_and_mounts_again(pod: Pod, tmp_path: Path, uid: int) -> None:
    source = tmp_path / "source"
    source.mkdir()
    os.chown(source, uid, uid)
    volume = pod.publish()
    application = pod.application(volume, options=[*RESTRICTED, *user(uid, uid)])
    fuse = pod.fuse(volume, helper=tree(), binds=[Bind(source, "/srv")], options=[*RESTRICTED, *user(uid, uid)])
    for text in ("first", "second"):
        program = fuse.start("bindfs -f /srv /data")
        mount = volume.wait_mounted(program)
        assert f"user_id={uid}" in mount.super_options
        application.wait_for(f"echo {text} >/data/file")
        assert fuse.check("cat /srv/file") == f"{text}\n"
        program.kill("KILL")
        volume.wait_waiting()


@pytest.mark.parametrize("init", ["", "--init"])
def test_a_restricted_fuse_starter(pod: Pod, init: str) -> None:
    volume = pod.publish()
    application = pod.application(volume, options=[*RESTRICTED, *user(4321, 4321)])
    hello = Bind(static_fuse_program(), "/usr/bin/hello", read_only=True)
    starter = [f"{PLACE}/fuse-starter", *([init] if init else []), "--fd-passing-socket-path", f"{SOCKETS}/{volume.socket.name}"]
    command = [*starter, "--", "hello", "-f", "/dev/fd/3"]
    fuse = pod.fuse(volume, binds=[hello], dev_fuse=False, options=[*RESTRICTED, *user(1234, 1234)], command=command)
    application.wait_for("cat /data/hello")
    assert application.check("cat /data/hello") == "Hello World!\n"
    assert volume.fuse is not None and "user_id=1234" in volume.fuse.super_options
    fuse.kill("KILL")
    assert fuse.wait().code == 128 + signal.SIGKILL
    volume.wait_waiting()


def test_the_single_file_where_there_is_a_place_to_unpack_it(pod: Pod) -> None:
    """Everything is read-only except for an emptyDir, the one of the sockets."""
    volume = pod.publish()
    application = pod.application(volume)
    fuse = pod.fuse(volume, helper=single_file(), options=[*RESTRICTED, *user(1234, 1234)])
    program = volume.mounted_by(fuse, f"TMPDIR={SOCKETS} bindfs -f /srv /data")
    application.wait_for("ls /data")
    fuse.check(f"TMPDIR={SOCKETS} fusermount3 -u /data")
    assert program.wait() == 0


# ---- files


class Files:
    """Represents one file that the program reports as owned by 4321:6666 with mode 640, whatever user runs the program."""

    def __init__(self, pod: Pod, volume: Published, source: Path) -> None:
        self._pod, self._volume = pod, volume
        source.mkdir()
        (source / "file").write_text("content\n")
        for path in (source, source / "file"):
            os.chown(path, 1234, 1234)
        fuse = pod.fuse(volume, binds=[Bind(source, "/srv")], options=[*RESTRICTED, *user(1234, 1234)])
        self.users = {
            "owner": self._container(user(4321, 4321)),
            "group": self._container(user(7777, 6666)),
            "fsGroup": self._container(user(7777, 7777, 6666)),  # kubelet makes it a supplementary group
            "other": self._container(user(7777, 7777)),
            "server": self._container(user(1234, 1234)),
            "root without capabilities": self._container([*user(0, 0), "--cap-drop", "all"]),
        }
        volume.mounted_by(fuse, "bindfs -f --force-user=4321 --force-group=6666 --perms=u=rwD,g=rD,o=D /srv /data")
        self.users["group"].wait_for("cat /data/file")

    def _container(self, options: Sequence[str]) -> Container:
        return self._pod.application(self._volume, options=options)


def test_the_modes_that_the_program_says_count_for_every_user(pod: Pod, tmp_path: Path) -> None:
    """The kernel checks the modes (default_permissions), and not the program, which may do everything with its own file."""
    files = Files(pod, pod.publish(), tmp_path / "source")
    may = {
        who: tuple(application.run(command).code == 0 for command in ("cat /data/file", "echo more >>/data/file"))
        for who, application in files.users.items()
    }
    assert may == {
        "owner": (True, True),
        "group": (True, False),
        "fsGroup": (True, False),
        "other": (False, False),
        "server": (False, False),
        "root without capabilities": (False, False),
    }
    for application in files.users.values():
        assert application.check("stat -c %u:%g:%a /data/file") == "4321:6666:640\n"
