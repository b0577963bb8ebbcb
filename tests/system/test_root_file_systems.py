"""Test containers of many kinds: read-only, without a libc, of any user, with and without a file at /dev/fuse."""

from pathlib import Path

import pytest
from harness.container import Bind
from harness.pod import PLACE, SOCKETS, STARTER, TREE, Pod, single_file, tree
from harness.programs import static_fuse_program

HELLO = "/usr/bin/hello"
READ_ONLY = ["--read-only", "--read-only-tmpfs=false"]
UNPRIVILEGED = ["--user", "1234:1234", "--cap-drop", "all", "--security-opt", "no-new-privileges"]


@pytest.fixture
def hello() -> Bind:
    return Bind(static_fuse_program(), HELLO, read_only=True)


@pytest.fixture
def source(tmp_path: Path) -> Bind:
    """Make a folder for bindfs that any user may read and write."""
    folder = tmp_path / "source"
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "file").write_text("content\n")
    return Bind(folder, "/srv")


def test_read_only_root_file_system(pod: Pod, source: Bind) -> None:
    volume = pod.publish()
    application, fuse = pod.application(volume), pod.fuse(volume, binds=[source], options=READ_ONLY)
    assert "Read-only file system" in fuse.run("touch /tmp/new").err
    for _ in range(2):
        volume.mounted_by(fuse)
        assert application.check("cat /data/file") == "content\n"
        fuse.check("fusermount3 -u /data")


def test_read_only_root_file_system_with_fuse_starter(pod: Pod, hello: Bind) -> None:
    volume = pod.publish()
    application, fuse = pod.application(volume), pod.fuse(volume, binds=[hello], options=READ_ONLY)
    volume.mounted_by(fuse, f"{STARTER} hello -f /dev/fd/3")
    assert application.check("cat /data/hello") == "Hello World!\n"


class TestWithoutLibc:
    """The root file system contains only what is bound there: no libc, no shell, no dynamic loader."""

    @pytest.fixture
    def rootfs(self, tmp_path: Path) -> Path:
        folder = tmp_path / "rootfs"
        for name in ("dev", "etc", "proc", "run", "sys", "tmp", "elsewhere"):
            (folder / name).mkdir(parents=True)
        folder.chmod(0o755)
        return folder

    @pytest.mark.parametrize("mountpoint", ["/data", "/elsewhere"])
    def test_the_tree(self, pod: Pod, hello: Bind, rootfs: Path, mountpoint: str) -> None:
        volume = pod.publish()
        application = pod.application(volume)
        pod.fuse(volume, binds=[hello], rootfs=rootfs, command=[HELLO, "-f", mountpoint])
        application.wait_for("test -e /data/hello")
        assert application.check("cat /data/hello") == "Hello World!\n"

    def test_fusermount3_unmounts(self, pod: Pod, hello: Bind, rootfs: Path) -> None:
        volume = pod.publish()
        application = pod.application(volume)
        program = pod.fuse(volume, binds=[hello], rootfs=rootfs, command=[HELLO, "-f", "/data"])
        application.wait_for("test -e /data/hello")
        helper = pod.fuse(volume, rootfs=rootfs, command=["/usr/bin/fusermount3", "-u", "/data"])
        assert helper.wait().code == 0
        assert program.wait().code == 0
        assert application.check("ls -A /data") == ""

    def test_fuse_starter(self, pod: Pod, hello: Bind, rootfs: Path) -> None:
        volume = pod.publish()
        application = pod.application(volume)
        starter = [f"{PLACE}/fuse-starter", "--fd-passing-socket-path", f"{SOCKETS}/{volume.socket.name}"]
        pod.fuse(volume, binds=[hello], rootfs=rootfs, command=[*starter, "--", HELLO, "-f", "/dev/fd/3"])
        application.wait_for("test -e /data/hello")
        assert application.check("cat /data/hello") == "Hello World!\n"


@pytest.mark.parametrize("helper", ["tree", "single file"])
def test_without_root_and_capabilities(pod: Pod, source: Bind, helper: str) -> None:
    """One user serves, and another one uses the files: the kernel checks the modes, and the program's user owns the mount."""
    volume = pod.publish()
    helpers = tree() if helper == "tree" else single_file()
    fuse = pod.fuse(volume, helper=helpers, binds=[source], options=UNPRIVILEGED)
    other = pod.application(volume, options=["--user", "4321:4321", "--cap-drop", "all"])
    assert fuse.check("id -u; grep ^CapEff /proc/self/status; grep ^NoNewPrivs /proc/self/status").split() == (
        ["1234", "CapEff:", "0" * 16, "NoNewPrivs:", "1"]
    )
    fuse.check("echo secret >/srv/secret && chmod 600 /srv/secret")
    mount = volume.wait_mounted(fuse.start("bindfs -f /srv /data"))
    assert {"user_id=1234", "group_id=1234"} <= mount.super_options
    assert other.check("cat /data/file") == "content\n"
    assert "Permission denied" in other.run("cat /data/secret").err
    fuse.check("fusermount3 -u /data")
    volume.wait_waiting()


def test_without_root_on_a_read_only_root_file_system(pod: Pod, source: Bind) -> None:
    """Kubernetes' restricted profile asks for this. /dev/fuse is the empty file that the driver left in the emptyDir."""
    volume = pod.publish()
    application = pod.application(volume, options=["--user", "1234:1234", *READ_ONLY])
    fuse = pod.fuse(volume, binds=[source], options=[*UNPRIVILEGED, *READ_ONLY])
    volume.mounted_by(fuse)
    application.check("echo written >/data/new")
    assert fuse.check("cat /srv/new") == "written\n"


def test_an_empty_file_that_the_container_makes_at_dev_fuse(pod: Pod, source: Bind) -> None:
    volume = pod.publish()
    application, fuse = pod.application(volume), pod.fuse(volume, binds=[source], dev_fuse=False)
    fuse.check("test ! -e /dev/fuse && touch /dev/fuse")
    volume.mounted_by(fuse)
    assert application.check("cat /data/file") == "content\n"


def test_links_to_the_tree(pod: Pod, source: Bind) -> None:
    """An image's author places the tree so: COPY mfcp /opt/mfcp, and two links."""
    volume = pod.publish()
    application = pod.application(volume)
    fuse = pod.fuse(volume, helper=[Bind(TREE, PLACE, read_only=True)], binds=[source])
    fuse.check(f"for name in fusermount3 fusermount; do rm -f /usr/bin/$name; ln -s {PLACE}/fusermount3 /usr/bin/$name; done")
    volume.mounted_by(fuse)
    assert application.check("cat /data/file") == "content\n"
    fuse.check("fusermount -u /data")
