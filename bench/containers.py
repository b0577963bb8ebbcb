"""Measures FUSE programs in containers: how long they take to mount, what stays there, and the data path."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from harness import mounts
from harness.container import Bind, Container, Engine
from harness.kubelet import Kubelet
from harness.pod import DATA, HELPERS, SOCKETS, TREE, VARIABLE
from harness.programs import check_installed, path_of

from bench import servers
from bench.place import PODS, TREE_PLACE, Bench, BenchError
from bench.rows import BARE, GO, NATIVE, OURS, C
from bench.servers import Server, serving
from bench.startup import INTERPRETER
from bench.stats import Measure, in_turns

_SCRIPTS = Bind(Path(__file__).resolve().parent / "inside", "/bench", read_only=True)
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
class _Container:
    """Holds a container in which a FUSE program can mount at DATA."""

    container: Container
    sshfs: str  # how sshfs is started
    prefix: str = ""  # in front of bindfs

    def mounts(self, times: int, program: str) -> list[tuple[float, float]]:
        """Start a program again and again, and return the milliseconds until it had mounted and until it answered."""
        out = self.container.check(f"{self.prefix} python3 -I -S -B /bench/mounts.py {DATA} {times} {program}", timeout=120)
        return [(float(line.split()[0]), float(line.split()[1])) for line in out.splitlines() if line.strip()]


def measure(bench: Bench) -> None:
    """Fill in the rows of this group."""
    check_installed()
    with _containers(bench) as found:
        _start_to_mounted(bench, found)
        _left_behind(bench, found)
        _data_path(bench, found)


def _start_to_mounted(bench: Bench, found: dict[str, _Container]) -> None:
    rounds, times = bench.pick(3, 5), bench.pick(5, 20)
    bindfs: dict[str, list[tuple[float, float]]] = {name: [] for name in found}
    sshfs: dict[str, list[tuple[float, float]]] = {name: [] for name in found}

    def both(name: str, each: _Container) -> Callable[[], Sequence[float]]:
        def run() -> Sequence[float]:
            bindfs[name] += each.mounts(times, _BINDFS)
            sshfs[name] += each.mounts(times, each.sshfs)
            return ()

        return run

    def bare() -> Sequence[float]:
        out = found[OURS].container.check(f"python3 -I -S -B /bench/starts.py {times} {INTERPRETER} -I -S -c pass")
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


def _left_behind(bench: Bench, found: dict[str, _Container]) -> None:
    """Count the processes of fusermount3 in a pod while a program with auto_unmount has mounted."""
    processes, memory = {}, {}
    for name, each in found.items():
        program = each.container.start(f"{each.prefix} {_BINDFS_AUTO_UNMOUNT}")
        each.container.wait_for(_IS_MOUNTED)
        left = each.container.check("python3 -I -S -B /bench/helpers.py").split()
        processes[name], memory[name] = [float(left[0])], [float(left[1])]
        program.kill("TERM")
        program.wait()
        each.container.wait_for(f"! {_IS_MOUNTED}")
    bench.results.add("left-processes", processes)
    bench.results.add("left-memory", memory)


def _data_path(bench: Bench, found: dict[str, _Container]) -> None:
    megabytes, operations, rounds = bench.pick(16, 64), bench.pick(500, 4000), bench.pick(3, 10)
    values: dict[str, list[list[float]]] = {OURS: [], NATIVE: []}
    # In the other container root mounts, and libfuse asks no helper.
    containers = {OURS: found[OURS].container, NATIVE: found[C].container}
    programs = {name: container.start(_BINDFS) for name, container in containers.items()}
    for container in containers.values():
        container.wait_for(_IS_MOUNTED)

    def work(name: str, container: Container) -> Callable[[], Sequence[float]]:
        def run() -> Sequence[float]:
            out = container.check(f"python3 -I -S -B /bench/data.py {DATA} {megabytes} {operations}", timeout=120)
            values[name].append([float(line) for line in out.split()])
            return ()

        return run

    subjects = {name: work(name, containers[name]) for name in values}
    in_turns(1, subjects)  # the first round makes what later ones find
    for of_one in values.values():
        of_one.clear()
    in_turns(rounds, subjects)
    for name, container in containers.items():
        programs[name].kill("TERM")
        programs[name].wait()
        container.wait_for(f"! {_IS_MOUNTED}")
    for number, row in enumerate(_DATA_ROWS):
        bench.results.add(row, {name: [each[number] for each in of_one] for name, of_one in values.items()})


@contextmanager
def _containers(bench: Bench) -> Iterator[dict[str, _Container]]:
    """Start a container for each build, and one with privileges for libfuse's own fusermount3."""
    drivers = servers.drivers(bench, is_alone=False)
    engine = Engine(bench.folder / "engine")
    with serving(*drivers.values()):
        try:
            found = {name: _unprivileged(bench, engine, server) for name, server in drivers.items()}
            found[C] = _privileged(engine, bench)
            for each in found.values():
                each.container.wait_until_running()
                each.container.check(f"mkdir -p {_SOURCE} && chmod 1777 {_SOURCE}")
            found[C].container.check(f"chmod 666 /dev/fuse; chown {_UID} {DATA}; echo user_allow_other >>/etc/fuse.conf")
            yield found
        finally:
            engine.close()
            mounts.unmount_all_below(bench.folder / "engine")


def _unprivileged(bench: Bench, engine: Engine, server: Server) -> _Container:
    pod = Kubelet(server.socket, PODS).pod()
    empty_dir = pod.empty_dir()
    published = pod.publish()
    socket = f"{SOCKETS}/{published.socket.name}"
    tree = bench.peer.tree if bench.peer and server.name == bench.peer.name else TREE
    programs = [Bind(tree, str(TREE_PLACE), read_only=True), *(Bind(tree / "fusermount3", helper, read_only=True) for helper in HELPERS)]
    # libfuse only opens /dev/fuse, so an empty file will do: it asks fusermount3 when it cannot mount.
    dev_fuse = bench.folder / "dev-fuse"
    dev_fuse.touch()
    dev_fuse.chmod(0o666)
    binds = [Bind(empty_dir, SOCKETS), Bind(published.target, DATA, "rslave"), Bind(dev_fuse, "/dev/fuse"), _SCRIPTS, *programs]
    container = engine.start(binds, environment={VARIABLE: socket})
    return _Container(container, f"{TREE_PLACE}/fuse-starter --fd-passing-socket-path {socket} -- {_SSHFS} /dev/fd/3")


def _privileged(engine: Engine, bench: Bench) -> _Container:
    if not Path("/dev/fuse").exists():
        raise BenchError("/dev/fuse is missing; type: modprobe fuse")
    path_of("setpriv")
    folder = bench.folder / "native"
    folder.mkdir()
    container = engine.start([Bind(folder, DATA, "rprivate"), _SCRIPTS], options=["--privileged", "--device", "/dev/fuse"])
    return _Container(container, f"{_SSHFS} {DATA}", _AS_USER)
