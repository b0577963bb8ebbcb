"""Test that the driver stays within its limits when clients flood one volume, and that another volume's mounts stay fast."""

import fcntl
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from errno import EBUSY

import pytest
from harness.events import wait_until, within
from harness.hostile import MOUNT, PREPARED, PROCEED, SYNC_MOUNT, attacked, connect, mount, numbers, receive, recovers, serves_again
from harness.kubelet import Published
from harness.pod import Node, Pod

pytestmark = pytest.mark.alone

_CONNECTIONS = 10_000
_REQUESTS_AT_ONCE = PREPARED


def try_to_connect(volume: Published, suffix: str) -> socket.socket | None:
    try:
        return connect(volume, suffix, timeout=0)
    except OSError:  # the queue is full
        return None


@pytest.mark.parametrize("suffix", ["", ".v1"])
def test_thousands_of_connections(node: Node, pod: Pod, suffix: str) -> None:
    """Some hundred of them are held, and the others are made and dropped."""
    volume = pod.publish()
    before = numbers(node)
    with attacked(node) as cost, ExitStack() as stack:
        held: list[socket.socket] = []
        for _ in cost.attacks(_CONNECTIONS):
            connection = try_to_connect(volume, suffix)
            if connection is None:
                time.sleep(0.0005)
            elif len(held) < 500:
                held.append(stack.enter_context(connection))
            else:
                connection.close()
    recovers(node, before)
    volume.wait_waiting(20)
    serves_again(volume)


def test_packets_of_a_mebibyte(node: Node, pod: Pod) -> None:
    volume = pod.publish()
    before = numbers(node)
    with attacked(node) as cost:
        for _ in cost.attacks(200):
            with connect(volume) as connection:
                # SO_SNDBUFFORCE
                connection.setsockopt(socket.SOL_SOCKET, 32, 4 << 20)
                try:
                    connection.send(MOUNT.ljust(1 << 20))
                except (BrokenPipeError, ConnectionResetError):
                    continue  # nine connections at once are one too many
                assert "longer than" in str(receive(connection)[0].get("error", "longer than"))
    recovers(node, before)
    serves_again(volume)


def test_requests_that_are_cut_off_or_never_come(node: Node, pod: Pod) -> None:
    volume = pod.publish()
    before = numbers(node)
    with attacked(node) as cost, ExitStack() as stack:
        for number in range(len(MOUNT)):
            with connect(volume) as connection:
                connection.send(MOUNT[:number] or b" ")
        for _ in range(40):
            if connection := try_to_connect(volume, ".v1"):
                stack.enter_context(connection)
        cost.wait()
    recovers(node, before)
    serves_again(volume)


def test_answers_that_nobody_reads(node: Node, pod: Pod) -> None:
    """Each answer waits in the buffer of its connection, and the driver waits for none of them."""
    volume = pod.publish()
    before = numbers(node)
    with attacked(node) as cost, ExitStack() as stack:
        for number in range(300):
            connection = try_to_connect(volume, ".v1" if number % 2 else "")
            if connection is None:
                time.sleep(0.001)
                continue
            stack.enter_context(connection)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            try:
                connection.send(MOUNT if number % 4 == 1 else b"{" * 60_000)
            except OSError:  # it was disconnected, or its buffer is full
                pass
        cost.wait()
    recovers(node, before)
    volume.wait_waiting(20)
    serves_again(volume)


_ALL_GROUPS = """
import os, socket, sys, threading
os.setgroups(range(1 << 16))

def ask():
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(sys.argv[1])
        connection.send(sys.argv[2].encode())
        return socket.recv_fds(connection, 4096, 1)[1]

def ask_for_ever():
    while True:
        try:
            ask()
        except OSError:  # a ninth connection is closed
            pass

mounted = ask()
print("mounted", flush=True)
for _ in range(8):
    threading.Thread(target=ask_for_ever).start()
"""


def test_refused_mounts_of_processes_with_all_groups_that_there_can_be(node: Node, pod: Pod) -> None:
    """The driver says who has mounted. /proc/PID/status of such a process is 700 KiB long, and takes 20 ms."""
    volumes = [pod.publish(volume=f"v{number}", socket=f"s{number}") for number in range(6)]
    before = numbers(node)
    with attacked(node, len(volumes)) as cost, ExitStack() as stack:
        for volume in volumes:
            command = [sys.executable, "-c", _ALL_GROUPS, f"{volume.socket.name}.v1", MOUNT.decode()]
            where = volume.socket.parent  # a socket's path may have 108 bytes
            attacker = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, cwd=where))
            stack.callback(attacker.kill)
            assert attacker.stdout is not None and attacker.stdout.readline() == b"mounted\n"
        cost.wait()
    recovers(node, before)
    for volume in volumes:
        volume.wait_waiting(20)
        serves_again(volume)


def test_nesting_of_every_depth(node: Node, pod: Pod) -> None:
    """Python's own limit of nesting lies somewhere in between."""
    volume = pod.publish()
    said = len(node.driver.log)
    for depth in [*range(1, 40), *range(850, 1010, 1)]:
        for packet in (
            b'{"op":' + b"[" * depth + b"]" * depth + b"}",
            b'{"op":"mount","mountpoint":' + b'{"a":' * depth + b"7" + b"}" * depth + b"}",
        ):
            with connect(volume) as connection:
                connection.send(packet)
                assert str(receive(connection)[0]["error"]).startswith("bad request: ")
    assert "RecursionError" not in node.driver.log[said:]


def test_prepared_mounts_that_nobody_proceeds_with(node: Node, pod: Pod) -> None:
    before = numbers(node)
    volume = pod.publish()
    with attacked(node, prepared=_REQUESTS_AT_ONCE) as cost, ExitStack() as stack:
        prepared = 0
        for _ in range(50):
            connection = stack.enter_context(connect(volume))
            connection.send(SYNC_MOUNT)
            _, fds = receive(connection)
            for fd in fds:
                stack.callback(os.close, fd)
            prepared += bool(fds)
        assert prepared == _REQUESTS_AT_ONCE
        cost.wait()
        with within(5, "unpublish"):
            volume.unpublish()
    assert cost.children <= 1  # the other volume's
    recovers(node, before)


def test_prepared_mounts_whose_programs_never_answer_init(node: Node, pod: Pod) -> None:
    """Eight programs at once say that they are ready: one of them mounts, in one process, and unpublish waits for none."""
    before = numbers(node)
    volume = pod.publish()
    with attacked(node, prepared=_REQUESTS_AT_ONCE) as cost, ExitStack() as stack:
        ready: list[socket.socket] = []
        for _ in range(_REQUESTS_AT_ONCE):
            connection = stack.enter_context(connect(volume))
            connection.send(SYNC_MOUNT)
            _, (fd,) = receive(connection)
            stack.callback(os.close, fd)
            try:
                fcntl.ioctl(fd, 0xE503)  # FUSE_DEV_IOC_SYNC_INIT; a kernel without it mounts at once
            except OSError:
                pass
            ready.append(connection)
        for connection in ready:
            connection.send(PROCEED)
        waiting = list(ready)
        while len(waiting) > 1:
            answered, _, _ = select.select(waiting, [], [], 10)
            assert answered, f"{len(waiting)} are not answered"
            for connection in answered:
                assert receive(connection)[0].get("errno") == EBUSY
                waiting.remove(connection)
        cost.wait()
        with within(5, "unpublish"):
            volume.unpublish()
    assert cost.children <= 2  # one is the other volume's
    recovers(node, before)


def test_mounting_and_leaving_in_a_loop(node: Node, pod: Pod) -> None:
    volume = pod.publish()
    before = numbers(node)
    with attacked(node) as cost:
        for _ in cost.attacks(200):
            os.close(mount(volume))
    recovers(node, before)
    volume.wait_waiting()


_TAKE_INOTIFY = """
import ctypes, errno, resource, time
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
libc = ctypes.CDLL(None, use_errno=True)
while True:  # and the driver's too, when it ends
    if libc.inotify_init() < 0:
        assert ctypes.get_errno() == errno.EMFILE
        print("all taken", flush=True)
        time.sleep(0.001)
"""


def test_all_inotify_instances_of_root(node: Node, pod: Pod) -> None:
    """The kernel counts inotify instances by user. A driver starts nevertheless, and hears of a program's death at once."""
    volume = pod.publish()
    fuse, attacker = pod.fuse(volume), pod.container()
    program = volume.served_by(fuse)
    attack = attacker.start(f"python3 -c {shlex.quote(_TAKE_INOTIFY)}")
    wait_until("all are taken", lambda: attack.out, 10)
    node.driver.restart(signal.SIGKILL)
    assert attack.is_running
    program.kill()
    volume.wait_waiting(1)
    volume.mounted_by(fuse)
