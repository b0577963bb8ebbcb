"""Test that after thousands of all events that can happen to a volume one driver has what it had in the beginning.

Clients and FUSE programs are the test's own sockets and fds. This takes milliseconds where a container takes a second, so
enough events happen to show a leak of a few bytes each. test_soak.py does it with real programs, at random.
"""

import itertools
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness.events import wait_until
from harness.hostile import MOUNT, PROCEED, SYNC_MOUNT, connect, is_refused_as_busy, mount, receive, request, serves_again
from harness.kubelet import Published
from harness.leaks import MEMORY_MORE, SECONDS, Leaks
from harness.pod import Node

VOLUMES, AT_ONCE = 10, 5  # of one cycle
CYCLES = 40  # Python and the C library keep memory for reuse during the first twenty

UNMOUNT = b'{"op":"unmount","mountpoint":"/data","lazy":true,"fds":[],"dev":null}'
ELSEWHERE = b'{"op":"unmount","mountpoint":"/elsewhere","lazy":true,"fds":[],"dev":null}'
AUTO_UNMOUNT = b'{"op":"mount","mountpoint":"/data","options":"auto_unmount","fds":[]}'
NAMES_AN_FD = b'{"op":"mount","mountpoint":"/data","options":"","fds":["comm"]}'


def dies(volume: Published) -> None:
    os.close(mount(volume))
    volume.wait_waiting()


def is_unmounted(volume: Published) -> None:
    fd = mount(volume)
    assert request(volume, UNMOUNT)[0] == {}
    os.close(fd)
    volume.wait_waiting()


def is_asked_for_while_it_is_mounted(volume: Published) -> None:
    fd = mount(volume)
    volume.republish()
    is_refused_as_busy(volume)
    os.close(fd)
    volume.wait_waiting()


def uses_the_original_protocol(volume: Published) -> None:
    with connect(volume, "") as connection:
        _, (fd,) = receive(connection)
    os.close(fd)
    volume.wait_waiting()


def asks_for_auto_unmount(volume: Published) -> None:
    comm, theirs = socket.socketpair()
    with comm, connect(volume) as connection:
        socket.send_fds(connection, [AUTO_UNMOUNT], [theirs.fileno()])
        theirs.close()
        _, (fd,) = receive(connection)
    os.close(fd)
    volume.wait_waiting()


def prepares_and_mounts(volume: Published) -> None:
    with connect(volume) as connection:
        connection.send(SYNC_MOUNT)
        _, (fd,) = receive(connection)
        connection.send(PROCEED)
        assert receive(connection)[0] == {}
    os.close(fd)
    volume.wait_waiting()


def prepares_and_changes_its_mind(volume: Published) -> None:
    with connect(volume) as connection:
        connection.send(SYNC_MOUNT)
        _, (fd,) = receive(connection)
    os.close(fd)


def is_refused(volume: Published) -> None:
    for packet in (b"not JSON", b"{}", b'{"op":"mount","mountpoint":"/data","options":"nonsense"}', ELSEWHERE):
        assert "error" in request(volume, packet)[0]


def sends_fds(volume: Published) -> None:
    read, write = os.pipe()
    assert "error" in request(volume, b"{}", [read, write] * 50)[0]
    assert "error" in request(volume, NAMES_AN_FD, [read, write])[0]
    os.close(read)
    os.close(write)


def goes_before_its_answer(volume: Published) -> None:
    for suffix in ("", ".v1"):
        with connect(volume, suffix) as connection:
            if suffix:
                connection.send(MOUNT)
    with connect(volume):
        pass
    serves_again(volume)


def loses_its_sockets(volume: Published) -> None:
    for path in (volume.socket, volume.socket.with_name(f"{volume.socket.name}.v1")):
        path.unlink()
        # The former sockets have to be closed first.
        wait_until("the sockets are made again", lambda path=path: volume.republish() or path.exists())


def is_asked_for_its_usage(volume: Published) -> None:
    volume.stats()


EVENTS: list[Callable[[Published], None]] = [
    *(dies, is_unmounted, is_asked_for_while_it_is_mounted, uses_the_original_protocol, asks_for_auto_unmount),
    *(prepares_and_mounts, prepares_and_changes_its_mind, is_refused, sends_fds, goes_before_its_answer),
    *(loses_its_sockets, is_asked_for_its_usage),
]


def live(volume: Published, turn: int) -> list[int]:
    """Make everything happen, in another order each time. Returns the fds of a mount that is still there in the end."""
    for event in EVENTS[turn:] + EVENTS[:turn]:
        event(volume)
    volume.wait_waiting()
    kept = [mount(volume)] if turn % 3 else []
    if turn % 3 == 2:
        os.close(kept.pop())
    return kept


def cycle(node: Node, number: int) -> None:
    """Publish volumes, let everything happen, and unpublish them: waiting, mounted, or just when their program has died."""
    volumes = [node.pod().publish() for _ in range(VOLUMES)]
    turns = [(number + index) % len(EVENTS) for index in range(VOLUMES)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        kept = list(pool.map(live, volumes, turns))
    node.delete_pods()
    for fd in itertools.chain(*kept):
        os.close(fd)


@pytest.mark.timeout(SECONDS + 120)
def test_thousands_of_mounts_leave_nothing_behind(module_node: Node) -> None:
    node = module_node
    pid = node.driver.pid
    leaks = Leaks(node)
    began, cycles = time.monotonic(), 0
    while cycles < CYCLES or time.monotonic() - began < SECONDS / 5:
        cycle(node, cycles)
        leaks.check()
        cycles += 1
    assert node.driver.pid == pid
    grown = leaks.grown()
    print(f"{cycles} cycles of {VOLUMES} volumes; memory in KiB after each: {[each >> 10 for each in leaks.memory]}")
    assert grown < MEMORY_MORE
    assert "Traceback" not in node.driver.log
