"""Test fuse-starter: the program gets the mounted volume as fd 3, and fuse-starter has become the program or is its init."""

import os
import re
import shlex
import signal
import time

import pytest
from harness.container import Bind, Container
from harness.events import wait_until
from harness.kubelet import SOCKET, Published
from harness.pod import PLACE, SINGLE_FILE, SOCKETS, Node, Pod
from harness.programs import static_fuse_program
from harness.servers import SshServer

STARTER = f"{PLACE}/fuse-starter"
SINGLE_STARTER = "/usr/bin/fuse-starter"

# Programs with libfuse's signal handler exit with different codes; without it the code is 128 plus the signal's number.
DIED_OF_A_SIGNAL = 128

both_forms = pytest.mark.parametrize("starter", [STARTER, SINGLE_STARTER], ids=["tree", "single file"])


def hello() -> Bind:
    return Bind(static_fuse_program(), "/usr/bin/hello", read_only=True)


def single_starter() -> Bind:
    return Bind(SINGLE_FILE.with_name("fuse-starter"), SINGLE_STARTER, read_only=True)


def command(volume: Published, program: str, starter: str = STARTER, options: str = "") -> str:
    return f"{starter} --fd-passing-socket-path {SOCKETS}/{volume.socket.name} {options} -- {program}"


class Setup:
    """Represents one pod for programs that end."""

    def __init__(self, pod: Pod) -> None:
        self.volume = pod.publish()
        # Neither the environment nor fusermount3 is needed.
        self.fuse: Container = pod.fuse(self.volume, binds=[hello(), single_starter()], environment={})
        self.application = pod.application(self.volume)
        self.application.wait_until_running()
        self.fuse.wait_until_running()


@pytest.fixture(scope="module")
def setup(module_node: Node) -> Setup:
    return Setup(module_node.pod())


@both_forms
def test_sshfs(pod: Pod, starter: str) -> None:
    volume = pod.publish()
    before, server = pod.application(volume), SshServer(pod)
    server.container.check("echo content >/srv/file")
    fuse = pod.fuse(volume, binds=[server.key, single_starter()], network=server.container)
    program = fuse.start(command(volume, f"sshfs -f {server.OPTIONS} root@127.0.0.1:/srv /dev/fd/3", starter))
    volume.wait_mounted(program)
    after = pod.application(volume)
    for application in (before, after):
        assert application.check("cat /data/file") == "content\n"
    after.check("echo written >/data/new")
    assert server.container.check("cat /srv/new") == "written\n"
    if starter == STARTER:
        # fuse-starter has become the program. The single file stays, and removes at the end what it extracted.
        assert fuse.check(f"readlink /proc/{program.pid}/exe") == "/usr/bin/sshfs\n"
    program.kill("TERM")
    assert program.wait() < DIED_OF_A_SIGNAL, program.err
    volume.wait_waiting()


@both_forms
def test_the_exit_code_is_the_programs(node: Node, setup: Setup, starter: str) -> None:
    assert setup.fuse.run(command(setup.volume, "sh -c 'exit 7'", starter)).code == 7
    setup.volume.wait_waiting()


@both_forms
def test_the_programs_environment_is_what_was_given(node: Node, setup: Setup, starter: str) -> None:
    given = "env -i A=1 LD_LIBRARY_PATH=/mine PYTHONHOME=/none PATH=/usr/bin:/bin"
    program = "sh -c 'tr \"\\000\" \"\\n\" </proc/$$/environ; ls /proc/$$/fd; pwd; printf %s\\\\n \"$@\"' sh 'a b' ''"
    result = setup.fuse.run(f"cd /srv && {given} {command(setup.volume, program, starter)}")
    assert result.code == 0, result.err
    *environment, arguments = result.out.split("\n0\n1\n2\n3\n")
    assert sorted(environment[0].split("\n")) == ["A=1", "LD_LIBRARY_PATH=/mine", "PATH=/usr/bin:/bin", "PYTHONHOME=/none"]
    assert arguments == "/srv\na b\n\n"


def test_a_program_that_is_not_there(node: Node, setup: Setup) -> None:
    result = setup.fuse.run(command(setup.volume, "no-such-program"))
    assert (result.code, result.err) == (127, "fuse-starter: no-such-program: No such file or directory\n")


def test_a_program_that_cannot_be_executed(node: Node, setup: Setup) -> None:
    result = setup.fuse.run(command(setup.volume, "/etc/passwd"))
    assert (result.code, result.err) == (126, "fuse-starter: /etc/passwd: Permission denied\n")


def test_a_socket_that_is_not_there(node: Node, setup: Setup) -> None:
    result = setup.fuse.run(f"{STARTER} --fd-passing-socket-path {SOCKETS}/none --wait 0 -- true")
    assert result.code == 125
    (line,) = result.err.splitlines()
    assert f"{SOCKETS}/none" in line


def waits(pod: Pod, seconds: int, program: str = "true") -> str:
    """Return a command that waits for the socket of a volume that is not published."""
    assert not os.path.lexists(pod.folder.empty_dir() / SOCKET)
    return f"{STARTER} --fd-passing-socket-path {SOCKETS}/{SOCKET} --wait {seconds} -- {program}"


def test_a_socket_that_appears_late(pod: Pod) -> None:
    """The container may run before kubelet has published its volume."""
    fuse = pod.fuse(None, binds=[hello()], dev_fuse=False)
    program = fuse.start(waits(pod, 60, "hello -f /dev/fd/3"))
    wait_until("it prints that it waits", lambda: "waiting up to 60 s for the driver" in program.err)
    volume = pod.publish()
    volume.wait_mounted(program)
    assert pod.application(volume).check("cat /data/hello") == "Hello World!\n"


def test_a_socket_that_never_appears(pod: Pod) -> None:
    fuse = pod.fuse(None, dev_fuse=False)
    start = time.monotonic()
    result = fuse.run(waits(pod, 2))
    assert 2 <= time.monotonic() - start < 7
    assert result.code == 125
    assert "waited 2 s" in result.err.splitlines()[-1]


@pytest.mark.parametrize("arguments", ["", "--fd-passing-socket-path", "--bogus -- true", "-- true", "--fd-passing-socket-path /x --"])
def test_a_bad_command_line(node: Node, setup: Setup, arguments: str) -> None:
    result = setup.fuse.run(f"{STARTER} {arguments}")
    assert result.code == 125
    (line,) = result.err.splitlines()
    assert line.startswith("fuse-starter: ")


def test_a_volume_that_is_mounted_already(node: Node, setup: Setup) -> None:
    program = setup.fuse.start(command(setup.volume, "hello -f /dev/fd/3"))
    setup.volume.wait_mounted(program)
    result = setup.fuse.run(command(setup.volume, "true"))
    assert result.code == 125
    assert re.fullmatch(
        r"fuse-starter: mount failed: Device or resource busy: hello \(pid \d+ in its container\) has mounted it since .*\n", result.err
    )
    assert setup.application.check("cat /data/hello") == "Hello World!\n"
    program.kill("TERM")
    program.wait()
    setup.volume.wait_waiting()


# ---- fuse-starter as a container's first process


def first_process(pod: Pod, volume: Published, program: str, options: str = "--init") -> Container:
    return pod.fuse(volume, binds=[hello()], command=shlex.split(command(volume, program, options=options)))


def test_init_forwards_signals(pod: Pod) -> None:
    """The kernel drops signals to a pid 1 without a handler. With --init the program is not pid 1."""
    volume = pod.publish()
    application = pod.application(volume)
    script = "trap 'exit 9' USR1; echo ready; while :; do sleep 0.01; done"
    container = first_process(pod, volume, shlex.join(["sh", "-c", script]))
    assert container.line() == "ready"
    container.kill("USR1")
    assert container.wait().code == 9
    volume.wait_waiting()
    assert application.check("ls -A /data") == ""


def test_init_forwards_sigterm_to_a_fuse_program(pod: Pod) -> None:
    volume = pod.publish()
    application = pod.application(volume)
    container = first_process(pod, volume, "hello -f /dev/fd/3")
    application.wait_for("cat /data/hello")
    container.kill("TERM")
    assert container.wait().code < DIED_OF_A_SIGNAL
    volume.wait_waiting()


def test_init_exits_with_128_and_the_signal_of_the_program(pod: Pod) -> None:
    volume = pod.publish()
    assert first_process(pod, volume, "sh -c 'kill -SEGV $$'").wait().code == 128 + 11


def test_init_reaps_orphans(pod: Pod) -> None:
    """An orphan that ends and is not reaped stays in /proc."""
    volume = pod.publish()
    orphan = "orphan=$(sh -c 'sleep 0.2 >/dev/null & echo $!'); [ -e /proc/$orphan ] || exit 1"
    script = f"{orphan}; while [ -e /proc/$orphan ]; do sleep 0.01; done; exit 7"
    assert first_process(pod, volume, shlex.join(["timeout", "10", "sh", "-c", script])).wait().code == 7


def test_init_does_not_keep_the_file_descriptor(pod: Pod) -> None:
    """The kept fd would hide the program's death from the kernel."""
    volume = pod.publish()
    script = 'while readlink /proc/1/fd/* | grep -qx "$(readlink /proc/$$/fd/3)"; do sleep 0.01; done; exit 7'
    assert first_process(pod, volume, shlex.join(["timeout", "10", "sh", "-c", script])).wait().code == 7


@pytest.mark.parametrize("options", ["", "--init "])
def test_a_first_process_that_waits_for_its_socket_ends_when_it_is_reported_to(pod: Pod, options: str) -> None:
    """The kernel drops signals to a pid 1 without a handler."""
    command = waits(pod, 3600).replace("--wait", f"{options}--wait")
    container = pod.fuse(None, dev_fuse=False, command=shlex.split(command))
    assert "waiting up to 3600 s" in container.error_line()
    container.kill("TERM")
    assert container.wait(15).code == 128 + signal.SIGTERM


def test_without_init_the_program_is_the_first_process(pod: Pod) -> None:
    volume = pod.publish()
    result = first_process(pod, volume, "sh -c 'echo $$'", options="").wait()
    assert (result.code, result.out) == (0, "1")
