"""kubelet's calls: how many a second, what CPU they cost, and how they change with many volumes and mount namespaces."""

import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from bench import servers
from bench.place import Bench, BenchError
from bench.rows import ALONE, GRPC, OURS
from bench.servers import Clients, Server, serving
from bench.stats import in_turns

_CALLS = ("publish", "republish", "unpublish")
_NAMESPACES = 20


class _Cycles:
    """Publishes all volumes, publishes them again, and unpublishes them; keeps what each of the three took a call."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self.seconds: dict[str, list[float]] = {call: [] for call in _CALLS}
        self.cpu: dict[str, list[float]] = {call: [] for call in _CALLS}

    def __call__(self) -> Sequence[float]:
        for call in _CALLS:
            before = self._clients.server.cpu
            took = self._clients.call("unpublish" if call == "unpublish" else "publish")
            self.seconds[call].append(took / self._clients.pods)
            self.cpu[call].append((self._clients.server.cpu - before) / self._clients.pods)
        return ()


def measure(bench: Bench) -> None:
    """Fill in the rows of this group."""
    others = {GRPC: servers.grpcio(bench)}
    if (peer := servers.peer(bench)) is not None:
        others[bench.peers.name] = peer
    compared = {OURS: servers.ours(bench, OURS), **others}
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
        found = {name: _Cycles(stack.enter_context(Clients(server, processes, pods))) for name, server in compared.items()}
        subjects: dict[str, Callable[[], float | Sequence[float]]] = dict(found)
        in_turns(1, subjects)  # whatever is made once
        for cycles in found.values():
            for call in _CALLS:
                cycles.seconds[call].clear()
                cycles.cpu[call].clear()
        in_turns(rounds, subjects)
        return found


def _more(bench: Bench) -> None:
    """A driver with few volumes beside one with many, and one whose mounts come into other mount namespaces too."""
    few, many, seen = (servers.ours(bench, name) for name in ("few", "many", "seen"))
    pods, others = bench.pick(80, 300), bench.pick(720, 2700)
    with serving(few, many, seen), Clients(many, bench.pick(2, 4), others) as clients, ExitStack() as stack:
        clients.call("publish")
        for _ in range(_NAMESPACES):
            stack.enter_context(_namespace_beside(seen))
        found = _cycles(bench, {ALONE: few, "many": many, "namespaces": seen}, 1, pods, bench.pick(3, 8))
    for row in ("many", "namespaces"):
        for call in _CALLS:
            compared = {OURS: found[row].cpu[call], ALONE: found[ALONE].cpu[call]}
            bench.results.add(f"{row}-{call}", {name: [each * 1000 for each in cpu] for name, cpu in compared.items()})


@contextmanager
def _namespace_beside(server: Server) -> Iterator[None]:
    """A mount namespace with a copy of the server's mounts, in their peer group."""
    command = ["nsenter", f"--mount=/proc/{server.pid}/ns/mnt", "unshare", "--mount", "--propagation", "unchanged"]
    process = subprocess.Popen([*command, "sh", "-c", "echo ready; exec sleep inf"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise BenchError("another mount namespace cannot be made; see above")
        yield
    finally:
        process.kill()
        process.wait()
