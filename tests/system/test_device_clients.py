"""Test FUSE programs in containers that have a fuse device and no volume: each mounts at a folder of its own container.

They are those of test_clients.py, in the same way. docs/compatibility.md has what is seen of them in a column.
"""

import re

import pytest
from clients import CLIENTS, Client
from harness.container import Background
from harness.device import FOLDER, Device, fuse_mounts, wait_until_unmounted
from harness.events import wait_until
from harness.pod import Pod
from harness.table import Table
from test_clients import printed


class Life:
    """Represents one container with one program, which mounts again and again."""

    def __init__(self, pod: Pod, device: Device, client: Client) -> None:
        self.client = client
        self.container = client.container_with_device(pod, device)

    def mount(self) -> Background:
        program = self.container.start(self.client.command.format(mountpoint=FOLDER))
        is_in_foreground = not self.client.goes_into_background
        wait_until(
            f"{self.client.name} has mounted",
            lambda: fuse_mounts(self.container) or (is_in_foreground and not program.is_running),
            300 if self.client.is_long else 30,
        )
        (mount,) = fuse_mounts(self.container) or [None]
        assert mount is not None and mount.path == FOLDER, f"{program.out}{program.err}"
        if self.client.goes_into_background:
            assert program.wait() == 0, program.err
        return program

    def check_reads(self) -> None:
        folder, _, name = self.client.file.rpartition("/")
        assert self.container.check(f"cat '{FOLDER}/{self.client.file}'") == self.client.content
        assert name in self.container.check(f"ls -A '{FOLDER}/{folder}'").splitlines()

    def write(self) -> None:
        self.container.check(f"echo written later >{FOLDER}/new && mkdir {FOLDER}/made && mv {FOLDER}/new {FOLDER}/made/moved")
        assert self.container.check(f"cat {FOLDER}/made/moved") == "written later\n"
        self.container.check(f"rm -r {FOLDER}/made")

    def cannot_write(self) -> None:
        refused = self.container.run(f"echo text >{FOLDER}/new")
        assert refused.code != 0
        assert re.search("Read-only file system|Permission denied|not implemented|Operation not permitted", refused.err), refused.err

    def kill(self, program: Background, signal: str) -> None:
        pid = f"$(pgrep -x {self.client.process})" if self.client.goes_into_background else f"{program.pid}"
        self.container.check(f"kill -{signal} {pid}")

    def ended(self, program: Background, codes: tuple[int, ...], stderr: str) -> None:
        """Check that it has ended with one of `codes`, printed only what `stderr` matches, and that nothing is mounted."""
        if self.client.goes_into_background:
            wait_until("it has ended", lambda: self.container.run(f"pgrep -x {self.client.process}").code == 1)
        else:
            assert program.wait() in codes, program.err
        assert re.fullmatch(stderr, printed(program)), printed(program)
        wait_until_unmounted(self.container)


@pytest.mark.parametrize("client", [pytest.param(client, id=client.name.replace(" ", "-"), marks=client.marks) for client in CLIENTS])
def test_mounts_serves_ends_in_three_ways_and_mounts_again(device: Device, pod: Pod, client: Client, table: Table) -> None:
    life = Life(pod, device, client)
    # The program is stopped by its signal: it unmounts itself, and the helper prints nothing.
    program = life.mount()
    if client.fills:
        life.container.check(f"mkdir {FOLDER}/folder && echo content >{FOLDER}/{client.file}")
    life.check_reads()
    if client.writes:
        life.write()
    else:
        life.cannot_write()
    life.kill(program, client.stop)
    life.ended(program, client.codes, client.stderr_pattern(client.complains, FOLDER))

    # It is unmounted by hand: the program sees that its file system is gone, and ends as after its signal.
    program = life.mount()
    life.check_reads()
    result = life.container.run(f"fusermount3 -u {FOLDER}")
    assert (result.code, result.out, result.err) == (0, "", "")
    assert fuse_mounts(life.container) == []
    if client.runs_on:
        assert program.is_running
        life.kill(program, "KILL")
    life.ended(program, (137,) if client.runs_on else (0,), client.stderr_pattern(client.complains_unmounted, FOLDER))

    # It is killed: only the driver unmounts.
    program = life.mount()
    life.kill(program, "KILL")
    life.ended(program, (137,), client.always_prints)

    program = life.mount()
    life.check_reads()
    life.kill(program, "KILL")
    table.add_with_device(client.name, "the same")
