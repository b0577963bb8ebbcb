"""The pod's programs from start to exit, and what they do meanwhile, beside the bare interpreter."""

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

from harness import mounts
from harness.pod import SINGLE_FILE, VARIABLE
from standin_driver import StandIn, answer, receive

from bench.place import TREE_PLACE, Bench, BenchError
from bench.process import Run, Runner
from bench.rows import BARE, OURS, C
from bench.stats import in_turns

INTERPRETER = os.path.realpath(sys.executable)
_BARE = [INTERPRETER, "-I", "-S", "-c", "pass"]
_ANSWER = b'{"volumeName":"bench"}'
_ROOT = Path(__file__).resolve().parent.parent


class _MountPath:
    """Runs a helper as a FUSE library does, against a driver that answers at once."""

    def __init__(self, runner: Runner, socket_path: Path, mountpoint: Path) -> None:
        self._runner = runner
        self._ours, theirs = socket.socketpair()
        self._ours.settimeout(5)
        theirs.set_inheritable(True)
        self._theirs = theirs
        # A peer may be libfuse's own helper, which really mounts.
        mountpoint.mkdir()
        self._mountpoint = mountpoint
        self._socket_path = str(socket_path)
        self.environment = {VARIABLE: self._socket_path, "_FUSE_COMMFD": str(theirs.fileno())}

    def command(self, program: Sequence[str]) -> list[str]:
        return [*program, "-o", "rw,nosuid,nodev,subtype=bench", "--", str(self._mountpoint)]

    def run(self, program: Sequence[str]) -> Run:
        run = self._runner.run(self.command(program), self.environment)
        self.take()
        return run

    def take(self) -> None:
        """Take the fd that the helper has sent. Raises BenchError where it has not."""
        _, fds = receive(self._ours)
        for fd in fds:
            os.close(fd)
        mounts.unmount_all_below(self._mountpoint)
        if len(fds) != 1:
            raise BenchError(f"the helper sent {len(fds)} fds")

    def traced(self, program: Sequence[str], trace: Path) -> list[str]:
        """The system calls of one run, one a line."""
        lines = _trace(self.command(program), self.environment, trace, (self._theirs.fileno(),))
        self.take()
        return lines

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()


def measure(bench: Bench) -> None:
    """Fill in the rows of this group."""
    runner = Runner(f"{bench.folder}/errors")
    native = shutil.which("fusermount3")
    tree, starter, single = f"{TREE_PLACE}/fusermount3", f"{TREE_PLACE}/fuse-starter", str(SINGLE_FILE)
    rounds, few = bench.pick(25, 200), bench.pick(15, 60)

    def bare() -> float:
        return runner.run(_BARE).milliseconds

    def version(*program: str) -> Callable[[], float]:
        return lambda: runner.run([*program, "-V"]).milliseconds

    subjects: dict[str, Callable[[], float | Sequence[float]]] = {BARE: bare, OURS: version(tree)}
    if native:
        subjects[C] = version(native)
    if bench.peers.fusermount3:
        subjects[bench.peers.name] = version(*bench.peers.fusermount3)
    bench.results.add("start-version", in_turns(rounds, subjects))
    # A single file is unpacked to TMPDIR's default, which is on a tmpfs here as the rest.
    bench.results.add("single-version", in_turns(few, {BARE: bare, OURS: version(single)}))

    with _answering(bench.folder) as path:
        mount_path = _MountPath(runner, path, bench.folder / "mountpoint")

        def helper(*program: str) -> Callable[[], float]:
            return lambda: mount_path.run(program).milliseconds

        subjects = {BARE: bare, OURS: helper(tree)}
        if bench.peers.fusermount3:
            subjects[bench.peers.name] = helper(*bench.peers.fusermount3)
        bench.results.add("start-mount", in_turns(rounds, subjects))
        bench.results.add("single-mount", in_turns(few, {BARE: bare, OURS: helper(single)}))

        def starts(*program: str) -> Callable[[], float]:
            true = shutil.which("true") or "/bin/true"
            return lambda: runner.run([*program, "--fd-passing-socket-path", str(path), "--", true]).milliseconds

        subjects = {BARE: bare, OURS: starts(starter)}
        if bench.peers.starter:
            subjects[bench.peers.name] = starts(*bench.peers.starter)
        bench.results.add("start-starter", in_turns(rounds, subjects))

        helpers = {OURS: [tree]} | ({bench.peers.name: bench.peers.fusermount3} if bench.peers.fusermount3 else {})
        _list(bench, runner, mount_path, helpers)
        mount_path.close()


def _list(bench: Bench, runner: Runner, mount_path: _MountPath, helpers: dict[str, list[str]]) -> None:
    """What a start does, which is the same each time."""
    trace = bench.folder / "trace"
    traces = {BARE: _trace(_BARE, {}, trace)} | {name: mount_path.traced(program, trace) for name, program in helpers.items()}
    bench.results.add("calls", {name: [float(len(lines))] for name, lines in traces.items()})
    opened = {name: _opened(lines) for name, lines in traces.items()}
    bench.results.add("files", {name: [float(len(paths))] for name, paths in opened.items()})
    bench.results.tell("files opened on the mount path", opened[OURS])
    counted = Counter(line.partition("(")[0] for line in traces[OURS])
    bench.results.tell("system calls on the mount path", [f"{name} {number}" for name, number in counted.most_common()])

    modules = {BARE: _modules(""), OURS: _modules("import fusermount3_proxy.fusermount3")}
    bench.results.add("modules", {name: [float(len(names))] for name, names in modules.items()})
    bench.results.tell("modules imported on the mount path, besides those of the bare interpreter", sorted(modules[OURS] - modules[BARE]))

    subjects: dict[str, Callable[[], float | Sequence[float]]] = {BARE: lambda: float(runner.run(_BARE).faults)}
    for name, program in helpers.items():
        subjects[name] = lambda program=program: float(mount_path.run(program).faults)  # type: ignore[misc]
    bench.results.add("faults", in_turns(10, subjects))


def _modules(code: str) -> set[str]:
    # From source, since what is frozen has no -X importtime; packaging/ puts in what this finds.
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
def _answering(folder: Path) -> Iterator[Path]:
    """A driver's two sockets, at which every request is answered with an fd."""
    path = folder / "answers.sock"
    fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)

    def v1(connection: socket.socket) -> None:
        connection.recv(65536)
        answer(connection, _ANSWER, fd)

    def original(connection: socket.socket) -> None:
        answer(connection, _ANSWER, fd)

    try:
        with StandIn(path, v1, original):
            yield path
    finally:
        os.close(fd)
