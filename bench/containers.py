"""Measures FUSE programs in containers: how long they take to mount, what stays there, and the data path."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from harness import mounts
from harness.container import Bind, Container, Engine
from harness.kubelet import SOCKET, Kubelet, Published
from harness.pod import DATA, HELPERS, SOCKETS, TREE, VARIABLE
from harness.programs import check_installed, path_of

from bench import servers
from bench.place import PODS, TREE_PLACE, Bench, BenchError
from bench.rows import BARE, GO, NATIVE, OURS, C
from bench.servers import Server, serving
from bench.startup import INTERPRETER
from bench.stats import Measure, in_turns

_SCRIPTS = Bind(Path(__file__).resolve().parent / "inside", "/bench", read_only=True)
_SOCKET = f"{SOCKETS}/{SOCKET}"
_SOURCE = "/srv"  # the files that the programs show
_UID = 65534  # fusermount3 looks for the user's name
_AS_USER = f"setpriv --reuid={_UID} --regid={_UID} --clear-groups"
_BINDFS = f"bindfs -f {_SOURCE} {DATA}"
_BINDFS_AUTO_UNMOUNT = f"bindfs -f -o auto_unmount {_SOURCE} {DATA}"
# An sftp server at the other end of two pipes: no network, and no encryption that would hide the rest.
_SSHFS = f"sshfs -f -s -o ssh_command=/bench/sftp bench:{_SOURCE}"
_IS_MOUNTED = f"grep -q ' {DATA} .* - fuse' /proc/self/mountinfo"
_DATA_ROWS = ("data-write", "data-read", "data-random-write", "data-random-read", "data-metadata")


@dataclass(frozen=True)
class _Build:
    """Mounts at DATA of a container with one build, or with libfuse's own fusermount3."""

    container: Callable[[], AbstractContextManager[Container]]  # gives one at whose DATA nothing is mounted
    sshfs: str  # how sshfs is started
    prefix: str = ""  # in front of bindfs
    can_unmount: bool = True

    def mounts(self, times: int, program: str) -> list[tuple[float, float]]:
        """Start a program again and again, and return the milliseconds until it had mounted and until it answered."""
        found: list[tuple[float, float]] = []
        while len(found) < times:
            with self.container() as container:
                command = f"{self.prefix} python3 -I -S -B /bench/mounts.py {DATA} {times if self.can_unmount else 1} {program}"
                lines = container.check(command, timeout=120).split("\n")
            found += [(float(line.split()[0]), float(line.split()[1])) for line in lines if line.strip()]
        return found


def measure(bench: Bench) -> None:
    """Fill in the rows of this group."""
    check_installed()
    with _builds(bench) as found:
        _start_to_mounted(bench, found)
        _left_behind(bench, found)
        _data_path(bench, found)


def _start_to_mounted(bench: Bench, found: dict[str, _Build]) -> None:
    rounds, times = bench.pick(3, 5), bench.pick(5, 20)
    bindfs: dict[str, list[tuple[float, float]]] = {name: [] for name in found}
    sshfs: dict[str, list[tuple[float, float]]] = {name: [] for name in found}

    def both(name: str, each: _Build) -> Callable[[], Sequence[float]]:
        def run() -> Sequence[float]:
            bindfs[name] += each.mounts(times, _BINDFS)
            sshfs[name] += each.mounts(times, each.sshfs)
            return ()

        return run

    def bare() -> Sequence[float]:
        with found[OURS].container() as container:
            out = container.check(f"python3 -I -S -B /bench/starts.py {times} {INTERPRETER} -I -S -c pass")
        return [float(line) for line in out.split()]

    subjects: dict[str, Measure] = {name: both(name, each) for name, each in found.items()}
    starts = in_turns(rounds, {BARE: bare, **subjects})[BARE]
    bench.results.add("container-bindfs", {name: [mounted for mounted, _ in values] for name, values in bindfs.items()})
    bench.results.add("container-bindfs-answers", {name: [answered for _, answered in values] for name, values in bindfs.items()})
    bench.results.add("container-starter", {name: [mounted for mounted, _ in values] for name, values in sshfs.items()})
    bench.results.add("container-sshfs", {name: [answered for _, answered in values] for name, values in sshfs.items()})
    for other, suffix in ((C, "more"), (GO, "more-go")):
        for key, of_all, which in (("container-bindfs", bindfs, 0), ("container-sshfs", sshfs, 1)):
            if other in of_all:
                took = {name: _of_rounds([value[which] for value in of_all[name]], times) for name in (OURS, other)}
                more = [ours - theirs for ours, theirs in zip(took[OURS], took[other], strict=True)]
                bench.results.add(f"{key}-{suffix}", {OURS: more, BARE: _of_rounds(starts, times)})


def _of_rounds(values: Sequence[float], times: int) -> list[float]:
    """Return the median of each round."""
    return [median(values[start : start + times]) for start in range(0, len(values), times)]


def _left_behind(bench: Bench, found: dict[str, _Build]) -> None:
    """Count the processes of fusermount3 in a pod while a program with auto_unmount has mounted."""
    processes, memory = {}, {}
    for name, each in found.items():
        with each.container() as container:
            program = container.start(f"{each.prefix} {_BINDFS_AUTO_UNMOUNT}")
            container.wait_for(_IS_MOUNTED)
            left = container.check("python3 -I -S -B /bench/helpers.py").split()
            program.kill("TERM")
            program.wait()
        processes[name], memory[name] = [float(left[0])], [float(left[1])]
    bench.results.add("left-processes", processes)
    bench.results.add("left-memory", memory)


def _data_path(bench: Bench, found: dict[str, _Build]) -> None:
    megabytes, operations, rounds = bench.pick(16, 64), bench.pick(500, 4000), bench.pick(3, 10)
    values: dict[str, list[list[float]]] = {OURS: [], NATIVE: []}

    def work(name: str, container: Container) -> Callable[[], Sequence[float]]:
        def run() -> Sequence[float]:
            out = container.check(f"python3 -I -S -B /bench/data.py {DATA} {megabytes} {operations}", timeout=120)
            values[name].append([float(line) for line in out.split()])
            return ()

        return run

    # In the other container root mounts, and libfuse asks no helper.
    with found[OURS].container() as ours, found[C].container() as native:
        containers = {OURS: ours, NATIVE: native}
        programs = [container.start(_BINDFS) for container in containers.values()]
        for container in containers.values():
            container.wait_for(_IS_MOUNTED)
        subjects = {name: work(name, containers[name]) for name in values}
        in_turns(1, subjects)  # the first round makes what later ones find
        for of_one in values.values():
            of_one.clear()
        in_turns(rounds, subjects)
        for program in programs:
            program.kill("TERM")
            program.wait()
    for number, row in enumerate(_DATA_ROWS):
        bench.results.add(row, {name: [each[number] for each in of_one] for name, of_one in values.items()})


@contextmanager
def _builds(bench: Bench) -> Iterator[dict[str, _Build]]:
    """Start a container for each build, and one with privileges for libfuse's own fusermount3."""
    drivers = servers.drivers(bench, is_alone=False)
    engine = Engine(bench.folder / "engine")
    with serving(*drivers.values()):
        try:
            found = {name: _unprivileged(bench, engine, server) for name, server in drivers.items()}
            found[C] = _privileged(engine, bench)
            yield found
        finally:
            engine.close()
            mounts.unmount_all_below(bench.folder / "engine")


def _unprivileged(bench: Bench, engine: Engine, server: Server) -> _Build:
    is_peer = bench.peer is not None and server.name == bench.peer.name
    tree = bench.peer.tree if bench.peer and is_peer else TREE
    sshfs = f"{TREE_PLACE}/fuse-starter --fd-passing-socket-path {_SOCKET} -- {_SSHFS} /dev/fd/3"
    if bench.peer and is_peer and not bench.peer.can_unmount:
        return _Build(partial(_fresh, bench, engine, server, tree), sshfs, can_unmount=False)
    return _Build(partial(_kept, _start(bench, engine, _publish(server), tree)), sshfs)


def _publish(server: Server) -> Published:
    pod = Kubelet(server.socket, PODS).pod()
    pod.empty_dir()
    return pod.publish()


def _start(bench: Bench, engine: Engine, published: Published, tree: Path) -> Container:
    programs = [Bind(tree, str(TREE_PLACE), read_only=True), *(Bind(tree / "fusermount3", helper, read_only=True) for helper in HELPERS)]
    # libfuse only opens /dev/fuse, so an empty file will do: it asks fusermount3 when it cannot mount.
    dev_fuse = bench.folder / "dev-fuse"
    dev_fuse.touch()
    dev_fuse.chmod(0o666)
    binds = [Bind(published.pod.empty_dir(), SOCKETS), Bind(published.target, DATA, "rslave"), Bind(dev_fuse, "/dev/fuse"), _SCRIPTS]
    container = engine.start([*binds, *programs], environment={VARIABLE: _SOCKET})
    container.wait_until_running()
    container.check(f"mkdir -p {_SOURCE} && chmod 1777 {_SOURCE}")
    return container


@contextmanager
def _kept(container: Container) -> Iterator[Container]:
    """Give the same container each time."""
    yield container
    container.wait_for(f"! {_IS_MOUNTED}")


@contextmanager
def _fresh(bench: Bench, engine: Engine, server: Server, tree: Path) -> Iterator[Container]:
    """Give a container with a volume of its own, and remove both, since what is mounted there stays as long as they do."""
    published = _publish(server)
    container = _start(bench, engine, published, tree)
    # The first start of a program in a container takes longer than the next ones, which are what the others measure.
    container.check("bindfs --version && sshfs --version")
    yield container
    engine.stop([container])
    published.unpublish()


def _privileged(engine: Engine, bench: Bench) -> _Build:
    if not Path("/dev/fuse").exists():
        raise BenchError("/dev/fuse is missing; type: modprobe fuse")
    path_of("setpriv")
    folder = bench.folder / "native"
    folder.mkdir()
    container = engine.start([Bind(folder, DATA, "rprivate"), _SCRIPTS], options=["--privileged", "--device", "/dev/fuse"])
    container.check(f"mkdir -p {_SOURCE} && chmod 1777 {_SOURCE}")
    container.check(f"chmod 666 /dev/fuse; chown {_UID} {DATA}; echo user_allow_other >>/etc/fuse.conf")
    return _Build(partial(_kept, container), f"{_SSHFS} {DATA}", _AS_USER)
