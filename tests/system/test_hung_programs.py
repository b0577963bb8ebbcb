"""Test that a FUSE program that hangs delays no answer beyond a bound, and that other volumes notice nothing."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
from harness.container import Background, Container
from harness.events import wait_until, within
from harness.hostile import mount, numbers, recovers
from harness.kubelet import Published
from harness.pod import TEST_PROGRAMS, Node, Pod
from harness.programs import SOURCES
from harness.servers import SshServer

DRIVER_OPTIONS = ("--metrics-address", "127.0.0.1:0")

PROBE_WAIT = 1.0  # seconds, limits.PROBE_WAIT
STATUS_WAIT = 5.0
PROCESS_WAIT = 5.0
WAITS_FOR_NOBODY = 0.9 * PROBE_WAIT  # 10 to 75 ms were seen
SLACK = 4.0  # for starting programs, on a slow machine
THREADS_OF_A_VOLUME = 1  # docs/operations.md: one that unmounts
PROCESSES_OF_A_VOLUME = 3  # one asks for the usage, one checks whether the program lives, one renews subPaths
PROCESSES_OF_A_POD = 4  # of those that ask for usage and renew subPaths
PROCESSES_FOR_CHECKS_WITHOUT_LOCK = 16
PROCESSES_FOR_USAGE = 24  # of all pods together


@dataclass
class Hung:
    """Represents a volume whose program does not answer any more."""

    volume: Published
    application: Container  # from before the mount: the engine starts no container on a file system that hangs
    fuse: Container
    program: Background
    free: Callable[[], object]  # ends the hanging


def stopped(pod: Pod) -> Hung:
    volume = pod.publish()
    application, fuse = pod.application(volume), pod.fuse(volume)
    fuse.check("echo content >/srv/file")
    program = volume.mounted_by(fuse)
    fuse.check("cat /data/file")  # it has answered INIT; before that, calls wait elsewhere in the kernel
    program.kill("STOP")
    return Hung(volume, application, fuse, program, lambda: program.kill("CONT"))


def never_answers(pod: Pod) -> Hung:
    """The program reads each request. After that only an abort of the connection can end the request."""
    volume = pod.publish()
    application, fuse = pod.application(volume), pod.fuse(volume, binds=[TEST_PROGRAMS])
    program = volume.mounted_by(fuse, "python3 /programs/odd_program.py never-answers /data text")
    return Hung(volume, application, fuse, program, lambda: None)


def network_is_gone(pod: Pod, stop: str = "pkill -STOP -x ssh") -> Hung:
    """Stop the ssh through which sshfs works: sshfs accepts requests, and waits for the answers itself."""
    volume = pod.publish()
    application, server = pod.application(volume), SshServer(pod)
    server.container.check("echo content >/srv/file")
    fuse = pod.fuse(volume, binds=[server.key], network=server.container)
    program = volume.mounted_by(fuse, f"sshfs -f {server.OPTIONS} root@127.0.0.1:/srv /data")
    fuse.wait_for("cat /data/file")
    fuse.check(stop)
    return Hung(volume, application, fuse, program, lambda: fuse.run("pkill -CONT -x ssh"))


def network_is_down(pod: Pod) -> Hung:
    """Cut the network of sshfs: it accepts requests, and nothing comes back, neither a packet nor the end of the connection."""
    hung = network_is_gone(pod, stop="true")
    lo = ["nsenter", "--net", "--target", str(hung.fuse.pid), "ip", "link", "set", "lo"]
    subprocess.run([*lo, "down"], check=True)
    return replace(hung, free=lambda: subprocess.run([*lo, "up"], check=True))


kinds = pytest.mark.parametrize("make", [stopped, never_answers, network_is_gone, network_is_down])


class Other:
    """Represents another pod's volume, which is mounted, unmounted and asked for its usage while the first one hangs."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.pod = node.pod()
        self.volume = self.pod.publish()
        self.fuse = self.pod.fuse(self.volume)
        self.fuse.wait_until_running()

    def works(self) -> None:
        with within(SLACK, "another volume, mounted, asked and unmounted"):
            program = self.volume.mounted_by(self.fuse)
            self.volume.republish()
            assert self.volume.condition.startswith("mounted since")
            self.fuse.check("fusermount3 -u /data")
            assert program.wait() == 0


@kinds
def test_a_hung_volume_is_asked_and_unpublished(node: Node, pod: Pod, make: Callable[[Pod], Hung]) -> None:
    other = Other(node)
    other.works()
    before = numbers(node)
    hung = make(pod)
    for _ in range(2):
        with within(PROBE_WAIT + SLACK, "stats"):
            assert "does not answer" in hung.volume.condition
        with within(WAITS_FOR_NOBODY, "republish"):
            hung.volume.republish()
        with within(WAITS_FOR_NOBODY, "metrics"):
            assert 'mfcp_volumes{state="mounted"} 1' in node.driver.metrics()
        with within(PROBE_WAIT + SLACK, "status"):
            assert "does not answer" in node.driver.cli("status").stdout
        rival = hung.fuse.run("mkdir -p /elsewhere && bindfs -f /srv /elsewhere")
        assert "Device or resource busy" in rival.err
        other.works()
    assert numbers(node).threads <= before.threads + THREADS_OF_A_VOLUME
    assert len(node.driver.children()) <= PROCESSES_OF_A_VOLUME
    with within(WAITS_FOR_NOBODY, "unpublish"):
        hung.volume.unpublish()
    # Nobody waits for the program any more: its connection is aborted.
    recovers(node, before)
    other.works()
    hung.free()
    hung.program.wait()


@kinds
@pytest.mark.parametrize("options", ["", "-z"], ids=["plain", "lazy"])
def test_a_hung_volume_is_unmounted_and_another_program_mounts(node: Node, pod: Pod, make: Callable[[Pod], Hung], options: str) -> None:
    hung = make(pod)
    with within(WAITS_FOR_NOBODY, "fusermount3 -u"):
        assert hung.fuse.run(f"fusermount3 -u {options} /data").code == 0
    hung.volume.wait_waiting()
    hung.free()
    hung.program.wait()
    hung.volume.mounted_by(hung.fuse)
    hung.application.check("ls /data")
    assert not node.driver.waits_for_a_fuse_program()


def test_after_a_lazy_unmount_the_next_program_is_asked_although_the_former_one_never_answers(pod: Pod) -> None:
    """The driver's question keeps the former file system in use, and the former program is not ended."""
    hung = never_answers(pod)
    assert "does not answer" in hung.volume.condition
    hung.fuse.check("fusermount3 -u -z /data")
    hung.volume.wait_waiting()
    another = hung.volume.mounted_by(hung.fuse)
    assert "does not answer" not in hung.volume.condition
    assert hung.program.is_running
    hung.volume.unpublish()
    hung.program.wait()
    another.wait()


def begin_to_read(hung: Hung) -> Background:
    """Have the application read a file, for which it waits until the program answers."""
    reader = hung.application.start("cat /data/file")
    wait_until("it waits", lambda: "request_wait" in hung.application.run(f"cat /proc/{reader.pid}/wchan").out)
    return reader


def test_a_plain_unmount_is_refused_while_applications_wait(pod: Pod) -> None:
    """umount(8) refuses it too. After a lazy unmount the applications go on waiting."""
    hung = stopped(pod)
    reader = begin_to_read(hung)
    hung.fuse.wait_for("test -d /data")  # any path walk; it needs no answer
    with within(WAITS_FOR_NOBODY, "fusermount3 -u, refused"):
        result = hung.fuse.run("fusermount3 -u /data")
    assert (result.code, "busy" in result.err) == (1, True), result
    with within(WAITS_FOR_NOBODY, "fusermount3 -u -z"):
        assert hung.fuse.run("fusermount3 -u -z /data").code == 0
    assert reader.is_running
    hung.free()
    assert reader.wait() == 0
    hung.program.wait()


def test_somebody_on_the_node_frees_applications_that_wait(node: Node, pod: Pod) -> None:
    hung = stopped(pod)
    reader = begin_to_read(hung)
    with within(WAITS_FOR_NOBODY + SLACK, "abort"):
        assert node.driver.cli("abort", str(hung.volume.target)).returncode == 0
    assert reader.wait() == 1
    hung.free()
    hung.program.wait()


def test_many_hung_volumes_cost_a_bounded_number_of_threads(node: Node) -> None:
    before = numbers(node)
    pods = [node.pod() for _ in range(8)]
    hung = [stopped(pod) for pod in pods]
    for _ in range(2):
        for each in hung:
            each.volume.republish()
        assert node.driver.cli("status").stdout.count("does not answer") == len(hung)
    assert numbers(node).threads <= before.threads + THREADS_OF_A_VOLUME * len(hung)
    assert len(node.driver.children()) <= PROCESSES_OF_A_VOLUME * len(hung)
    for each in hung:
        with within(WAITS_FOR_NOBODY, "unpublish"):
            each.volume.unpublish()
        each.free()
    recovers(node, before)


def test_hung_programs_of_one_pod_share_a_few_processes(node: Node, pod: Pod) -> None:
    """Each process has memory of its own, and a pod may have any number of volumes."""
    before = numbers(node)
    count = PROCESSES_OF_A_POD + 2
    volumes = [pod.publish(volume=f"v{n}", socket=f"{n}.sock") for n in range(count)]
    for volume in volumes:
        fuse = pod.fuse(volume, binds=[TEST_PROGRAMS])
        volume.mounted_by(fuse, "python3 /programs/odd_program.py never-answers /data text")
    other = node.pod().publish()
    fd = mount(other)
    for _ in range(2):
        with within(3 * PROBE_WAIT, "status"):
            status = node.driver.cli("status").stdout
        assert status.count("does not answer within") == PROCESSES_OF_A_POD + 1  # that of another pod is asked
        assert status.count("was not asked: other programs of the same pod do not answer") == count - PROCESSES_OF_A_POD
        assert len(node.driver.children()) <= PROCESSES_OF_A_POD + 1
    os.close(fd)
    other.wait_waiting(1)
    for volume in [*volumes, other]:
        with within(WAITS_FOR_NOBODY, "unpublish"):
            volume.unpublish()
    recovers(node, before)


@contextmanager
def never_answering(volumes: list[Published]) -> Iterator[list[Published]]:
    """Serve the volumes by one process that answers no request: no test machine has room for that many containers."""
    fds = [mount(volume) for volume in volumes]
    command = [sys.executable, f"{SOURCES}/silent_fuse.py", *map(str, fds)]
    with subprocess.Popen(command, pass_fds=fds, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as program:
        assert program.stdout is not None
        assert program.stdout.read(1)
        for fd in fds:
            os.close(fd)
        try:
            yield volumes
        finally:
            program.kill()


def test_hung_programs_of_many_pods_share_some_processes(node: Node) -> None:
    """A server that many pods use is gone. The driver stays within its memory, does everything but ask, and notices each death."""
    other = Other(node)
    other.works()
    before = numbers(node)
    count = PROCESSES_FOR_USAGE + 8
    with never_answering([node.pod().publish() for _ in range(count)]) as volumes:
        for _ in range(2):
            with within(PROBE_WAIT + SLACK, "status"):
                status = node.driver.cli("status").stdout
            assert status.count("does not answer within") == PROCESSES_FOR_USAGE
            assert status.count("was not asked: too many FUSE programs of this node do not answer") == count - PROCESSES_FOR_USAGE
            assert len(node.driver.children()) == PROCESSES_FOR_USAGE
            other.works()
        new = node.pod().publish()
        os.close(mount(new))
        new.wait_waiting(1)
        for volume in [new, volumes.pop(0), volumes.pop()]:
            with within(WAITS_FOR_NOBODY, "unpublish"):
                volume.unpublish()
    for volume in volumes:
        volume.wait_waiting()
        volume.unpublish()
    recovers(node, before)


def test_the_driver_is_ready_and_status_answers_in_time_however_many_hang(node: Node, pod: Pod) -> None:
    """kubelet's probe must not make the node NotReady because the programs of one pod hang."""
    before = numbers(node)
    other = node.pod().publish()
    fd = mount(other)
    with never_answering([pod.publish(volume=f"v{n}", socket=f"{n}.sock") for n in range(100)]) as volumes:
        with within(STATUS_WAIT + SLACK, "status"):
            status = node.driver.cli("status", "--output", "wide")
        assert status.returncode == 0
        assert f"examining the volumes of this node took longer than {STATUS_WAIT:g} s" in status.stdout
        (line,) = [line for line in status.stdout.splitlines() if str(other.target) in line]
        assert "does not answer within" in line  # nobody serves it: it was asked, and did not have to wait for the hung pod
        with within(SLACK, "ready"):  # the start of a program
            ready = node.driver.cli("ready")
        assert (ready.returncode, ready.stdout, ready.stderr) == (0, "ready\n", "")
    os.close(fd)
    for volume in [*volumes, other]:
        volume.wait_waiting()
        volume.unpublish()
    recovers(node, before)


def test_checks_of_mounts_without_a_lock_leave_room_for_others(node: Node) -> None:
    """Mounts of another driver are such: nothing says that their programs live, so they are checked all the time."""
    before = numbers(node)
    with never_answering([node.pod().publish() for _ in range(PROCESSES_FOR_CHECKS_WITHOUT_LOCK + 8)]) as volumes:
        shutil.rmtree(node.driver.run_dir / "dev")
        for volume in volumes:
            volume.republish()
        wait_until("all that may look do", lambda: len(node.driver.children()) == PROCESSES_FOR_CHECKS_WITHOUT_LOCK)
        time.sleep(PROBE_WAIT)  # all others wait for a process, and give up
        assert len(node.driver.children()) == PROCESSES_FOR_CHECKS_WITHOUT_LOCK
        new = node.pod().publish()
        os.close(mount(new))
        new.wait_waiting(1)
        os.close(mount(new))
    for volume in [new, *volumes]:
        volume.wait_waiting()
        volume.unpublish()
    recovers(node, before)


def test_without_a_process_the_condition_says_that_nobody_was_asked(node: Node, pod: Pod) -> None:
    """A node without memory is an example. Nothing is known about the program."""
    volume = pod.publish()
    fd = mount(volume)
    starter = node.driver.starter()
    wait_until("no process is left", lambda: not node.driver.children())
    os.kill(starter, signal.SIGSTOP)
    for spare in node.driver.spares():
        os.kill(spare, signal.SIGKILL)
    wait_until("the spare process is gone, too", lambda: not node.driver.spares())
    try:
        with within(PROCESS_WAIT + SLACK, "stats"):
            assert "its FUSE program was not asked: no process could be started for it" in volume.condition
        os.close(fd)
        cannot = "it is not known whether the FUSE program is alive: no process could be started for it"
        wait_until("it is reported", lambda: cannot in volume.condition, 3 * PROCESS_WAIT)
    finally:
        os.kill(starter, signal.SIGCONT)
    volume.wait_waiting(2 * PROCESS_WAIT)
    assert cannot not in volume.condition
