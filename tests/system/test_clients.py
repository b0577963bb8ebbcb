"""Test every FUSE library through programs that use it, in a container without privileges, for two application containers.

Each program mounts at the volume's own path and at another one, if it can; the file system appears at the volume either
way. Its mount ends in each of three ways, and after each the next one is made. The libraries differ in how they
call fusermount3, in what they read, wait for and close first, and in what they take for a failure.
"""

import re

import pytest
from clients import CLIENTS, LIBFUSE, Client
from harness.container import Background, Bind, Container
from harness.events import wait_until
from harness.kubelet import Published
from harness.pod import DATA, PLACE, TREE, Pod
from harness.programs import rust_program
from harness.table import Row, Table, programs_in

# The shell that started a program prints this when a signal ends the program.
_SHELL = re.compile(r"^(Terminated|Killed|Interrupt)?\n", re.MULTILINE)


def printed(program: Background) -> str:
    """Return what a program has printed on standard error itself."""
    return _SHELL.sub("", program.err)


class Life:
    """Represents one pod with one program, which mounts again and again."""

    def __init__(self, pod: Pod, client: Client, row: Row) -> None:
        self.pod = pod
        self.client = client
        self.row = row
        self.volume: Published = pod.publish()
        self.before: Container = pod.application(self.volume)
        self.fuse = client.container(pod, self.volume)
        self.after: Container | None = None

    @property
    def applications(self) -> list[Container]:
        return [self.before, self.after] if self.after is not None else [self.before]

    def mount(self, mountpoint: str) -> Background:
        program = self.fuse.start(self.client.command.format(mountpoint=mountpoint))
        self.volume.wait_mounted(program, 300 if self.client.is_long else 30)
        if self.client.goes_into_background:
            assert program.wait() == 0, program.err
        if self.after is None:
            self.after = self.pod.application(self.volume)
            if self.client.fills:
                self.after.check(f"mkdir /data/folder && echo content >/data/{self.client.file}")
        self.check_reads(program)
        return program

    def check_reads(self, program: Background) -> None:
        """Check that everybody can read."""
        folder, _, name = self.client.file.rpartition("/")
        for application in self.applications:
            assert application.check(f"cat '/data/{self.client.file}'") == self.client.content
            assert name in application.check(f"ls -A '/data/{folder}'").splitlines()

    def write(self) -> None:
        """Check that one container writes, and the other reads what was written."""
        before, after = self.applications
        after.check("echo written later >/data/new")
        assert before.check("cat /data/new") == "written later\n"
        before.check("mkdir /data/made && mv /data/new /data/made/moved")
        assert after.check("cat /data/made/moved") == "written later\n"
        before.check("rm -r /data/made")

    def cannot_write(self) -> None:
        for application in self.applications:
            refused = application.run("echo text >/data/new")
            assert refused.code != 0
            assert re.search("Read-only file system|Permission denied|not implemented|Operation not permitted", refused.err), refused.err

    def pid(self, program: Background) -> int:
        if not self.client.goes_into_background:
            return program.pid
        return int(self.fuse.check(f"pgrep -x {self.client.process}"))

    def library(self, program: Background) -> str:
        """Return the library that the program is built on, as the running process shows it."""
        if self.client.library != LIBFUSE:
            return self.client.library
        loaded = self.fuse.check(f"grep -ohE 'libfuse3?[.]so[.0-9]*' /proc/{self.pid(program)}/maps | head -n 1").strip()
        found = re.fullmatch(r"libfuse3?\.so\.([0-9.]+)", loaded)
        assert found, f"{self.client.name} has loaded no libfuse: {loaded!r}"
        return f"libfuse {found[1]}"

    def kill(self, program: Background, signal: str) -> None:
        self.fuse.check(f"kill -{signal} {self.pid(program)}")

    def end_later_container(self) -> None:
        """End the container that started after the mount, which keeps the file system of a lazy unmount in use."""
        assert self.after is not None
        self.volume.wait_waiting()
        self.pod.stop(self.after)
        self.after = None

    def ended(self, program: Background, codes: tuple[int, ...], stderr: str) -> None:
        """Check that it has ended with one of `codes`, printed only what `stderr` matches, and that the placeholder is there again."""
        if self.client.goes_into_background:
            wait_until("it has ended", lambda: self.fuse.run(f"pgrep -x {self.client.process}").code == 1)
        else:
            assert program.wait() in codes, program.err
        assert re.fullmatch(stderr, printed(program)), printed(program)
        self.volume.wait_waiting()
        for application in self.applications:
            application.wait_for('seen=$(ls -A /data) && test -z "$seen"')


@pytest.mark.parametrize("client", [pytest.param(client, id=client.name.replace(" ", "-"), marks=client.marks) for client in CLIENTS])
def test_mounts_serves_ends_in_three_ways_and_mounts_again(pod: Pod, client: Client, table: Table) -> None:
    row = Row(client.name, client.version_in(pod), places=list(client.places), notes=client.notes)
    life = Life(pod, client, row)
    for mountpoint in client.places:
        # The program is stopped by its signal: it unmounts itself, and the helper prints nothing.
        program = life.mount(mountpoint)
        row.library = life.library(program)
        if client.writes:
            life.write()
        else:
            life.cannot_write()
        life.kill(program, client.stop)
        if client.waits_for_users:
            life.end_later_container()
        life.ended(program, client.codes, client.stderr_pattern(client.complains, mountpoint))

        # It is unmounted by hand: the program sees that its file system is gone, and ends as after its signal.
        program = life.mount(mountpoint)
        result = life.fuse.run(f"fusermount3 -u {mountpoint}")
        assert (result.code, result.out, result.err) == (0, "", "")
        if client.runs_on:
            life.volume.wait_waiting()
            assert program.is_running
            life.kill(program, "KILL")
        life.ended(program, (137,) if client.runs_on else (0,), client.stderr_pattern(client.complains_unmounted, mountpoint))

        # It is killed: only the driver unmounts.
        program = life.mount(mountpoint)
        life.kill(program, "KILL")
        life.ended(program, (137,), client.always_prints)
    code = "" if client.goes_into_background else f" (exit {' or '.join(map(str, client.codes))})"
    unmounted = f"`fusermount3 -u`{' (runs on)' if client.runs_on else ''}"
    row.seen = ["read", "wrote" if client.writes else "read-only", f"SIG{client.stop}{code}", unmounted, "SIGKILL"]
    table.add(row)


@pytest.mark.parametrize(
    "command",
    ["bindfs -f /tmp/source", pytest.param("unionfs -f /tmp/source", marks=pytest.mark.long), "squashfuse -f /tmp/image"],
    ids=lambda command: command.split()[0],
)
def test_a_user_without_rights_mounts_and_the_library_unmounts(pod: Pod, command: str) -> None:
    """The library calls `fusermount3 -u -q -z -- M` after it has closed its fd, and nobody complains. (As root it tries umount(2).)"""
    volume = pod.publish()
    application, fuse = pod.application(volume), pod.fuse(volume, options=["--user", "1234:1234"])
    fuse.check("mkdir -p /tmp/source /tmp/elsewhere && echo content >/tmp/source/file")
    fuse.check("mksquashfs /tmp/source /tmp/image -quiet -no-progress")
    for mountpoint in (DATA, "/tmp/elsewhere"):
        program = volume.mounted_by(fuse, f"{command} {mountpoint}")
        assert application.check("cat /data/file") == "content\n"
        program.kill("TERM")
        program.wait()
        assert program.err == ""
        volume.wait_waiting()


@pytest.mark.parametrize("command", ["mount", "mount2", "mount --daemon"])
def test_rclone_needs_an_option_at_the_volumes_own_path(pod: Pod, command: str) -> None:
    """rclone looks at the mount table first and finds the placeholder. The table in docs/compatibility.md has the option for that."""
    volume = pod.publish()
    result = pod.fuse(volume).run(f"mkdir /source && touch /config && rclone --config /config {command} :local:/source /data")
    assert result.code == 1
    assert "directory already mounted, use --allow-non-empty to mount anyway: /data" in result.err
    volume.wait_waiting()


@pytest.mark.long
def test_cryfs_refuses_the_volumes_own_path(pod: Pod) -> None:
    volume = pod.publish()
    command = "CRYFS_FRONTEND=noninteractive CRYFS_NO_UPDATE_CHECK=true cryfs /cipher /data"
    result = pod.fuse(volume).run(f"mkdir /cipher && echo password | HOME=/tmp {command}", 60)
    assert result.code == 17
    assert "Could not write to mount directory" in result.err
    volume.wait_waiting()


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("option", ["", "--auto-unmount"])
def test_fuser_takes_the_helper_that_a_variable_names(pod: Pod, option: str) -> None:
    """The other fusermount3 in the container is libfuse's, which could mount nothing there."""
    volume = pod.publish()
    program = Bind(rust_program("fuser"), "/usr/bin/hello-fuser", read_only=True)
    fuse = pod.fuse(volume, helper=[Bind(TREE, PLACE, read_only=True)], binds=[program])
    application = pod.application(volume)
    assert fuse.run(f"hello-fuser {option} /data").code != 0
    mounted = volume.mounted_by(fuse, f"FUSERMOUNT_PATH={PLACE}/fusermount3 hello-fuser {option} /data")
    assert application.check("cat /data/hello") == "Hello World!\n"
    mounted.kill("TERM")
    mounted.wait()
    volume.wait_waiting()


def test_the_table_names_every_program() -> None:
    """tests/run --all writes the table; a program that was added must be in it."""
    assert programs_in() == [client.name for client in CLIENTS]
