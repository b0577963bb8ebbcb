"""Pods that may do nothing (Kubernetes' restricted profile), of any user, and what the modes of files mean to them.

Without capabilities, no_new_privs, a read-only root file system, the engine's seccomp profile. See also
test_root_file_systems.py.
"""

import ctypes
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from errno import EINVAL
from pathlib import Path

import pytest
from harness import mounts
from harness.container import Bind, Container
from harness.events import wait_until
from harness.kubelet import Published
from harness.pod import PLACE, SOCKETS, Node, Pod, single_file, tree
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
    """Everything read-only but an emptyDir, which is a place: the sockets'."""
    volume = pod.publish()
    application = pod.application(volume)
    fuse = pod.fuse(volume, helper=single_file(), options=[*RESTRICTED, *user(1234, 1234)])
    program = fuse.start(f"TMPDIR={SOCKETS} bindfs -f /srv /data")
    volume.wait_mounted(program)
    application.wait_for("ls /data")
    fuse.check(f"TMPDIR={SOCKETS} fusermount3 -u /data")
    assert program.wait() == 0


# ---- files


class Files:
    """One file that the program says belongs to 4321:6666 with mode 640, whoever the program is."""

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
        volume.wait_mounted(fuse.start("bindfs -f --force-user=4321 --force-group=6666 --perms=u=rwD,g=rD,o=D /srv /data"))
        self.users["group"].wait_for("cat /data/file")

    def _container(self, options: Sequence[str]) -> Container:
        return self._pod.application(self._volume, options=options)


def test_the_modes_that_the_program_says_count_for_every_user(pod: Pod, tmp_path: Path) -> None:
    """As the kernel checks them (default_permissions), and not the program, which may do everything with its own file."""
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


# ---- pods with hostUsers: false: their volumes are idmapped mounts, mount_setattr(2)

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_AT_FDCWD, _AT_EMPTY_PATH, _OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH = -100, 0x1000, 1, 4
_MOUNT_ATTR_IDMAP, _MS_SLAVE = 0x00100000, 1 << 19
_FIRST = 100000  # the node's uid that is root in the pod


class _MountAttr(ctypes.Structure):
    _fields_ = (("set", ctypes.c_uint64), ("clear", ctypes.c_uint64), ("propagation", ctypes.c_uint64), ("userns", ctypes.c_uint64))


def _call(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


@pytest.fixture
def user_namespace() -> Iterator[int]:
    """One in which root is another user of the node, as kubelet makes it for such a pod."""
    with subprocess.Popen(["unshare", "--user", "cat"], stdin=subprocess.PIPE) as process:
        wait_until(
            "it has a namespace of its own",
            lambda: os.readlink(f"/proc/{process.pid}/ns/user") != os.readlink("/proc/self/ns/user"),
        )
        for which in ("uid_map", "gid_map"):
            Path(f"/proc/{process.pid}/{which}").write_text(f"0 {_FIRST} 65536\n")
        fd = os.open(f"/proc/{process.pid}/ns/user", os.O_RDONLY)
        yield fd
        os.close(fd)


def idmapped(target: Path, user_namespace: int) -> int:
    """What a container runtime does with a volume of such a pod: a copy of the mount, idmapped, that gets later mounts."""
    tree = _call(_OPEN_TREE, _AT_FDCWD, os.fsencode(target), _OPEN_TREE_CLONE)
    attributes = _MountAttr(set=_MOUNT_ATTR_IDMAP, propagation=_MS_SLAVE, userns=user_namespace)
    try:
        _call(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, ctypes.byref(attributes), ctypes.sizeof(attributes))
    except OSError:
        os.close(tree)
        raise
    return tree


def test_a_program_in_a_user_namespace_of_its_own_mounts(pod: Pod) -> None:
    """The driver opens the device and mounts, so it is the node's namespace that the file system belongs to."""
    volume = pod.publish()
    application = pod.application(volume)
    # The engine's seccomp profile lets containers with this capability alone make namespaces; the program has none.
    fuse = pod.fuse(volume, options=["--cap-add", "sys_admin"])
    as_user = "setpriv --reuid=1234 --regid=1234 --clear-groups unshare --user --map-root-user"
    assert fuse.check(f"{as_user} id -u") == "0\n"
    program = fuse.start(f"{as_user} bindfs -f /srv /data")
    mount = volume.wait_mounted(program)
    assert {"user_id=1234", "group_id=1234"} <= mount.super_options  # as the node sees it
    application.wait_for("ls /data")
    program.kill("KILL")
    volume.wait_waiting()


def test_the_placeholder_can_be_idmapped_and_gets_the_mount_that_comes_later(node: Node, pod: Pod, user_namespace: int) -> None:
    """The pod starts before the mount. Its root is not the node's, and reads what everybody may."""
    volume = pod.publish()
    seen = node.folder / "seen"
    seen.mkdir()
    tree = idmapped(volume.target, user_namespace)
    _call(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(seen), _MOVE_MOUNT_F_EMPTY_PATH)
    os.close(tree)
    try:
        assert os.stat(seen).st_uid == _FIRST  # root's, for the pod's root
        fuse = pod.fuse(volume)
        fuse.check("echo content >/srv/file && chmod 644 /srv/file && echo secret >/srv/secret && chmod 600 /srv/secret")
        volume.wait_mounted(fuse.start("bindfs -f /srv /data"))
        fuse.check("cat /data/file")
        assert [mount.fstype for mount in mounts.stack(seen)] == ["tmpfs", "fuse"]
        assert os.stat(seen / "file").st_uid == 0  # not idmapped: nobody's, for the pod
        for name, code in (("file", 0), ("secret", 1)):
            command = ["nsenter", f"--user=/proc/self/fd/{user_namespace}", "cat", seen / name]
            assert subprocess.run(command, pass_fds=[user_namespace], capture_output=True).returncode == code
    finally:
        mounts.unmount_all_below(seen)
        seen.rmdir()


def test_a_mounted_file_system_can_not_be_idmapped(pod: Pod, user_namespace: int) -> None:
    """So such a pod does not start on it; once the program has gone it does. FUSE takes it from programs that ask for it alone."""
    volume = pod.publish()
    program = pod.fuse(volume).start("bindfs -f /srv /data")
    volume.wait_mounted(program)
    with pytest.raises(OSError) as error:
        idmapped(volume.target, user_namespace)
    assert error.value.errno == EINVAL
    program.kill("KILL")
    volume.wait_waiting()
    os.close(idmapped(volume.target, user_namespace))
