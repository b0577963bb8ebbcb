"""Measures kubelet's calls: how many a second, their CPU, and what many volumes and mount namespaces change."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from bench import servers
from bench.place import Bench, BenchError
from bench.rows import ALONE, GRPC, OURS
from bench.servers import Callers, Server, serving
from bench.stats import Measure, in_turns

_CALLS = ("publish", "republish", "unpublish")
_NAMESPACES = 20


class _Cycles:
    """Publishes all volumes, publishes them again, unpublishes them, and keeps what each of the three took a call."""

    def __init__(self, callers: Callers) -> None:
        self._callers = callers
        self.seconds: dict[str, list[float]] = {call: [] for call in _CALLS}
        self.cpu: dict[str, list[float]] = {call: [] for call in _CALLS}

    def __call__(self) -> Sequence[float]:
        for call in _CALLS:
            before = self._callers.server.cpu
            took = self._callers.call("unpublish" if call == "unpublish" else "publish")
            self.seconds[call].append(took / self._callers.pods)
            self.cpu[call].append((self._callers.server.cpu - before) / self._callers.pods)
        return ()


def measure(bench: Bench) -> None:
    """Fill in the rows of this group."""
    compared = {**servers.drivers(bench), GRPC: servers.grpcio(bench)}
    pods = bench.pick(100, 300)
    with serving(*compared.values()):
        found = _cycles(bench, compared, 1, pods, bench.pick(4, 12))
        for call in _CALLS:
            bench.results.add(f"{call}-1", {name: [1 / each for each in cycles.seconds[call]] for name, cycles in found.items()})
            bench.results.add(f"cpu-{call}", {name: [each * 1000 for each in cycles.cpu[call]] for name, cycles in found.items()})
        if not bench.is_short:
            found = _cycles(bench, compared, 8, pods, 12)
            for call in _CALLS:
                bench.results.add(f"{call}-8", {name: [1 / each for each in cycles.seconds[call]] for name, cycles in found.items()})
    _more(bench)


def _cycles(bench: Bench, compared: dict[str, Server], processes: int, pods: int, rounds: int) -> dict[str, _Cycles]:
    with ExitStack() as stack:
        found = {name: _Cycles(stack.enter_context(Callers(server, processes, pods))) for name, server in compared.items()}
        subjects: dict[str, Measure] = dict(found)
        in_turns(1, subjects)  # the first round makes what later ones find
        for cycles in found.values():
            for call in _CALLS:
                cycles.seconds[call].clear()
                cycles.cpu[call].clear()
        in_turns(rounds, subjects)
        return found


def _more(bench: Bench) -> None:
    """Compare a driver with few volumes to one with many, and to one whose mounts appear in other mount namespaces too."""
    few, many, seen = (servers.driver_of(bench, name) for name in ("few", "many", "seen"))
    pods, others = bench.pick(80, 300), bench.pick(720, 2700)
    with serving(few, many, seen), Callers(many, bench.pick(2, 4), others) as callers, ExitStack() as stack:
        callers.call("publish")
        for _ in range(_NAMESPACES):
            stack.enter_context(_namespace_beside(seen))
        found = _cycles(bench, {ALONE: few, "many": many, "namespaces": seen}, 1, pods, bench.pick(3, 8))
    for row in ("many", "namespaces"):
        for call in _CALLS:
            compared = {OURS: found[row].cpu[call], ALONE: found[ALONE].cpu[call]}
            bench.results.add(f"{row}-{call}", {name: [each * 1000 for each in cpu] for name, cpu in compared.items()})


@contextmanager
def _namespace_beside(server: Server) -> Iterator[None]:
    """Make a mount namespace with a copy of the server's mounts, in their peer group, for the block."""
    command = ["nsenter", f"--mount=/proc/{server.pid}/ns/mnt", "unshare", "--mount", "--propagation", "unchanged"]
    process = subprocess.Popen([*command, "sh", "-c", "echo ready; exec sleep inf"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise BenchError("cannot make another mount namespace; see the errors of nsenter and unshare above")
        yield
    finally:
        process.kill()
        process.wait()
