"""Measures fuse devices: how long a program takes to mount, what a device and a mount take of the driver, and how that grows."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness import mounts
from harness.container import Bind, Container, Engine
from harness.kubelet import Kubelet
from harness.pod import DATA, HELPERS, SOCKETS, TREE, VARIABLE
from harness.programs import check_installed

from bench import servers
from bench.place import PODS, TREE_PLACE, Bench, BenchError
from bench.rows import ALONE, OURS, VOLUME
from bench.servers import Server, serving
from bench.stats import in_turns

_SCRIPTS = Bind(Path(__file__).resolve().parent / "inside", "/bench", read_only=True)
_CLIENT = Path(__file__).resolve().parent / "inside/device.py"
_SOURCE = "/srv"
_BINDFS = f"bindfs -f {_SOURCE} {DATA}"
_MOST = "5000"  # mounts of one device
_ALL = "shared"  # the device of all namespaces


def measure(bench: Bench) -> None:
    """Fill in the rows of this group."""
    check_installed()
    _in_containers(bench)
    _in_namespaces(bench)
    _memory_of_waiting(bench)


def _in_containers(bench: Bench) -> None:
    """Let bindfs mount in a container with a device, and in one with a volume; and start containers with a device and without."""
    server = _server(bench, ["c"])
    engine = Engine(bench.folder / "engine-devices")
    with serving(server):
        try:
            found = {OURS: _with_device(engine, server), VOLUME: _with_volume(bench, engine, server)}
            for container in found.values():
                container.wait_until_running()
                container.check(f"mkdir -p {DATA}")
            rounds, times = bench.pick(3, 5), bench.pick(5, 20)

            def start(container: Container) -> Callable[[], Sequence[float]]:
                def run() -> Sequence[float]:
                    out = container.check(f"python3 -I -S -B /bench/mounts.py {DATA} {times} {_BINDFS}", timeout=120)
                    return [float(line.split()[0]) for line in out.splitlines() if line.strip()]

                return run

            bench.results.add("device-bindfs", in_turns(rounds, {name: start(container) for name, container in found.items()}))

            def begin(binds: list[Bind], options: list[str]) -> Callable[[], Sequence[float]]:
                def run() -> Sequence[float]:
                    began = time.perf_counter()
                    container = engine.start(binds, options)
                    container.wait_until_running()
                    took = time.perf_counter() - began
                    engine.stop([container])
                    return [took * 1000]

                return run

            starts = {OURS: begin(_kit(server), ["--device=/dev/fuse"]), ALONE: begin([], [])}
            bench.results.add("device-container", in_turns(bench.pick(3, 10), starts))
        finally:
            engine.close()
            mounts.unmount_all_below(bench.folder / "engine-devices")


def _in_namespaces(bench: Bench) -> None:
    """Mount without FUSE programs in mount namespaces, which stand for containers here."""
    few, many = bench.pick(10, 100), bench.pick(100, 1000)
    server = _server(bench, ["one", _ALL])
    with serving(server), _Namespace(bench, server, "one") as one:
        one.ask("cycle 20")  # what comes first takes longer
        bench.results.add("device-cycle", {OURS: [1000 / each for each in one.ask(f"cycle {bench.pick(100, 500)}")]})
        before, number = server.memory, bench.pick(100, 500)
        one.ask(f"mount {number}")
        bench.results.add("device-memory-mounted", {OURS: [(server.memory - before) / 1024 / number]})
        bench.results.add("device-death", {OURS: [value for _ in range(bench.pick(30, 200)) for value in one.ask("die")]})
        with _others(bench, server, few):
            with_few = one.ask(f"cycle {bench.pick(50, 200)}")
            with _others(bench, server, many - few):
                with_many = one.ask(f"cycle {bench.pick(50, 200)}")
        bench.results.add("device-many", {OURS: with_many, ALONE: with_few})


def _memory_of_waiting(bench: Bench) -> None:
    number = 1000
    values = []
    for names in ([], [f"waiting-{each}" for each in range(number)]):
        server = _server(bench, names)
        with serving(server):
            time.sleep(1.0)  # until everything of the start is done
            values.append(server.memory)
    bench.results.add("device-memory-waiting", {OURS: [(values[1] - values[0]) / 1024 / number]})


class _Namespace:
    """Runs device.py in a mount namespace and a pid namespace of its own, as a container has them."""

    def __init__(self, bench: Bench, server: Server, device: str) -> None:
        folder = bench.folder / "namespace"
        folder.mkdir(exist_ok=True)
        script = 'mount -t tmpfs bench "$3" && exec "$0" -I -S -B "$1" "$2" "$3"'
        self._process = subprocess.Popen(
            [
                *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "sh", "-c", script),
                *(sys.executable, str(_CLIENT), str(_sockets(server) / device / "fuse.v1"), str(folder)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def ask(self, line: str) -> list[float]:
        """Have it do something, and return the numbers that it answers."""
        self.begin(line)
        return self.answer(line)

    def answer(self, line: str) -> list[float]:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            raise BenchError(f"a client of a fuse device ended during {line!r}; see its errors above")
        return [float(each) for each in answer.split() if each != "done"]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> "_Namespace":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def _others(bench: Bench, server: Server, number: int) -> Iterator[None]:
    """Let so many further containers have one mount each, with the same device."""
    found = []
    try:
        for _ in range(number):
            found.append(_Namespace(bench, server, _ALL))
            found[-1].ask("mount 1")
        yield
    finally:
        for each in found:
            each.close()


def _server(bench: Bench, names: Sequence[str]) -> Server:
    server = servers.driver_of(bench, OURS, is_alone=False, options=("--fuse-mounts-max", _MOST))
    for name in names:
        (_sockets(server) / name).mkdir(parents=True)
    return server


def _sockets(server: Server) -> Path:
    return server.folder / "fuse" / "sockets"


def _kit(server: Server) -> list[Bind]:
    return [
        Bind(TREE, str(TREE_PLACE), read_only=True),
        Bind(_sockets(server) / "c", f"{TREE_PLACE}/socket", read_only=True),
        *(Bind(TREE / "fusermount3", helper, read_only=True) for helper in HELPERS),
        _SCRIPTS,
    ]


def _with_device(engine: Engine, server: Server) -> Container:
    return engine.start(_kit(server), ["--device=/dev/fuse"])


def _with_volume(bench: Bench, engine: Engine, server: Server) -> Container:
    pod = Kubelet(server.socket, PODS).pod()
    empty_dir = pod.empty_dir()
    published = pod.publish()
    programs = [Bind(TREE, str(TREE_PLACE), read_only=True), *(Bind(TREE / "fusermount3", helper, read_only=True) for helper in HELPERS)]
    dev_fuse = bench.folder / "dev-fuse-devices"
    dev_fuse.touch()
    dev_fuse.chmod(0o666)
    binds = [Bind(empty_dir, SOCKETS), Bind(published.target, DATA, "rslave"), Bind(dev_fuse, "/dev/fuse"), _SCRIPTS, *programs]
    return engine.start(binds, environment={VARIABLE: f"{SOCKETS}/{published.socket.name}"})
