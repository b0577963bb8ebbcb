"""A hostile pod's end of the sockets, and what its attacks cost the driver and the other volumes meanwhile."""

import json
import os
import socket
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from harness.driver import Driver
from harness.events import wait_until
from harness.kubelet import Published
from harness.pod import Node

MOUNT = b'{"op":"mount","mountpoint":"/data","options":"","fds":[]}'
SYNC_MOUNT = b'{"op":"mount","mountpoint":"/data","options":"","syncInit":true,"fds":[]}'
PROCEED = b'{"op":"proceed"}'

_TIMEOUT = 20.0  # seconds
_PAUSE = 0.02  # seconds from one honest mount to the next

# The limits that docs/security.md tells of.
LISTENERS = 2
CONNECTIONS = 72  # of one volume
THREADS = 11  # of one volume
CHILDREN = 4  # of one volume
MEMORY = 64 << 20  # bytes that an attack may make the driver grow by

# gRPC has threads and fds that come and go; calls of kubelet's are going on in most tests.
SPARE = 12


def connect(volume: Published, suffix: str = ".v1", timeout: float = _TIMEOUT) -> socket.socket:
    """A connection to a volume's socket, from outside any container."""
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
    """An answer, {} where the driver closed without one, and the fds that came with it."""
    try:
        data, fds, _, _ = socket.recv_fds(connection, 65536, 4)
    except ConnectionResetError:
        return {}, []
    return (json.loads(data) if data else {}), fds


def request(volume: Published, packet: bytes, fds: Sequence[int] = ()) -> tuple[dict[str, object], list[int]]:
    """One request and its answer."""
    with connect(volume) as connection:
        socket.send_fds(connection, [packet], fds)
        return receive(connection)


def mount(volume: Published, packet: bytes = MOUNT) -> int:
    """Mount, and return the fd to serve it by."""
    answer, fds = request(volume, packet)
    assert "error" not in answer, answer
    (fd,) = fds
    return fd


def mount_and_end(volume: Published) -> float:
    """What an honest program costs: seconds until it has its fd. It is gone at the end, and the volume waits again."""
    began = time.monotonic()
    fd = mount(volume)
    took = time.monotonic() - began
    os.close(fd)
    volume.wait_waiting(_TIMEOUT)
    return took


def serves_again(volume: Published) -> None:
    """Wait until an honest program can mount: the surplus of clients may still have to go."""

    def mounts() -> bool:
        try:
            _, fds = request(volume, MOUNT)
        except OSError:
            return False
        for fd in fds:
            os.close(fd)
        return bool(fds)

    wait_until("a program can mount", mounts, 30)
    volume.wait_waiting(_TIMEOUT)


@dataclass
class Cost:
    """The most that was seen while an attack ran, more than before it; and how long another volume's mounts took."""

    fds: int = 0
    threads: int = 0
    children: int = 0
    memory: int = 0
    latencies: list[float] = field(default_factory=list)

    @property
    def p99(self) -> float:
        return statistics.quantiles(self.latencies, n=100)[98] if len(self.latencies) > 1 else self.latencies[0]


@contextmanager
def attacked(node: Node, volumes: int = 1, rounds: int = 20) -> Iterator[Cost]:
    """While the block attacks, another pod mounts again and again; at the end everything is within its limits.

    `volumes` is how many are attacked, `rounds` how often the other one mounts at least.
    """
    other = node.pod().publish()
    mount_and_end(other)
    before = _numbers(node.driver)
    cost = Cost()
    stop = threading.Event()
    failures: list[BaseException] = []

    def watch() -> None:
        while not stop.wait(0.02):
            now = _numbers(node.driver)
            cost.fds = max(cost.fds, now[0] - before[0])
            cost.threads = max(cost.threads, now[1] - before[1])
            cost.children = max(cost.children, now[2] - before[2])
            cost.memory = max(cost.memory, now[3] - before[3])

    def use() -> None:
        try:
            while not stop.wait(_PAUSE) or len(cost.latencies) < rounds:
                cost.latencies.append(mount_and_end(other))
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=watch, daemon=True), threading.Thread(target=use, daemon=True)]
    for worker in workers:
        worker.start()
    try:
        yield cost
    finally:
        stop.set()
        for worker in workers:
            worker.join(_TIMEOUT + 60)
    if failures:
        raise failures[0]
    assert len(cost.latencies) >= rounds
    print(f"cost: {cost.fds} fds, {cost.threads} threads, {cost.children} children, {cost.memory >> 10} KiB, p99 {cost.p99 * 1000:.1f} ms")
    # An honest mount takes a millisecond or two. The clients of these attacks run on the same machine.
    assert cost.p99 < 1.0
    assert cost.fds <= volumes * (LISTENERS + CONNECTIONS) + SPARE
    assert cost.threads <= volumes * THREADS + SPARE
    assert cost.children <= (volumes + 1) * CHILDREN
    assert cost.memory < MEMORY
    other.unpublish()


def recovers(node: Node, before: tuple[int, int, int, int]) -> None:
    """Wait until the driver is as small as it was."""

    def is_small() -> bool:
        fds, threads, children, _ = _numbers(node.driver)
        return fds <= before[0] + SPARE and threads <= before[1] + SPARE and children <= before[2]

    wait_until("the driver's fds, threads and children are gone", is_small, 30)


def numbers(node: Node) -> tuple[int, int, int, int]:
    """The driver's fds, threads, children and resident bytes."""
    return _numbers(node.driver)


def _numbers(driver: Driver) -> tuple[int, int, int, int]:
    folder = Path(f"/proc/{driver.pid}")
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    memory = int(status["VmRSS"].split()[0]) * 1024
    return len(os.listdir(folder / "fd")), len(os.listdir(folder / "task")), len(driver.children()), memory
