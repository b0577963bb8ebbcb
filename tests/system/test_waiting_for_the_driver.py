"""Test programs that start before their volume is published, or while the driver is away."""

import time

from harness.container import Background, Container
from harness.events import wait_until
from harness.kubelet import SOCKET
from harness.pod import PLACE, SOCKETS, VARIABLE, Node, Pod

WAIT = 10  # seconds that the clients wait for a socket
SLACK = 3  # for starting the programs, on a slow machine

WAITING = f"fusermount: waiting up to {WAIT} s for the driver at {SOCKETS}/{SOCKET}"
NO_DRIVER = f"no driver answers at {SOCKETS}/{SOCKET}"


def is_waiting(program: Background) -> None:
    wait_until("the client prints that it waits", lambda: WAITING in program.err)


def unpublished(pod: Pod) -> tuple[Container, str]:
    """Return a FUSE container of a volume that is not published, and the command of a program in it."""
    fuse = pod.fuse(None, dev_fuse=False, environment={VARIABLE: f"{SOCKETS}/{SOCKET}"})
    fuse.check("touch /dev/fuse && mkdir /source /elsewhere && echo content >/source/file")
    return fuse, "bindfs -f /source /elsewhere"


def test_without_a_driver_a_program_ends_with_one_clear_line(node: Node, pod: Pod) -> None:
    """All ways are tested at once, since each takes its time."""
    volume = pod.publish()
    published = pod.fuse(volume)
    published.wait_until_running()
    empty = node.pod()
    never, command = unpublished(empty)
    starter = f"{PLACE}/fuse-starter --fd-passing-socket-path {SOCKETS}/{SOCKET} -- true"
    assert node.driver.stop() == 0
    try:
        start = time.monotonic()
        programs = {
            "the socket is missing": never.start(command),
            "nobody listens": published.start("bindfs -f /srv /data"),
            "fuse-starter, missing": never.start(starter),
            "fuse-starter, nobody listens": published.start(starter),
            "-u": published.start("fusermount3 -u /data"),
        }
        for what, program in programs.items():
            code = program.wait(WAIT + SLACK)
            assert WAIT <= time.monotonic() - start < WAIT + SLACK, what
            assert code == (125 if "starter" in what else 1), (what, program.err)
            (line,) = [line for line in program.err.splitlines() if NO_DRIVER in line]
            assert "is the volume published" in line, what
    finally:
        node.driver.start()


def test_a_program_that_starts_just_before_its_volume_is_published(pod: Pod) -> None:
    fuse, command = unpublished(pod)
    program = fuse.start(command)
    is_waiting(program)
    volume = pod.publish()
    application = pod.application(volume)
    volume.wait_mounted(program)
    assert application.check("cat /data/file") == "content\n"
    assert NO_DRIVER not in program.err


def test_a_program_that_starts_while_the_driver_is_replaced(node: Node, pod: Pod) -> None:
    volume = pod.publish()
    application, fuse = pod.application(volume), pod.fuse(volume)
    fuse.check("mkdir /source && echo content >/source/file")
    assert node.driver.stop() == 0
    try:
        program = fuse.start("bindfs -f /source /data")
        is_waiting(program)
    finally:
        node.driver.start()
    volume.wait_mounted(program)
    assert application.check("cat /data/file") == "content\n"
