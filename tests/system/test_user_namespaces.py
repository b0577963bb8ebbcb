"""Test pods whose root is another user of the node (hostUsers: false): what works for them, and what does not.

They get either the volumes as they are, as with Docker's userns-remap, so that the owner is nobody for the pod; or
idmapped copies of them, as kubelet and containerd make them. The engine here knows no idmapped volumes, so the test makes them.
"""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from errno import EINVAL
from pathlib import Path

import pytest
from harness import mounts
from harness.container import Bind, Container
from harness.events import wait_until
from harness.kubelet import Published
from harness.pod import DATA, SOCKETS, STARTER, TEST_PROGRAMS, VARIABLE, Node, Pod, tree
from harness.programs import static_fuse_program

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_AT_FDCWD, _AT_EMPTY_PATH, _OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH = -100, 0x1000, 1, 4
_MOUNT_ATTR_IDMAP, _MS_SLAVE = 0x00100000, 1 << 19

FIRST = 100000  # the node's uid that is root in the pod
NOBODY = 65534
OPTIONS = [f"--uidmap=0:{FIRST}:65536", f"--gidmap=0:{FIRST}:65536"]

ORIGINAL = f"python3 /programs/original_client.py ${VARIABLE}"


class _MountAttr(ctypes.Structure):
    _fields_ = (("set", ctypes.c_uint64), ("clear", ctypes.c_uint64), ("propagation", ctypes.c_uint64), ("userns", ctypes.c_uint64))


def _call(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def idmapped(target: Path, user_namespace: int) -> int:
    """Do what a container runtime does with a volume of such a pod: copy the mount, idmapped; the copy gets later mounts."""
    tree = _call(_OPEN_TREE, _AT_FDCWD, os.fsencode(target), _OPEN_TREE_CLONE)
    attributes = _MountAttr(set=_MOUNT_ATTR_IDMAP, propagation=_MS_SLAVE, userns=user_namespace)
    try:
        _call(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, ctypes.byref(attributes), ctypes.sizeof(attributes))
    except OSError:
        os.close(tree)
        raise
    return tree


@pytest.fixture
def user_namespace() -> Iterator[int]:
    """Make one with the pod's mapping, as kubelet does."""
    with subprocess.Popen(["unshare", "--user", "cat"], stdin=subprocess.PIPE) as process:
        wait_until(
            "it has a namespace of its own",
            lambda: os.readlink(f"/proc/{process.pid}/ns/user") != os.readlink("/proc/self/ns/user"),
        )
        for which in ("uid_map", "gid_map"):
            Path(f"/proc/{process.pid}/{which}").write_text(f"0 {FIRST} 65536\n")
        fd = os.open(f"/proc/{process.pid}/ns/user", os.O_RDONLY)
        yield fd
        os.close(fd)


class Containers:
    """Makes the pod's containers, each in a user namespace of its own with the same mapping, on a root that is the pod's."""

    def __init__(self, pod: Pod, place: Path, user_namespace: int | None) -> None:
        self.pod = pod
        self._place = place
        self._user_namespace = user_namespace
        self._number = 0
        self._rootfs = place / "rootfs"
        for name in ("dev", "etc", "opt", "proc", "run", "srv", "sys", "tmp", "usr"):
            (self._rootfs / name).mkdir(parents=True)
        for name in ("bin", "lib", "lib64", "sbin"):
            (self._rootfs / name).symlink_to(f"usr/{name}")
        for path in [self._rootfs, *self._rootfs.iterdir()]:
            os.chown(path, FIRST, FIRST, follow_symlinks=False)

    @property
    def owner(self) -> int:
        """Return the owner of the driver's files as the pod sees it."""
        return NOBODY if self._user_namespace is None else 0

    def fuse(self, volume: Published, *options: str) -> Container:
        sockets = self._volume(volume.socket.parent)
        binds = [
            *(Bind(sockets, SOCKETS), Bind(sockets / "dev-fuse", "/dev/fuse"), Bind(self._volume(volume.target), DATA, "rslave")),
            *(Bind(Path("/usr"), "/usr", read_only=True), *tree(), TEST_PROGRAMS),
            Bind(static_fuse_program(), "/hello", read_only=True),
        ]
        return self._start(binds, options, {VARIABLE: f"{SOCKETS}/{volume.socket.name}"})

    def application(self, volume: Published) -> Container:
        binds = [Bind(Path("/usr"), "/usr", read_only=True), Bind(self._volume(volume.target), DATA, "rslave")]
        return self._start(binds, (), {})

    def _start(self, binds: list[Bind], options: tuple[str, ...], environment: dict[str, str]) -> Container:
        container = self.pod.container(binds, rootfs=self._rootfs, options=[*OPTIONS, *options], environment=environment)
        container.wait_until_running()
        return container

    def _volume(self, path: Path) -> Path:
        if self._user_namespace is None:
            return path
        self._number += 1
        place = self._place / str(self._number)
        place.mkdir()
        tree = idmapped(path, self._user_namespace)
        _call(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(place), _MOVE_MOUNT_F_EMPTY_PATH)
        os.close(tree)
        return place


@pytest.fixture(params=["remapped", "idmapped"])
def containers(node: Node, pod: Pod, request: pytest.FixtureRequest, user_namespace: int) -> Iterator[Containers]:
    place = node.folder / "user-namespace"
    place.mkdir()
    yield Containers(pod, place, user_namespace if request.param == "idmapped" else None)
    pod.stop_containers()
    mounts.unmount_all_below(place)
    shutil.rmtree(place)


WAYS = {
    "fusermount3": "/hello -f /data",
    "fuse-starter": f"sh -c 'exec {STARTER} /hello -f /dev/fd/3'",
    "original protocol": f"sh -c 'exec {ORIGINAL} /hello -f /dev/fd/3'",
}


@pytest.mark.parametrize("way", WAYS)
def test_a_program_mounts_dies_and_is_replaced_and_all_see_it(containers: Containers, way: str) -> None:
    """Permission is enough to use the sockets, and the fd works everywhere: it was opened in the node's user namespace."""
    pod = containers.pod
    volume = pod.publish()
    applications = [containers.application(volume), pod.application(volume)]
    fuse = containers.fuse(volume)
    assert fuse.check("cat /proc/self/uid_map").split() == ["0", str(FIRST), "65536"]
    for file in ("dev-fuse", volume.socket.name, f"{volume.socket.name}.v1"):
        assert fuse.check(f"stat -c '%u %g %a' {SOCKETS}/{file}") == f"{containers.owner} {containers.owner} 666\n"
    assert fuse.check("stat -c '%u %a' /data") == f"{containers.owner} 777\n"
    for _ in range(3):
        program = fuse.start(WAYS[way])
        mount = volume.wait_mounted(program)
        assert {f"user_id={FIRST}", f"group_id={FIRST}"} <= mount.super_options
        assert {"nosuid", "nodev"} <= mount.options
        for application in applications:
            application.wait_for("test -e /data/hello")
            assert application.check("cat /data/hello") == "Hello World!\n"
        program.kill("KILL")
        volume.wait_waiting()
        for application in applications:
            assert application.check("ls -A /data") == ""
            assert "No space left on device" in application.run("echo lost >/data/lost").err
    volume.mounted_by(fuse, "/hello -f /data")
    fuse.wait_for("test -e /data/hello")
    fuse.check("fusermount3 -u /data")
    volume.wait_waiting()


def test_a_container_that_is_killed_or_removed_is_replaced(containers: Containers) -> None:
    pod = containers.pod
    volume = pod.publish()
    application = containers.application(volume)
    for end in (lambda fuse: fuse.kill("KILL"), lambda fuse: fuse.remove()):
        fuse = containers.fuse(volume)
        volume.mounted_by(fuse, "/hello -f /data")
        application.wait_for("test -e /data/hello")
        end(fuse)
        volume.wait_waiting()
        assert application.check("ls -A /data") == ""


def test_owners_are_the_nodes(containers: Containers) -> None:
    """The owners that a program reports are used as they are: it reports its own files, which belong to nobody for the pod."""
    volume = containers.pod.publish()
    application, fuse = containers.application(volume), containers.fuse(volume)
    fuse.check("echo content >/srv/file && echo secret >/srv/secret && chmod 600 /srv/secret")
    volume.mounted_by(fuse)
    application.wait_for("test -e /data/file")
    assert application.check("stat -c '%u %g' /data/file") == f"{NOBODY} {NOBODY}\n"
    assert application.check("cat /data/file") == "content\n"
    for command in ("cat /data/secret", "echo more >>/data/file", "touch /data/new", "chown 0 /data/file"):
        assert application.run(command).code != 0, command


def test_a_program_that_is_reported_the_nodes_uid_gives_the_pod_its_files(containers: Containers) -> None:
    """The node's uid is in /proc/self/uid_map."""
    volume = containers.pod.publish()
    application, fuse = containers.application(volume), containers.fuse(volume)
    fuse.check("echo content >/srv/file && chmod 600 /srv/file")
    read = "read _ uid _ </proc/self/uid_map; read _ gid _ </proc/self/gid_map"
    volume.mounted_by(fuse, f"sh -c '{read}; exec bindfs -f --force-user=$uid --force-group=$gid /srv /data'")
    application.wait_for("test -e /data/file")
    assert application.check("stat -c '%u %g %a' /data/file") == "0 0 600\n"
    application.check("cat /data/file && echo more >>/data/file && mkdir /data/new && touch /data/new/file && rm -r /data/new")
    assert fuse.check("cat /srv/file") == "content\nmore\n"


def test_a_program_that_may_mount_in_its_own_namespace_does_not_ask_the_driver(containers: Containers) -> None:
    """As root of a user namespace with CAP_SYS_ADMIN, mount(2) rejects a file that is no /dev/fuse, and libfuse gives up."""
    volume = containers.pod.publish()
    fuse = containers.fuse(volume, "--cap-add=SYS_ADMIN")
    result = fuse.run("bindfs -f /srv /data")
    assert (result.code, result.err) == (1, "fuse: mount failed: Invalid argument\n")
    volume.mounted_by(fuse, f"sh -c 'exec {STARTER} /hello -f /dev/fd/3'")


def test_a_mounted_file_system_can_not_be_idmapped(pod: Pod, user_namespace: int) -> None:
    """Such a container does not start on it, and starts when the program has ended. FUSE allows it only for programs that ask for it.

    The text is the kernel's; runc 1.2 puts "failed to set MOUNT_ATTR_IDMAP on PATH:" before it.
    """
    volume = pod.publish()
    program = volume.mounted_by(pod.fuse(volume))
    with pytest.raises(OSError, match="Invalid argument") as error:
        idmapped(volume.target, user_namespace)
    assert error.value.errno == EINVAL
    program.kill("KILL")
    volume.wait_waiting()
    os.close(idmapped(volume.target, user_namespace))
