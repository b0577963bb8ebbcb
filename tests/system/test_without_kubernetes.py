"""Test volumes without Kubernetes: the driver's commands, and containers that use what the commands made."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from harness import mounts
from harness.container import Bind, Container
from harness.events import wait_until
from harness.pod import SOCKETS, Node, Pod, tree

from driver.model.limits import REPAIR_INTERVAL


class Volume:
    """Represents a volume that `volume add` made, used as its output says."""

    def __init__(self, node: Node, pod: Pod, name: str, *options: str) -> None:
        added = node.driver.cli("volume", "add", name, *options)
        assert added.returncode == 0, added.stderr
        self.out, self.warnings = added.stdout, added.stderr
        self._pod = pod
        self._folder = node.driver.run_dir / "volumes" / name
        self.target, self.sockets = self._folder / "mount", self._folder / "sock"

    def fuse(self, environment: dict[str, str] | None = None) -> Container:
        return self._pod.container(tree(), options=self._options("the FUSE program"), environment=environment or {})

    def application(self) -> Container:
        return self._pod.container(options=self.application_options)

    @property
    def application_options(self) -> list[str]:
        return self._options("applications")

    def _options(self, whose: str) -> list[str]:
        """Return the options for starting a container that `volume add` prints."""
        (options,) = re.findall(f"^  {whose}: +(-v .*)$", self.out, re.MULTILINE)
        return str(options).split()

    def wait_mounted(self) -> mounts.Mount:
        return wait_until("the volume is mounted", lambda: next((m for m in mounts.stack(self.target)[-1:] if m.is_fuse), None))

    def is_gone(self) -> bool:
        return not os.path.lexists(self._folder)


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


@pytest.mark.parametrize(
    ("of", "commands"),
    [
        ([], ["abort", "check", "device", "ready", "status", "volume"]),
        (["volume"], ["add", "list", "remove"]),
        (["device"], ["abort", "add", "flags", "list", "remove"]),
    ],
)
def test_help_says_what_each_command_is_for(node: Node, of: list[str], commands: list[str]) -> None:
    """The frozen driver has no docstrings, but has help texts too."""
    lines = node.driver.cli(*of, "--help").stdout.splitlines()
    reported = dict(line.split(maxsplit=1) for line in lines[lines.index("Commands:") + 1 :])
    assert sorted(reported) == commands
    for command in commands:
        assert reported[command].split()[0] in node.driver.cli(*of, command, "--help").stdout


def test_a_volume_from_add_to_remove(node: Node, pod: Pod) -> None:
    volume = Volume(node, pod, "plain")
    before, fuse = volume.application(), volume.fuse()
    assert before.check("ls -A /data") == ""
    fuse.check("mkdir /source && echo content >/source/file")
    for _ in range(2):
        program = fuse.start("bindfs -f /source /data")
        volume.wait_mounted()
        after = volume.application()
        for application in (before, after):
            assert application.check("cat /data/file") == "content\n"
        after.check("echo written >/data/new")
        assert fuse.check("cat /source/new") == "written\n"
        program.kill("KILL")
        wait_until("the dead mount is off", lambda: len(mounts.stack(volume.target)) == 1)
    program = fuse.start("bindfs -f /source /data")
    volume.wait_mounted()
    listed = rows(node.driver.cli("volume", "list").stdout)
    assert listed == [["NAME", "STATE", "TYPE", "SOURCE", "PATH"], ["plain", "mounted", "fuse", "/source", str(volume.target)]]

    # The volume is in use: the program ends, and everything is removed.
    done = node.driver.cli("volume", "remove", "plain")
    assert done.returncode == 0, done.stderr
    assert volume.is_gone()
    assert program.wait() == 0
    assert before.check("ls -A /data") == ""
    assert rows(node.driver.cli("volume", "list").stdout) == listed[:1]


def test_a_container_that_binds_a_folder_of_the_volume_stays_dead_until_it_is_started_again(node: Node, pod: Pod) -> None:
    """The engine makes this bind in the container, where the driver does not see it. The whole volume has the next mount."""
    volume = Volume(node, pod, "parts")
    fuse = volume.fuse()
    fuse.check("mkdir -p /source/folder && echo first >/source/folder/file")
    program = fuse.start("bindfs -f /source /data")
    volume.wait_mounted()
    part = Bind(volume.target / "folder", "/part", "rslave")
    whole, folder = volume.application(), pod.container([part])
    assert (whole.check("cat /data/folder/file"), folder.check("cat /part/file")) == ("first\n", "first\n")
    program.kill("KILL")
    wait_until("the dead mount is off", lambda: len(mounts.stack(volume.target)) == 1)
    fuse.check("echo second >/source/folder/file")
    fuse.start("bindfs -f /source /data")
    volume.wait_mounted()
    assert whole.check("cat /data/folder/file") == "second\n"
    assert node.driver.cli("status").returncode == 0
    assert "Transport endpoint is not connected" in folder.run("cat /part/file").err
    assert pod.container([part]).check("cat /part/file") == "second\n"
    assert node.driver.cli("volume", "remove", "parts").returncode == 0


def test_a_read_only_volume_with_options(node: Node, pod: Pod) -> None:
    volume = Volume(node, pod, "strict", "--read-only", "-o", "noexec,bogus")
    assert volume.warnings == "warning: -o: unknown option 'bogus'; ignored\n"
    application, fuse = volume.application(), volume.fuse()
    fuse.start("bindfs -f /srv /data")
    mount = volume.wait_mounted()
    assert "ro" in mount.super_options
    assert "noexec" in mount.options
    assert "Read-only file system" in application.run("touch /data/new").err
    node.driver.cli("volume", "remove", "strict")
    assert volume.is_gone()


def test_add_twice(node: Node, pod: Pod) -> None:
    volume = Volume(node, pod, "twice", "-o", "noexec")
    again = Volume(node, pod, "twice", "-o", "noexec")
    assert again.out == volume.out
    other = node.driver.cli("volume", "add", "twice", "--read-only")
    assert other.returncode == 1
    assert other.stderr == "Error: volume twice exists already, without --read-only and with -o 'noexec'; remove it first\n"
    assert node.driver.cli("volume", "remove", "twice").returncode == 0
    assert volume.is_gone()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../escape", "_x", "a:b", "-", "-x", ".x", "n" * 64, "ümlaut"])
def test_a_name_that_is_refused(node: Node, name: str) -> None:
    for command in ("add", "remove"):
        done = node.driver.cli("volume", command, "--", name)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert "not allowed" in line
    assert os.listdir(node.driver.run_dir / "volumes") == []


def test_the_longest_name(node: Node, pod: Pod) -> None:
    name = "n" * 63
    volume = Volume(node, pod, name)
    volume.fuse().start("bindfs -f /srv /data")
    volume.wait_mounted()
    node.driver.cli("volume", "remove", name)
    assert volume.is_gone()


def test_remove_what_is_not_there(node: Node) -> None:
    done = node.driver.cli("volume", "remove", "none")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "none" in line


def test_what_a_container_left_beside_the_sockets_is_not_deleted(node: Node, pod: Pod) -> None:
    volume = Volume(node, pod, "kept")
    own = volume.sockets / "own"
    volume.fuse().check(f"echo content >{SOCKETS}/own")
    done = node.driver.cli("volume", "remove", "kept")
    assert done.returncode == 1
    assert str(volume.sockets) in done.stderr
    assert own.read_text() == "content\n"
    assert not mounts.below(volume.target)
    own.unlink()
    assert node.driver.cli("volume", "remove", "kept").returncode == 0
    assert volume.is_gone()


def test_remove_a_volume_whose_folder_was_removed_by_hand(node: Node, pod: Pod) -> None:
    volume = Volume(node, pod, "by-hand")
    mounts.unmount(volume.target)
    shutil.rmtree(volume.target.parent)
    done = node.driver.cli("volume", "remove", "by-hand")
    assert (done.returncode, done.stderr) == (0, "")
    assert rows(node.driver.cli("volume", "list").stdout)[1:] == []


def test_status_shows_every_volume(node: Node, pod: Pod) -> None:
    standalone = Volume(node, pod, "shown", "--read-only")
    published = pod.publish()
    done = node.driver.cli("status", "--output", "wide")
    assert done.returncode == 0, done.stderr
    first, header, *volumes = done.stdout.splitlines()
    assert first.endswith(": ready")
    assert header.split() == ["VOLUME", "POD", "STATE", "SINCE", "MOUNTS", "MODE", "TYPE", "SOURCE", "PATH", "CONDITION"]
    cells = sorted(line.split(maxsplit=9) for line in volumes)
    assert [[*row[:3], *row[4:9]] for row in cells] == sorted(
        [
            ["shown", "-", "waiting", "0", "ro", "-", "-", str(standalone.target)],
            [published.request.volume_id, f"default/pod-{pod.folder.uid[:8]}", "waiting", "0", "rw", "-", "-", str(published.target)],
        ]
    )
    assert all("no FUSE program has mounted it yet" in row[9] for row in cells)

    # Without an argument it is narrow, and what it shows of the volume's id is enough to name it.
    first, header, *volumes = node.driver.cli("status").stdout.splitlines()
    assert header.split() == ["VOLUME", "POD", "SOURCE", "CONDITION"]
    cells = sorted(line.split(maxsplit=3) for line in volumes)
    short = published.request.volume_id[:16]
    assert [row[:3] for row in cells] == sorted([["shown", "-", "-"], [short, f"default/pod-{pod.folder.uid[:8]}", "-"]])
    assert node.driver.cli("status", short).stdout.splitlines()[2].startswith(short)
    ended = node.driver.cli("abort", short)
    assert ended.stderr == f"Error: there is no FUSE file system at {published.target} that the driver can end\n"
    assert "there is no volume" in node.driver.cli("abort", short[:-1]).stderr
    assert node.driver.cli("volume", "remove", "shown").returncode == 0


def test_status_of_some_volumes(node: Node, pod: Pod) -> None:
    first, second = (Volume(node, pod, name) for name in ("First_One", "second.one"))
    pod.publish()
    for names in (["First_One"], [str(second.target)], ["second.one", "First_One"]):
        done = node.driver.cli("status", "--output", "json", *names)
        volumes = json.loads(done.stdout)["volumes"]
        assert {volume["volume"] if volume["volume"] in names else volume["path"] for volume in volumes} == set(names)
    done = node.driver.cli("status", "First_One", "nonsense")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: there is no volume 'nonsense'; status without a name lists all volumes\n"
    listed = json.loads(node.driver.cli("volume", "list", "--output", "json").stdout)
    assert [(volume["name"], volume["state"], volume["path"]) for volume in sorted(listed, key=lambda volume: volume["name"])] == [
        ("First_One", "waiting", str(first.target)),
        ("second.one", "waiting", str(second.target)),
    ]
    for name in ("First_One", "second.one"):
        assert node.driver.cli("volume", "remove", name).returncode == 0


def test_what_docker_has_made_of_its_paths_before_it_is_there(node: Node, pod: Pod) -> None:
    """A container is started at boot, before the volume is added. It works when it is started again."""
    folder = node.driver.run_dir / "volumes" / "at-boot"
    (folder / "mount").mkdir(parents=True)
    (folder / "sock" / "dev-fuse").mkdir(parents=True)
    volume = Volume(node, pod, "at-boot")
    assert (volume.sockets / "dev-fuse").is_file()
    assert node.driver.cli("volume", "remove", "at-boot").returncode == 0
    assert not folder.exists()


def test_nobody_but_root_reaches_the_sockets_on_the_host(node: Node) -> None:
    """This is so even where Docker had made their folder. A user who reached the sockets could serve what applications read."""
    root = node.driver.run_dir / "volumes"
    node.driver.stop()
    root.chmod(0o755)
    node.driver.start()
    assert root.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("command", [("status",), ("volume", "list")])
def test_a_command_that_shows_the_volumes_repairs_them(node: Node, pod: Pod, command: tuple[str, ...]) -> None:
    """No other process publishes these volumes again."""
    volume = Volume(node, pod, "looked-after")
    for socket in volume.sockets.iterdir():
        socket.unlink()
    mounts.unmount(volume.target)
    assert node.driver.cli(*command).returncode == 0
    assert sorted(os.listdir(volume.sockets)) == ["dev-fuse", "fuse.sock", "fuse.sock.v1"]
    assert len(mounts.stack(volume.target)) == 1
    assert node.driver.cli("volume", "remove", "looked-after").returncode == 0


def test_the_admin_socket_is_roots(node: Node) -> None:
    assert node.driver.admin_socket.stat().st_mode & 0o777 == 0o600


def test_commands_without_a_driver(node: Node, tmp_path: Path) -> None:
    node.driver.stop()
    try:
        for command in (["status"], ["volume", "list"], ["volume", "add", "x"], ["volume", "remove", "x"]):
            done = node.driver.cli(*command)
            assert done.returncode == 1
            (line,) = done.stderr.splitlines()
            assert str(node.driver.admin_socket) in line
    finally:
        node.driver.start()


def test_a_container_that_was_made_before_the_mount_executes_its_files(node: Node, pod: Pod) -> None:
    """Podman gives a container the mount flags that it found when it made the container, whatever is mounted when it starts."""
    volume = Volume(node, pod, "executed")
    options = [*node.engine.limits, "--network", "none", *volume.application_options]
    made = node.engine.call("create", "--name", "made-before", *options, "--rootfs", "/:O", "/data/true")
    assert made.returncode == 0, made.stderr
    try:
        fuse = volume.fuse()
        fuse.check("cp /bin/true /srv")
        fuse.start("bindfs -f /srv /data")
        volume.wait_mounted()
        started = node.engine.call("start", "--attach", "made-before")
        assert (started.returncode, started.stderr) == (0, "")
    finally:
        node.engine.call("rm", "--force", "made-before")
    assert node.driver.cli("volume", "remove", "executed").returncode == 0


def test_what_a_container_removes_is_made_again_without_kubelet(node: Node, pod: Pod) -> None:
    volume = Volume(node, pod, "repaired")
    fuse = volume.fuse()
    fuse.check(f"rm {SOCKETS}/fuse.sock*")
    mounts.unmount(volume.target)
    wait_until("the sockets are there again", lambda: len(os.listdir(volume.sockets)) == 3, 10 * REPAIR_INTERVAL)
    wait_until("the placeholder is there again", lambda: mounts.stack(volume.target), 10 * REPAIR_INTERVAL)
    fuse.start("bindfs -f /srv /data")
    volume.wait_mounted()
    assert node.driver.cli("volume", "remove", "repaired").returncode == 0


def test_files_of_somebody_else_are_found_before_a_volume_is_added_over_them(node: Node, pod: Pod) -> None:
    target = node.driver.run_dir / "volumes/kept/mount"
    target.mkdir(parents=True)
    (target / "file").touch()
    added = node.driver.cli("volume", "add", "kept")
    assert (added.returncode, added.stderr) == (1, f"Error: {target} is not empty: look at its files and remove them by hand\n")
    (target / "file").unlink()
    volume = Volume(node, pod, "kept")
    assert node.driver.cli("volume", "remove", "kept").returncode == 0
    assert volume.is_gone()


def test_a_driver_without_volumes_leaves_nothing_mounted(node: Node, pod: Pod) -> None:
    root = node.driver.run_dir / "volumes"
    volume = Volume(node, pod, "last")
    node.driver.stop()
    assert mounts.stack(root), "it keeps the volumes for the next driver"
    node.driver.start()
    assert node.driver.cli("volume", "remove", "last").returncode == 0
    assert volume.is_gone()
    node.driver.stop()
    assert mounts.below(node.driver.run_dir) == []
    node.driver.start()


def test_a_wrong_number_in_an_option(node: Node, pod: Pod) -> None:
    volume = Volume(node, pod, "number", "-o", "max_read=abc")
    assert volume.warnings == "warning: -o: Invalid argument (max_read=abc); ignored\n"
    assert node.driver.cli("volume", "remove", "number").returncode == 0
