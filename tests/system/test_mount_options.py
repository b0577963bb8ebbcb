"""Test the mount options of the program and of the volume, as mount tables and applications see them."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from harness import mounts
from harness.container import Bind, Container
from harness.kubelet import Published
from harness.mounts import Mount
from harness.pod import Node, Pod
from harness.programs import static_fuse_program

HELLO = "/usr/bin/hello"
PROGRAMS = "bindfs -f /usr/bin /data"  # a file system that contains programs
READ_ONLY = "Read-only file system"


def hello() -> Bind:
    return Bind(static_fuse_program(), HELLO, read_only=True)


class Setup:
    """Represents one pod for the options of the program: another mount takes milliseconds.

    libfuse adds the program's name as subtype where neither fsname nor subtype is given.
    """

    def __init__(self, pod: Pod) -> None:
        self.volume = pod.publish()
        self.fuse = pod.fuse(self.volume, binds=[hello()])
        self.application = pod.application(self.volume)
        for container in (self.fuse, self.application):
            container.wait_until_running()

    @contextmanager
    def mounted(self, options: str, command: str = f"{HELLO} -f /data") -> Iterator[Mount]:
        """Run the program with this -o; yields the line of the node's mount table."""
        program = self.fuse.start(f"{command} -o {shlex.quote(options)}")
        try:
            yield self.volume.wait_mounted(program)
        finally:
            if program.is_running:
                self.fuse.check("fusermount3 -u /data")
                assert program.wait() == 0, program.err
            self.volume.wait_waiting()

    def seen_by_application(self) -> Mount:
        return mounts.stack("/data", mounts.parse(self.application.check("cat /proc/self/mountinfo")))[-1]


@pytest.fixture(scope="module")
def setup(module_node: Node) -> Setup:
    return Setup(module_node.pod())


def test_nothing_asked_for(node: Node, setup: Setup) -> None:
    with setup.mounted("rw") as mount:
        assert setup.seen_by_application().source == mount.source == "hello"
        assert mount.fstype == "fuse.hello"
        assert {"rw", "nosuid", "nodev"} <= mount.options
        assert {"user_id=0", "group_id=0", "allow_other", "default_permissions"} <= mount.super_options


def test_ro(node: Node, setup: Setup) -> None:
    with setup.mounted("ro") as mount:
        assert "ro" in mount.super_options
        assert READ_ONLY in setup.application.run("touch /data/new").err


def test_noexec(node: Node, setup: Setup) -> None:
    with setup.mounted("noexec", PROGRAMS) as mount:
        assert "noexec" in mount.options
        assert "noexec" in setup.seen_by_application().options
        refused = setup.application.run("/data/true")
        assert (refused.code, "Permission denied" in refused.err) == (126, True)


def test_without_noexec_it_executes(node: Node, setup: Setup) -> None:
    with setup.mounted("fsname=x", PROGRAMS):
        assert setup.application.run("/data/true").code == 0


@pytest.mark.parametrize(
    ("asked", "source", "fstype"),
    [
        ("fsname=a b", "a b", "fuse"),
        ("fsname=a\\,b", "a,b", "fuse"),
        ("fsname=back\\\\slash", "back\\slash", "fuse"),
        ("fsname=#tab\there", "#tab\there", "fuse"),
        ("fsname=two\nlines", "two\nlines", "fuse"),
        ("fsname=bücher€,subtype=größe", "bücher€", "fuse.größe"),
        ("fsname=s3://bucket/path?x=1&y=2,subtype=s3", "s3://bucket/path?x=1&y=2", "fuse.s3"),
        ("fsname=" + "n" * 1000 + ",subtype=long", "n" * 1000, "fuse.long"),
        ("subtype=only", "only", "fuse.only"),
    ],
    ids=["space", "comma", "backslash", "tab", "newline", "unicode", "url", "long", "subtype"],
)
def test_names(node: Node, setup: Setup, asked: str, source: str, fstype: str) -> None:
    with setup.mounted(asked) as mount:
        for seen in (mount, setup.seen_by_application()):
            assert (seen.source, seen.fstype) == (source, fstype)


def test_an_option_that_nobody_knows_is_refused(node: Node, setup: Setup) -> None:
    program = setup.fuse.start("sh -c 'exec 5<>/dev/null; _FUSE_COMMFD=5 fusermount3 -o ro,nonsense -- /data'")
    assert program.wait() == 1
    assert program.err == "fusermount3: unknown option 'nonsense'\n"
    assert setup.volume.fuse is None


# ---- options of the volume


@contextmanager
def published(pod: Pod, options: str = "", **request: object) -> Iterator[tuple[Published, Container, Container, Mount]]:
    """Mount a bindfs on a volume. Yields the volume, an application from before and one from after the mount, and the mount."""
    volume = pod.publish(**request)
    before, fuse = pod.application(volume), pod.fuse(volume)
    fuse.check("mkdir /source && echo content >/source/file && chmod -R a+rwx /source")
    mount = volume.wait_mounted(fuse.start(f"bindfs {options} -f /source /data"))
    yield volume, before, pod.application(volume), mount


def test_a_read_only_volume_refuses_every_write(pod: Pod) -> None:
    """The superblock is read-only: a container that started before the mount is refused as well, whatever the program asks."""
    with published(pod, "-o rw", read_only=True) as (_, before, after, mount):
        assert "ro" in mount.super_options
        for application in (before, after):
            assert application.check("cat /data/file") == "content\n"
            for command in ("echo x >/data/file", "touch /data/new", "mkdir /data/folder", "rm /data/file"):
                assert READ_ONLY in application.run(command).err, command


def test_mount_options_of_the_volume(pod: Pod) -> None:
    attributes = {"mountOptions": "ro,o=noexec,bogus"}
    with published(pod, attributes=attributes) as (_, before, after, mount):
        assert "ro" in mount.super_options
        assert "noexec" in mount.options
        for application in (before, after):
            assert READ_ONLY in application.run("touch /data/new").err
            assert application.run("/data/file").code == 126


def test_an_unknown_mount_option_of_the_volume_is_ignored_with_a_warning(node: Node, pod: Pod) -> None:
    volume = pod.publish(attributes={"mountOptions": "o=bogus,noexec"})
    (line,) = [line for line in node.driver.log.splitlines() if "'bogus'" in line and volume.request.volume_id in line]
    assert "WARNING" in line
    assert "mountOptions" in line
    assert f"pod-{pod.folder.uid[:8]}" in line


def test_mount_flags_of_the_volume(pod: Pod) -> None:
    with published(pod, mount_flags=("noexec", "noatime")) as (_, _, _, mount):
        assert {"noexec", "noatime"} <= mount.options


def test_what_the_volume_says_the_program_cannot_change(pod: Pod) -> None:
    with published(pod, "-o exec", attributes={"mountOptions": "noexec"}) as (_, before, _, mount):
        assert "noexec" in mount.options
        assert before.run("/data/file").code == 126
