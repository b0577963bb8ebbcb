"""FUSE programs in containers: how long they take to mount, what is left there, and the data path."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness import mounts
from harness.container import Bind, Container, Engine
from harness.kubelet import Kubelet
from harness.pod import DATA, SOCKETS, VARIABLE, tree
from harness.programs import check_installed, path_of

from bench import servers
from bench.place import PODS, TREE_PLACE, Bench, BenchError
from bench.rows import BARE, GO, NATIVE, OURS, C
from bench.servers import Server, serving
from bench.startup import INTERPRETER
from bench.stats import Sample, in_turns

_SCRIPTS = Bind(Path(__file__).resolve().parent / "inside", "/bench", read_only=True)
_SOURCE = "/srv"  # what the programs show
_UID = 65534  # fusermount3 looks for the user's name
_AS_USER = f"setpriv --reuid={_UID} --regid={_UID} --clear-groups"
_BINDFS = f"bindfs -f {_SOURCE} {DATA}"
_BINDFS_AUTO_UNMOUNT = f"bindfs -f -o auto_unmount {_SOURCE} {DATA}"
# An sftp server at the other end of two pipes: no network, and no encryption that would hide the rest.
_SSHFS = f"sshfs -f -s -o ssh_command=/bench/sftp bench:{_SOURCE}"
_PEERS_STARTER = "/peer/fuse-starter"
_IS_MOUNTED = f"grep -q ' {DATA} .* - fuse' /proc/self/mountinfo"
_DATA_ROWS = ("data-write", "data-read", "data-random-write", "data-random-read", "data-metadata")


@dataclass(frozen=True)
class _Container:
    """A container in which a FUSE program can mount at DATA."""

    container: Container
    prefix: str = ""  # in front of the program
    sshfs: str = ""  # how sshfs is started; "" where what that needs was not given

    def mounts(self, times: int, program: str, prefix: str | None = None) -> list[tuple[float, float]]:
        """Start a program again and again: the milliseconds until it had mounted and until it answered."""
        before = self.prefix if prefix is None else prefix
        out = self.container.check(f"{before} python3 -I -S -B /bench/mounts.py {DATA} {times} {program}", timeout=120)
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
    sshfs: dict[str, list[tuple[float, float]]] = {name: [] for name, each in found.items() if each.sshfs}

    def both(name: str, each: _Container) -> Callable[[], Sequence[float]]:
        def run() -> Sequence[float]:
            bindfs[name] += each.mounts(times, _BINDFS)
            if each.sshfs:
                sshfs[name] += each.mounts(times, each.sshfs)
            return ()

        return run

    def bare() -> Sequence[float]:
        out = found[OURS].container.check(f"python3 -I -S -B /bench/starts.py {times} {INTERPRETER} -I -S -c pass")
        return [float(line) for line in out.split()]

    subjects: dict[str, Callable[[], float | Sequence[float]]] = {name: both(name, each) for name, each in found.items()}
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
    """The median of each round."""
    return [Sample(tuple(values[start : start + times])).median for start in range(0, len(values), times)]


def _left_behind(bench: Bench, found: dict[str, _Container]) -> None:
    """The helper's processes in a pod while a program with auto_unmount has mounted."""
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
    # The native one by root, who mounts without any helper.
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
    in_turns(1, subjects)  # whatever is made once
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
    """One for each implementation, and one with privileges for libfuse's own helper."""
    ours, peer = servers.ours(bench, OURS, is_alone=False), servers.peer(bench, is_alone=False)
    engine = Engine(bench.folder / "engine")
    with serving(ours, *([peer] if peer else [])):
        try:
            own = [*tree()]
            found = {
                OURS: _unprivileged(bench, engine, ours, own, f"{TREE_PLACE}/fuse-starter"),
                C: _privileged(engine, bench),
            }
            if peer is not None and bench.peers.fusermount3:
                starter = _PEERS_STARTER if bench.peers.starter else ""
                found[bench.peers.name] = _unprivileged(bench, engine, peer, _peers_programs(bench), starter)
            for each in found.values():
                each.container.wait_until_running()
                each.container.check(f"mkdir -p {_SOURCE} && chmod 1777 {_SOURCE}")
            found[C].container.check(f"chmod 666 /dev/fuse; chown {_UID} {DATA}; echo user_allow_other >>/etc/fuse.conf")
            yield found
        finally:
            engine.close()
            mounts.unmount_all_below(bench.folder / "engine")


def _unprivileged(bench: Bench, engine: Engine, server: Server, programs: list[Bind], starter: str) -> _Container:
    pod = Kubelet(server.socket, PODS).pod()
    empty_dir = pod.empty_dir()
    published = pod.publish()
    socket = f"{SOCKETS}/{published.socket.name}"
    # An empty file does for libfuse, which goes on to the helper where it cannot mount.
    dev_fuse = bench.folder / "dev-fuse"
    dev_fuse.touch()
    dev_fuse.chmod(0o666)
    binds = [Bind(empty_dir, SOCKETS), Bind(published.target, DATA, "rslave"), Bind(dev_fuse, "/dev/fuse"), _SCRIPTS, *programs]
    container = engine.start(binds, environment={VARIABLE: socket})
    sshfs = f"{starter} --fd-passing-socket-path {socket} -- {_SSHFS} /dev/fd/3" if starter else ""
    return _Container(container, sshfs=sshfs)


def _peers_programs(bench: Bench) -> list[Bind]:
    binds = [Bind(Path(bench.peers.fusermount3[0]).resolve(), f"/usr/bin/{name}", read_only=True) for name in ("fusermount3", "fusermount")]
    if bench.peers.starter:
        binds.append(Bind(Path(bench.peers.starter[0]).resolve(), _PEERS_STARTER, read_only=True))
    return binds


def _privileged(engine: Engine, bench: Bench) -> _Container:
    if not Path("/dev/fuse").exists():
        raise BenchError("there is no /dev/fuse: type 'modprobe fuse'")
    path_of("setpriv")
    folder = bench.folder / "native"
    folder.mkdir()
    container = engine.start([Bind(folder, DATA, "rprivate"), _SCRIPTS], options=["--privileged", "--device", "/dev/fuse"])
    return _Container(container, _AS_USER, f"{_SSHFS} {DATA}")
