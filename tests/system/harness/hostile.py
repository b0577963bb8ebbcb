"""Attack the sockets as a hostile pod, and measure what this costs the driver and the other volumes."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from errno import EBUSY
from pathlib import Path

from driver.model import limits
from harness.events import wait_until
from harness.kubelet import Published
from harness.pod import Node

MOUNT = b'{"op":"mount","mountpoint":"/data","options":"","fds":[]}'
SYNC_MOUNT = b'{"op":"mount","mountpoint":"/data","options":"","syncInit":true,"fds":[]}'
PROCEED = b'{"op":"proceed"}'

_TIMEOUT = 20.0  # seconds
_PAUSE = 0.01  # seconds from one honest mount to the next

# The limits of one volume, as docs/security.md has them.
LISTENERS = 2
CONNECTIONS = limits.CONNECTIONS_MAX
PREPARED = limits.PREPARED_AT_ONCE
THREADS = limits.CONNECTION_THREADS + limits.LISTENER_THREADS + 3  # one mounts, one unmounts, one works in the sockets' directory
CHILDREN = 4
MEMORY = 24 << 20  # bytes by which the driver may grow during an attack

# What the honest pod's mounts need at the same time: fds for its connection, its device node and the process that checks
# whether its program lives, and a connection for kubelet's calls.
OTHERS_FDS = 8
OTHERS_THREADS = 3

# Promised is a p99 of 4 times that without an attack, which bench measures. Here the attackers run on the same two cores.
SLOWER = 10 * 4
QUIET = 0.005  # seconds: a shorter time without an attack would be luck, on a machine that does other work
ALONE = 50  # mounts
STALL = 1.0  # seconds: no mount may wait as long as the driver waits for any pod's program


def connect(volume: Published, suffix: str = ".v1", timeout: float = _TIMEOUT) -> socket.socket:
    """Connect to a volume's socket, from outside any container."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET if suffix else socket.SOCK_STREAM)
    connection.settimeout(timeout)
    folder = os.open(volume.socket.parent, os.O_PATH)
    try:
        connection.connect(f"/proc/self/fd/{folder}/{volume.socket.name}{suffix}")
    except BaseException:
        connection.close()
        raise
    finally:
        os.close(folder)
    return connection


def receive(connection: socket.socket) -> tuple[dict[str, object], list[int]]:
    """Return an answer, {} where the driver closed without one, and the fds that came with it."""
    try:
        data, fds, _, _ = socket.recv_fds(connection, 65536, 4)
    except ConnectionResetError:
        return {}, []
    return (json.loads(data) if data else {}), fds


def request(volume: Published, packet: bytes, fds: Sequence[int] = ()) -> tuple[dict[str, object], list[int]]:
    """Send one request, and return its answer."""
    with connect(volume) as connection:
        socket.send_fds(connection, [packet], fds)
        return receive(connection)


def mount(volume: Published, packet: bytes = MOUNT) -> int:
    """Mount, and return the fd that serves the mount."""
    answer, fds = request(volume, packet)
    assert "error" not in answer, answer
    (fd,) = fds
    return fd


def mount_and_end(volume: Published) -> float:
    """Mount as an honest program does, and end. Returns the seconds until the fd was there; afterwards the volume waits again."""
    began = time.monotonic()
    fd = mount(volume)
    took = time.monotonic() - began
    os.close(fd)
    volume.wait_waiting(_TIMEOUT)
    return took


def is_refused_as_busy(volume: Published) -> None:
    """Check that no other program can mount while the present one lives."""
    answer, fds = request(volume, MOUNT)
    assert (answer["errno"], fds) == (EBUSY, [])


def can_mount(volume: Published) -> bool:
    """Return whether a program can mount now; it has ended by then."""
    try:
        _, fds = request(volume, MOUNT)
    except OSError:
        return False
    for fd in fds:
        os.close(fd)
    return bool(fds)


def serves_again(volume: Published) -> None:
    """Wait until an honest program can mount: the driver may still have to close surplus connections."""
    wait_until("a program can mount", lambda: can_mount(volume), 30)
    volume.wait_waiting(_TIMEOUT)


@dataclass(frozen=True)
class Numbers:
    """Counts what the driver has at one moment, without gRPC's threads."""

    fds: int
    threads: int
    children: int
    memory: int  # resident bytes


def numbers(node: Node) -> Numbers:
    """Count when nothing changes any more: the connection of kubelet's last call takes a moment to close."""
    found = [_now(node)]
    while len(found) < 10 or len({(each.fds, each.threads, each.children) for each in found[-10:]}) > 1:
        time.sleep(0.01)
        found.append(_now(node))
    return found[-1]


def _now(node: Node) -> Numbers:
    folder = Path(f"/proc/{node.driver.pid}")
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    return Numbers(
        fds=len(os.listdir(folder / "fd")),
        threads=node.driver.threads(),
        children=len(node.driver.children()),
        memory=int(status["VmRSS"].split()[0]) * 1024,
    )


@dataclass
class Cost:
    """Holds the most that was seen during an attack beyond what was there before, and how long another volume's mounts took."""

    rounds: int
    fds: int = 0
    threads: int = 0
    children: int = 0
    memory: int = 0
    alone: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)

    @property
    def is_measured(self) -> bool:
        """Return whether the other volume was mounted often enough."""
        return len(self.latencies) >= self.rounds

    def attacks(self, least: int) -> Iterator[int]:
        """Yield the numbers of an attack's rounds: at least `least`, and more until all is measured."""
        number = 0
        while number < least or not self.is_measured:
            yield number
            number += 1

    def wait(self) -> None:
        """Wait until all is measured, for an attack that goes on by itself."""
        wait_until("the other volume's mounts are measured", lambda: self.is_measured, 60)


@contextmanager
def attacked(node: Node, volumes: int = 1, prepared: int = 0, before: Numbers | None = None, rounds: int = 100) -> Iterator[Cost]:
    """Let another pod mount again and again while the block attacks; at the end check that everything is within its limits.

    `volumes` is the number of attacked volumes, and `prepared` that of mounts that are prepared there. `before` is what the driver
    had, where the attack has begun already.
    """
    other = node.pod().publish()
    cost = Cost(rounds)
    if before is None:
        cost.alone = [mount_and_end(other) for _ in range(ALONE)]
        before = numbers(node)
    stop = threading.Event()
    failures: list[BaseException] = []

    def watch() -> None:
        while not stop.wait(0.005):
            now = _now(node)
            cost.fds = max(cost.fds, now.fds - before.fds)
            cost.threads = max(cost.threads, now.threads - before.threads)
            cost.children = max(cost.children, now.children - before.children)
            cost.memory = max(cost.memory, now.memory - before.memory)

    def use() -> None:
        try:
            while not stop.wait(_PAUSE):
                cost.latencies.append(mount_and_end(other))
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=watch, daemon=True), threading.Thread(target=use, daemon=True)]
    for worker in workers:
        worker.start()
    try:
        yield cost
        if not failures:
            cost.wait()
    finally:
        stop.set()
        for worker in workers:
            worker.join(_TIMEOUT + 60)
    if failures:
        raise failures[0]
    cost.alone = cost.alone or [mount_and_end(other) for _ in range(ALONE)]
    alone, p99 = _p99(cost.alone), _p99(cost.latencies)
    print(f"cost: {cost.fds} fds, {cost.threads} threads, {cost.children} children, {cost.memory >> 10} KiB")
    most = max(cost.latencies) * 1000
    print(f"another volume's mounts, p99: {alone * 1000:.1f} ms alone, {p99 * 1000:.1f} ms attacked, {most:.1f} ms at most")
    assert p99 <= SLOWER * max(alone, QUIET)
    assert max(cost.latencies) < STALL
    assert cost.fds <= volumes * (LISTENERS + CONNECTIONS) + prepared + OTHERS_FDS
    assert cost.threads <= volumes * THREADS + OTHERS_THREADS
    assert cost.children <= (volumes + 1) * CHILDREN
    assert cost.memory < MEMORY
    other.unpublish()


def _p99(seconds: Sequence[float]) -> float:
    return sorted(seconds)[(len(seconds) - 1) * 99 // 100]


def recovers(node: Node, before: Numbers, published: int = 0) -> None:
    """Wait until the driver has exactly what it had `before`, and the sockets of the `published` volumes since then."""
    expected = (before.fds + published * LISTENERS, before.threads, before.children)

    def now() -> tuple[int, int, int]:
        found = _now(node)
        return found.fds, found.threads, found.children

    try:
        wait_until("the driver's fds, threads and children are what they were", lambda: now() == expected, 30)
    except AssertionError:
        raise AssertionError(f"the driver has {now()} fds, threads and children, and had {expected}; {node.driver.fds()}") from None
