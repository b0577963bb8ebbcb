"""Measures what volumes cost the driver, and how fast it answers pods, notices deaths and restarts."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench import cpu, mounting, servers
from bench.place import Bench, BenchError
from bench.rows import ALONE, GO, GRPC, OURS
from bench.servers import Callers, Server, serving
from bench.stats import Measure, in_turns, p99, when_due

_HOUR = 3600.0
_BUSY = 0.1  # of the processors
_ROOT = Path(__file__).resolve().parent.parent


def measure(bench: Bench) -> None:
    """Fill in the rows of this group, each for our driver and then for the peer's."""
    mounting.raise_fd_limit()
    names = [OURS]
    if bench.peer is not None and bench.peer.name != GO:  # the Go plugin does not have what these rows measure
        names.append(bench.peer.name)
    for part in (_memory, _deaths, _latency, _killed, *([] if bench.is_short else [_idle])):
        for name in names:
            part(bench, name)


def _memory(bench: Bench, name: str) -> None:
    few, many = 300, bench.pick(600, 3000)
    server, bare = servers.driver_of(bench, name), servers.grpcio(bench)
    with serving(server, bare), Callers(server, 1, few) as first, Callers(server, 1, many - few) as rest:
        # One step each, so that what the driver's first call allocates is not counted as a volume's.
        bench.results.add("memory-idle", {name: [server.memory / 2**20], GRPC: [bare.memory / 2**20]})
        first.call("publish")
        at_few = server.memory
        bench.results.add("memory-300", {name: [at_few / 2**20], GRPC: [bare.memory / 2**20]})
        rest.call("publish")
        waiting = server.memory
        bench.results.add("memory-waiting", {name: [(waiting - at_few) / (many - few) / 1024]})
        before = server.fds, server.threads
        with mounting.mounted(first.targets):
            bench.results.add("memory-mounted", {name: [(server.memory - waiting) / few / 1024]})
            # A waiting volume has two fds already, its listening sockets.
            bench.results.add("fds", {name: [(server.fds - before[0]) / few + round(before[0] / many, 1)]})
            bench.results.add("threads", {name: [max(0.0, server.threads - before[1]) / few]})


def _deaths(bench: Bench, name: str) -> None:
    server = servers.driver_of(bench, name)
    with serving(server), Callers(server, 1, 1) as callers:
        callers.call("publish")
        target, table = callers.targets[0], mounting.MountTable(server)

        def removed() -> float:
            holder = mounting.program(mounting.mount(target))
            began = time.perf_counter()
            _kill(holder)
            table.wait_until_waiting(target)
            return (time.perf_counter() - began) * 1000

        def again() -> float:
            holder = mounting.program(mounting.mount(target))
            began = time.perf_counter()
            _kill(holder)
            fd = mounting.mount(target)
            took = (time.perf_counter() - began) * 1000
            mounting.unmount(target, fd)
            return took

        found = in_turns(bench.pick(20, 200), {"removed": removed, "again": again})
        bench.results.add("death-removed", {name: found["removed"]})
        bench.results.add("death-mounted", {name: found["again"]})
        table.close()


def _kill(holder: subprocess.Popen[bytes]) -> None:
    holder.kill()
    holder.wait()


def _latency(bench: Bench, name: str) -> None:
    """Mount at one volume, in turns alone and beside what others do."""
    server = servers.driver_of(bench, name)
    # Long enough for the others to publish and unpublish all their volumes, and for a 99th percentile.
    times, every, rounds = (100, 0.01, 3) if bench.is_short else (200, 0.02, 6)
    with serving(server), Callers(server, 1, 2) as callers, Callers(server, 1, bench.pick(100, 1000)) as others:
        callers.call("publish")
        target, flooded = callers.targets

        def mounts() -> float:
            return p99(when_due(times, every, lambda: _mount(target)))

        def while_publishing() -> float:
            with others.cycling():
                return mounts()

        def while_flooded() -> float:
            command = [sys.executable, "-I", "-S", "-B", f"{_ROOT}/bench/flood.py", servers.socket_of(flooded)]
            flood = subprocess.Popen(command, stdout=subprocess.PIPE)
            assert flood.stdout is not None
            try:
                flood.stdout.readline()  # it has begun
                return mounts()
            finally:
                flood.kill()
                if flood.wait() >= 0:
                    raise BenchError("bench/flood.py ended by itself; see its errors above")

        subjects: dict[str, Measure] = {"publishing": while_publishing, "flood": while_flooded, ALONE: mounts}
        rest = cpu.Others([server.pid, *callers.pids, *others.pids])
        found = in_turns(rounds, subjects)
        share = rest.share()
        for row, subject in (("latency-publishing", "publishing"), ("latency-flood", "flood")):
            bench.results.add(row, {name: found[subject], **({ALONE: found[ALONE]} if name == OURS else {})})
            # The kernel lets a driver that sleeps run before those that compute. One that is busy waits for its turn.
            if name == OURS and share > _BUSY:
                bench.results.doubt(row, f"not checked, other processes had {share:.0%} of the processors")


def _mount(target: Path) -> Callable[[], None]:
    """Mount, and return what unmounts."""
    fd = mounting.mount(target)
    return lambda: mounting.unmount(target, fd)


def _killed(bench: Bench, name: str) -> None:
    """Kill and start the driver, in turns with the server that does nothing: its start shows how fast the machine is."""
    server, bare = servers.driver_of(bench, name), servers.grpcio(bench)
    with serving(server, bare), Callers(server, 1, 1000) as callers:
        callers.call("publish")

        def answering() -> float:
            began = time.perf_counter()
            server.kill()
            server.start()
            mounting.wait_until_all_answer(callers.targets)
            return (time.perf_counter() - began) * 1000

        def starting() -> float:
            bare.kill()
            bare.socket.unlink()
            began = time.perf_counter()
            bare.start()
            bare.wait_until_serving()
            return (time.perf_counter() - began) * 1000

        bench.results.add("killed", in_turns(bench.pick(3, 7), {name: answering, GRPC: starting}))


def _idle(bench: Bench, name: str) -> None:
    """Measure a driver without calls and the server that does nothing, at the same time."""
    compared: dict[str, Server] = {name: servers.driver_of(bench, name), GRPC: servers.grpcio(bench)}
    volumes, rounds, seconds = 1000, 4, 5.0
    found: dict[str, list[float]] = {subject: [] for subject in compared}
    with serving(*compared.values()), Callers(compared[name], 1, volumes) as callers:
        callers.call("publish")
        with mounting.mounted(callers.targets):
            time.sleep(1)  # for what the mounts have left to do
            for _ in range(rounds):
                before = {subject: server.cpu for subject, server in compared.items()}
                time.sleep(seconds)
                for subject, server in compared.items():
                    found[subject].append((server.cpu - before[subject]) / seconds * _HOUR)
    bench.results.add("cpu-idle", found)
