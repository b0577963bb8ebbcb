"""What published and mounted volumes cost the driver, and how fast it answers pods, deaths and its own restart."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import cpu, mounting, servers
from bench.place import Bench, BenchError
from bench.rows import ALONE, GRPC, OURS
from bench.servers import Clients, Server, serving
from bench.stats import Sample, in_turns, when_due

_HOUR = 3600.0
_BUSY = 0.1  # of the processors
_ROOT = Path(__file__).resolve().parent.parent


def measure(bench: Bench) -> None:
    """Fill in the rows of this group."""
    mounting.raise_fd_limit()
    _memory(bench)
    _deaths(bench)
    _latency(bench)
    _killed(bench)
    if not bench.is_short:
        _idle(bench)


def _memory(bench: Bench) -> None:
    few, many = 300, bench.pick(600, 3000)
    server, bare = servers.ours(bench, OURS), servers.grpcio(bench)
    with serving(server, bare), Clients(server, 1, few) as first, Clients(server, 1, many - few) as rest:
        # Once each way, so that what the first call of all brings is not put on a volume.
        bench.results.add("memory-idle", {OURS: [server.memory / 2**20], GRPC: [bare.memory / 2**20]})
        first.call("publish")
        at_few = server.memory
        bench.results.add("memory-300", {OURS: [at_few / 2**20], GRPC: [bare.memory / 2**20]})
        rest.call("publish")
        waiting = server.memory
        bench.results.add("memory-waiting", {OURS: [(waiting - at_few) / (many - few) / 1024]})
        before = server.fds, server.threads
        with mounting.mounted(first.targets):
            bench.results.add("memory-mounted", {OURS: [(server.memory - waiting) / few / 1024]})
            # A waiting volume has two, its listening sockets.
            bench.results.add("fds", {OURS: [(server.fds - before[0]) / few + _fds_of_waiting(before[0], many)]})
            bench.results.add("threads", {OURS: [max(0.0, server.threads - before[1]) / few]})


def _fds_of_waiting(fds: float, volumes: int) -> float:
    return round(fds / volumes, 1)


def _deaths(bench: Bench) -> None:
    server = servers.ours(bench, OURS)
    with serving(server), Clients(server, 1, 1) as clients:
        clients.call("publish")
        target, table = clients.targets[0], mounting.MountTable(server)

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
        bench.results.add("death-removed", {OURS: found["removed"]})
        bench.results.add("death-mounted", {OURS: found["again"]})
        table.close()


def _kill(holder: subprocess.Popen[bytes]) -> None:
    holder.kill()
    holder.wait()


def _latency(bench: Bench) -> None:
    """One volume's mounts, in turns alone and beside what others do."""
    server = servers.ours(bench, OURS)
    # Long enough for the others' publishes and unpublishes of all their volumes, and for a 99th percentile of its own.
    times, every, rounds = (100, 0.01, 3) if bench.is_short else (200, 0.02, 6)
    with serving(server), Clients(server, 1, 2) as clients, Clients(server, 1, bench.pick(100, 1000)) as others:
        clients.call("publish")
        ours, flooded = clients.targets

        def mounts() -> float:
            return Sample(tuple(when_due(times, every, lambda: _mount(ours)))).quantile(0.99)

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
                    raise BenchError("the flood of connections ended by itself; see above")

        subjects: dict[str, Callable[[], float | Sequence[float]]] = {"publishing": while_publishing, "flood": while_flooded, ALONE: mounts}
        rest = cpu.Others([server.pid, *clients.pids, *others.pids])
        found = in_turns(rounds, subjects)
        share = rest.share()
        for row, subject in (("latency-publishing", "publishing"), ("latency-flood", "flood")):
            bench.results.add(row, {OURS: found[subject], ALONE: found[ALONE]})
            # A driver that waits sleeps, and is let run before those that compute; one that is busy waits its turn.
            if share > _BUSY:
                bench.results.doubt(row, f"not checked, other processes had {share:.0%} of the processors")


def _mount(target: Path) -> Callable[[], None]:
    """Mount, and return what unmounts."""
    fd = mounting.mount(target)
    return lambda: mounting.unmount(target, fd)


def _killed(bench: Bench) -> None:
    """Beside it, for the machine's sake, the start of the server that does nothing."""
    server, bare = servers.ours(bench, OURS), servers.grpcio(bench)
    with serving(server, bare), Clients(server, 1, 1000) as clients:
        clients.call("publish")

        def answering() -> float:
            began = time.perf_counter()
            server.kill()
            server.start()
            mounting.wait_until_all_answer(clients.targets)
            return (time.perf_counter() - began) * 1000

        def starting() -> float:
            bare.kill()
            bare.socket.unlink()
            began = time.perf_counter()
            bare.start()
            bare.wait_until_serving()
            return (time.perf_counter() - began) * 1000

        bench.results.add("killed", in_turns(bench.pick(3, 7), {OURS: answering, GRPC: starting}))


def _idle(bench: Bench) -> None:
    """Ours and the server that does nothing, at the same time."""
    ours, bare = servers.ours(bench, OURS), servers.grpcio(bench)
    compared: dict[str, Server] = {OURS: ours, GRPC: bare}
    volumes, rounds, seconds = 1000, 4, 5.0
    found: dict[str, list[float]] = {name: [] for name in compared}
    with serving(ours, bare), Clients(ours, 1, volumes) as clients:
        clients.call("publish")
        with mounting.mounted(clients.targets):
            time.sleep(1)  # for what the mounts have left to do
            for _ in range(rounds):
                before = {name: server.cpu for name, server in compared.items()}
                time.sleep(seconds)
                for name, server in compared.items():
                    found[name].append((server.cpu - before[name]) / seconds * _HOUR)
    bench.results.add("cpu-idle", found)
