"""Measures the pod's programs from start to exit, and what they do meanwhile, beside the bare interpreter."""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from harness.pod import SINGLE_FILE, VARIABLE
from standin_driver import StandIn, answer, receive

from bench.place import TREE_PLACE, Bench, BenchError, peer_in_place
from bench.process import Run, Runner
from bench.rows import BARE, OURS, C
from bench.stats import Measure, in_turns

INTERPRETER = os.path.realpath(sys.executable)
_FUSERMOUNT3 = f"{TREE_PLACE}/fusermount3"
_BARE = [INTERPRETER, "-I", "-S", "-c", "pass"]
_ANSWER = b'{"volumeName":"bench"}'
_ROOT = Path(__file__).resolve().parent.parent
_T = TypeVar("_T")


class _MountPath:
    """Runs fusermount3 as a FUSE library does, against a driver that answers at once."""

    def __init__(self, runner: Runner, driver: StandIn, mountpoint: Path) -> None:
        self._runner = runner
        self._driver = driver
        self._ours, theirs = socket.socketpair()
        self._ours.settimeout(5)
        theirs.set_inheritable(True)
        self._theirs = theirs
        mountpoint.mkdir()
        self._mountpoint = mountpoint
        self._socket_path = str(driver.path)
        self.environment = {VARIABLE: self._socket_path, "_FUSE_COMMFD": str(theirs.fileno())}

    def command(self, program: Sequence[str]) -> list[str]:
        return [*program, "-o", "rw,nosuid,nodev,subtype=bench", "--", str(self._mountpoint)]

    def run(self, program: Sequence[str]) -> Run:
        run = self._runner.run(self.command(program), self.environment)
        self.receive_fd()
        self._driver.renew()
        return run

    def receive_fd(self) -> None:
        """Receive the fd that fusermount3 has sent, and close it. Raises BenchError where none came."""
        _, fds = receive(self._ours)
        for fd in fds:
            os.close(fd)
        if len(fds) != 1:
            raise BenchError(f"fusermount3 sent {len(fds)} fds, not one")

    def traced(self, program: Sequence[str], trace: Path) -> list[str]:
        """Return the system calls of one run, one a line."""
        lines = _trace(self.command(program), self.environment, trace, (self._theirs.fileno(),))
        self.receive_fd()
        self._driver.renew()
        return lines

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()


def measure(bench: Bench) -> None:
    """Fill in the rows of this group."""
    runner = Runner(f"{bench.folder}/errors")
    rounds, few = bench.pick(25, 200), bench.pick(15, 60)

    def compare(key: str, rounds: int, ours: Measure, peer: Measure | None = None, **others: Measure) -> None:
        subjects = {BARE: lambda: runner.run(_BARE).milliseconds, OURS: ours, **others}
        if bench.peer is not None:
            subjects[bench.peer.name] = peer or _of_peer(ours)
        bench.results.add(key, in_turns(rounds, subjects))

    def version(program: str) -> Measure:
        return lambda: runner.run([program, "-V"]).milliseconds

    native = shutil.which("fusermount3")
    compare("start-version", rounds, version(_FUSERMOUNT3), **({C: version(native)} if native else {}))
    # A single file is unpacked to TMPDIR's default. That is on a tmpfs here, like the rest.
    peers_file = str(bench.peer.single_file) if bench.peer else ""
    compare("single-version", few, version(str(SINGLE_FILE)), version(peers_file))

    with _answering(bench.folder) as driver:
        mount_path = _MountPath(runner, driver, bench.folder / "mountpoint")

        def mount(program: str) -> Measure:
            return lambda: mount_path.run([program]).milliseconds

        compare("start-mount", rounds, mount(_FUSERMOUNT3))
        for count in (2, 4):
            with _busy(count):
                compare(f"start-mount-busy-{count}", few, mount(_FUSERMOUNT3))
        compare("single-mount", few, mount(str(SINGLE_FILE)), mount(peers_file))
        true = shutil.which("true") or "/bin/true"
        starter = [f"{TREE_PLACE}/fuse-starter", "--fd-passing-socket-path", str(driver.path), "--", true]

        def start() -> float:
            took = runner.run(starter).milliseconds
            driver.renew()
            return took

        compare("start-starter", rounds, start)
        _list(bench, runner, mount_path)
        mount_path.close()


def _of_peer(ours: Callable[[], _T]) -> Callable[[], _T]:
    """Return what runs our command on the peer's tree."""

    def run() -> _T:
        with peer_in_place():
            return ours()

    return run


def _list(bench: Bench, runner: Runner, mount_path: _MountPath) -> None:
    """Measure what is the same at each start."""
    trace = bench.folder / "trace"

    def traced() -> list[str]:
        return mount_path.traced([_FUSERMOUNT3], trace)

    def faults() -> float:
        return float(mount_path.run([_FUSERMOUNT3]).faults)

    traces = {BARE: _trace(_BARE, {}, trace), OURS: traced()}
    subjects: dict[str, Measure] = {BARE: lambda: float(runner.run(_BARE).faults), OURS: faults}
    if bench.peer is not None:
        traces[bench.peer.name] = _of_peer(traced)()
        subjects[bench.peer.name] = _of_peer(faults)
    bench.results.add("calls", {name: [float(len(lines))] for name, lines in traces.items()})
    opened = {name: _opened(lines) for name, lines in traces.items()}
    bench.results.add("files", {name: [float(len(paths))] for name, paths in opened.items()})
    bench.results.add_detail("files opened on the mount path", opened[OURS])
    counted = Counter(line.partition("(")[0] for line in traces[OURS])
    bench.results.add_detail("system calls on the mount path", [f"{name} {number}" for name, number in counted.most_common()])

    modules = {BARE: _modules(""), OURS: _modules("import fusermount3_proxy.fusermount3")}
    bench.results.add("modules", {name: [float(len(names))] for name, names in modules.items()})
    what = "modules imported on the mount path, besides those of the bare interpreter"
    bench.results.add_detail(what, sorted(modules[OURS] - modules[BARE]))
    bench.results.add("faults", in_turns(10, subjects))


def _modules(code: str) -> set[str]:
    # From source: packaging/ freezes the modules that this finds.
    script = f"import sys; sys.path.insert(0, {str(_ROOT)!r}); {code}\nfor name in sys.modules: print(name)"
    done = subprocess.run([INTERPRETER, "-I", "-S", "-B", "-X", "utf8", "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def _trace(command: Sequence[str], environment: dict[str, str], trace: Path, fds: Sequence[int] = ()) -> list[str]:
    strace = shutil.which("strace")
    if strace is None:
        raise BenchError("strace is missing; type: apt-get install strace")
    done = subprocess.run([strace, "-f", "-qq", "-o", trace, *command], env=environment, pass_fds=fds, capture_output=True, text=True)
    if done.returncode != 0:
        raise BenchError(f"strace {command[0]}: {done.stderr.strip()}")
    lines = [line.partition(" ")[2].strip() for line in trace.read_text(errors="replace").splitlines()]
    return [line for line in lines if re.match(r"\w+\(", line)]


def _opened(lines: list[str]) -> list[str]:
    found = (re.match(r'open(?:at)?\((?:AT_FDCWD, )?"([^"]+)".* = \d+', line) for line in lines)
    return [match[1] for match in found if match]


@contextmanager
def _busy(count: int) -> Iterator[None]:
    """Run processes that do nothing but compute, as long as the block runs."""
    processes = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextmanager
def _answering(folder: Path) -> Iterator[StandIn]:
    """Serve a driver's two sockets, at which every request is answered with an fd."""
    path = folder / "answers.sock"
    fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)

    def v1(connection: socket.socket) -> None:
        connection.recv(65536)
        answer(connection, _ANSWER, fd)

    def original(connection: socket.socket) -> None:
        answer(connection, _ANSWER, fd)

    try:
        with StandIn(path, v1, original) as driver:
            yield driver
    finally:
        os.close(fd)
