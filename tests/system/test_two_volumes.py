"""Test that two volumes in one pod have sockets, a mount and a life of their own."""

import subprocess
import sys

import pytest
from harness.container import Bind, Container
from harness.events import within
from harness.kubelet import Published
from harness.pod import SOCKETS, VARIABLE, Pod

from fusermount3_proxy.limits import SOCKET_WAIT

NAMES = ("one", "two")


class TwoVolumes:
    """Represents volumes `one` and `two`, at /one and /two, each with a bindfs of its own in the same container."""

    def __init__(self, pod: Pod, empty_dirs: tuple[str, str]) -> None:
        self.volumes: dict[str, Published] = {
            name: pod.publish(volume=name, empty_dir=empty_dir, socket=f"{name}.sock")
            for name, empty_dir in zip(NAMES, empty_dirs, strict=True)
        }
        binds = [Bind(volume.target, f"/{name}", "rslave") for name, volume in self.volumes.items()]
        if empty_dirs[0] == empty_dirs[1]:
            self.sockets = dict.fromkeys(NAMES, SOCKETS)
        else:
            self.sockets = {"one": SOCKETS, "two": "/second"}
            binds.append(Bind(self.volumes["two"].socket.parent, "/second"))
        self.fuse: Container = pod.fuse(self.volumes["one"], binds=binds, environment={})
        self.application: Container = pod.container(binds)
        self.fuse.check("for name in one two; do mkdir /source-$name && echo content of $name >/source-$name/file; done")

    def command(self, name: str) -> str:
        return f"{VARIABLE}={self.sockets[name]}/{name}.sock bindfs -f /source-{name} /{name}"

    def mount(self, name: str) -> None:
        self.volumes[name].mounted_by(self.fuse, self.command(name))

    def reads(self, name: str) -> str:
        return self.application.check(f"cat /{name}/file")


@pytest.mark.parametrize("empty_dirs", [("shared", "shared"), ("first", "second")], ids=["one emptyDir", "two emptyDirs"])
def test_each_volume_has_its_own_file_system(pod: Pod, empty_dirs: tuple[str, str]) -> None:
    both = TwoVolumes(pod, empty_dirs)
    programs = {name: both.fuse.start(both.command(name)) for name in NAMES}
    for name in NAMES:
        both.volumes[name].wait_mounted(programs[name])
        assert both.reads(name) == f"content of {name}\n"
    assert both.volumes["one"].fuse.device != both.volumes["two"].fuse.device

    # The death of one program changes nothing for the other.
    programs["one"].kill("KILL")
    both.volumes["one"].wait_waiting()
    assert both.reads("two") == "content of two\n"
    both.mount("one")
    assert both.reads("one") == "content of one\n"

    # Each socket unmounts only its own volume.
    unmount = f"{VARIABLE}={both.sockets['two']}/two.sock fusermount3 -u"
    result = both.fuse.run(f"{unmount} /one")
    assert (result.code, result.err) == (1, "fusermount3: entry for /one not found in /etc/mtab\n")
    both.fuse.check(f"{unmount} /two")
    both.volumes["two"].wait_waiting()
    assert both.reads("one") == "content of one\n"

    both.volumes["two"].unpublish()
    assert both.reads("one") == "content of one\n"


def test_without_the_variable_two_sockets_are_one_too_many(pod: Pod) -> None:
    both = TwoVolumes(pod, ("shared", "shared"))
    result = both.fuse.run("bindfs -f /source-one /one")
    assert result.code != 0
    (line,) = [line for line in result.err.splitlines() if line.startswith("fusermount: ")]  # bindfs uses libfuse 2
    for word in (VARIABLE, SOCKETS, "one.sock", "two.sock"):
        assert word in line
    assert both.volumes["one"].fuse is None


@pytest.mark.parametrize("is_left_behind", [True, False])
def test_without_the_variable_an_unmount_passes_over_sockets_of_others(pod: Pod, is_left_behind: bool) -> None:
    """Another program has a socket in the emptyDir, or has left it behind."""
    both = TwoVolumes(pod, ("shared", "shared"))
    for name in NAMES:
        both.mount(name)
    kinds = {"another.sock": "SOCK_STREAM"} | ({"another.sock.v1": "SOCK_SEQPACKET"} if is_left_behind else {})
    for name, kind in kinds.items():
        path = both.volumes["one"].socket.parent / name
        script = f"import os, socket; os.chdir({str(path.parent)!r}); socket.socket(socket.AF_UNIX, socket.{kind}).bind({name!r})"
        subprocess.run([sys.executable, "-c", script], check=True)
    with within(SOCKET_WAIT, "both unmounts"):
        for name in NAMES:
            both.fuse.check(f"fusermount3 -u /{name}")
            both.volumes[name].wait_waiting()
    assert both.fuse.run("fusermount3 -u /one").err == "fusermount3: entry for /one not found in /etc/mtab\n"


def test_without_the_variable_each_unmount_finds_its_volume(pod: Pod) -> None:
    """A preStop hook has no variable, and the container has the sockets of both volumes."""
    both = TwoVolumes(pod, ("shared", "shared"))
    for name in NAMES:
        both.mount(name)
    for name, other in (NAMES, NAMES[::-1]):
        both.fuse.check(f"fusermount3 -u /{name}")
        both.volumes[name].wait_waiting()
        assert both.reads(other) == f"content of {other}\n"
        result = both.fuse.run(f"fusermount3 -u /{name}")
        assert (result.code, result.err) == (1, f"fusermount3: entry for /{name} not found in /etc/mtab\n")
        assert both.reads(other) == f"content of {other}\n"
        both.mount(name)


def test_an_unmount_that_two_volumes_could_be_meant_by_is_refused(pod: Pod) -> None:
    """The container that unmounts sees neither mount, and both programs mounted at the same path of their containers."""
    both = TwoVolumes(pod, ("shared", "shared"))
    binds = [Bind(both.volumes["two"].target, "/one", "rslave")]
    second = pod.fuse(both.volumes["two"], binds=binds, environment={})
    second.check("mkdir /source-one && echo content of two >/source-one/file")
    both.mount("one")
    both.volumes["two"].mounted_by(second, f"{VARIABLE}={SOCKETS}/two.sock bindfs -f /source-one /one")
    blind = pod.fuse(both.volumes["one"], binds=[], environment={})
    result = blind.run("mkdir /one; fusermount3 -u /one")
    assert result.code == 1
    sockets = ", ".join(f"{SOCKETS}/{name}.sock" for name in NAMES)
    assert result.err == f"fusermount3: more than one volume is mounted at /one ({sockets}); set {VARIABLE} to the path of one\n"
    # Where the mount is seen, its device number tells the volume.
    second.check("fusermount3 -u /one")
    both.volumes["two"].wait_waiting()
    assert both.reads("one") == "content of one\n"


def test_without_the_variable_one_socket_is_enough(pod: Pod) -> None:
    volume = pod.publish()
    fuse = pod.fuse(volume, environment={})
    fuse.check("mkdir /source && echo content >/source/file")
    volume.mounted_by(fuse, "bindfs -f /source /data")


def test_a_volume_mounted_inside_another_is_hidden_when_that_one_recovers(pod: Pod) -> None:
    """docs/operations.md says so: what covers a dead mount covers also what a container has mounted in it, until it restarts."""
    both = TwoVolumes(pod, ("shared", "shared"))
    outer, inner = (both.volumes[name] for name in NAMES)
    both.fuse.check("mkdir /source-one/inside")
    programs = {name: both.fuse.start(both.command(name)) for name in NAMES}
    for name in NAMES:
        both.volumes[name].wait_mounted(programs[name])
    binds = [Bind(outer.target, "/data", "rslave"), Bind(inner.target, "/data/inside", "rslave")]
    application = pod.container(binds)
    assert application.check("cat /data/inside/file") == "content of two\n"
    programs["one"].kill("KILL")
    outer.wait_waiting()
    assert application.run("touch /data/inside/early").code != 0
    both.mount("one")
    application.check("touch /data/inside/late")
    both.fuse.check("test -e /source-one/inside/late")
    pod.stop(application)
    assert pod.container(binds).check("cat /data/inside/file") == "content of two\n"
