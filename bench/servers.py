"""Starts drivers, each in a mount namespace of its own, and the processes that call them."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

from harness import driver, mounts
from harness.events import wait_until
from harness.kubelet import EMPTY_DIR, SOCKET

from bench import cpu
from bench.place import PODS, Bench, BenchError
from bench.rows import GO, GRPC, OURS

_ROOT = Path(__file__).resolve().parent.parent
_START = 20.0  # seconds
_IN_OWN_NAMESPACE = 'mount --make-private "$1" && mount --make-shared "$1" && shift && exec "$@"'


class Server:
    """Runs a driver, or what stands for one, at a CSI socket."""

    def __init__(self, name: str, folder: Path, command: Sequence[str], is_alone: bool = True) -> None:
        """With `is_alone` nobody else sees its mounts; otherwise it runs in the benchmark's own mount namespace."""
        self.name = name
        self.folder = folder
        self.socket = folder / "csi.sock"
        self._log = folder / "log"
        self._command = list(command)
        if is_alone:
            # The pods folder becomes a peer group of its own, so that no mount has a copy elsewhere.
            enter = ["unshare", "--mount", "--propagation", "unchanged", "sh", "-c", _IN_OWN_NAMESPACE, "sh", str(PODS)]
            self._command = [*enter, *self._command]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; wait_until_serving() waits until it serves."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, cwd=_ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait_until_serving(self) -> None:
        wait_until(f"{self.name} serves {self.socket}", self._is_serving, _START)

    def _is_serving(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise BenchError(f"{self.name} ended with {self._process.returncode}: {self._log.read_text().strip()}")
        return self.socket.exists()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(_START)
            self._process = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def cpu(self) -> float:
        """The seconds of CPU so far, those of threads that have ended included."""
        return cpu.of_process(self.pid)

    @property
    def memory(self) -> float:
        """The resident bytes."""
        return self._status("VmRSS") * 1024

    @property
    def threads(self) -> float:
        return self._status("Threads")

    def _status(self, name: str) -> float:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name}:"))

    @property
    def fds(self) -> float:
        return float(len(os.listdir(f"/proc/{self.pid}/fd")))

    def mounts(self, target: Path) -> list[mounts.Mount]:
        """Return what is mounted at a target, in its namespace."""
        return mounts.stack(target, mounts.table(self.pid))


class Callers:
    """Runs processes that call a server, each for its own pods, all at the same time."""

    def __init__(self, server: Server, processes: int, pods: int) -> None:
        self.server = server
        self.pods = pods
        each = [pods // processes + (number < pods % processes) for number in range(processes)]
        self._processes: list[subprocess.Popen[str]] = []
        try:
            for count in each:
                self._processes.append(_caller(server.socket, count))
            for process in self._processes:
                _expect(process, "ready")
            self.pids = [process.pid for process in self._processes]
            self.targets = [Path(target) for process in self._processes for target in _lines(process)]
        except BaseException:
            # A caller that outlived the bench's tmpfs would make its pods in the node's own folder.
            self._kill()
            raise

    def __enter__(self) -> "Callers":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._kill()

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait(_START)

    def call(self, method: str) -> float:
        """Let them call `method` (publish, unpublish) for all pods, and return the seconds that it took."""
        began = time.perf_counter()
        self.start(method)
        self.wait()
        return time.perf_counter() - began

    def start(self, method: str) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{method}\n")
            process.stdin.flush()

    def wait(self) -> None:
        for process in self._processes:
            _expect(process, "done")

    @contextmanager
    def cycling(self) -> Iterator[None]:
        """Publish and unpublish again and again during the block."""
        self.start("cycle")
        try:
            yield
        finally:
            self.start("unpublish")
            self.wait()
            self.wait()


def socket_of(target: Path) -> str:
    """Return the original socket of the volume at a target, as Kubelet.request() names it."""
    return str(target.parents[2] / "kubernetes.io~empty-dir" / EMPTY_DIR / SOCKET)


@contextmanager
def serving(*servers: Server) -> Iterator[None]:
    """Let servers run during the block."""
    with ExitStack() as stack:
        for server in servers:
            stack.callback(server.kill)
            server.start()
        for server in servers:
            server.wait_until_serving()
        yield


def drivers(bench: Bench, is_alone: bool = True) -> dict[str, Server]:
    """Return our driver, and the peer's where there is one, by their names in the table."""
    return {name: driver_of(bench, name, is_alone) for name in (OURS, *([bench.peer.name] if bench.peer else []))}


def driver_of(bench: Bench, name: str, is_alone: bool = True, options: Sequence[str] = ()) -> Server:
    """Return the peer's driver for its name, and ours for any other; its records and sockets are on the bench's tmpfs."""
    folder = _folder(bench, name)
    command = [str(bench.peer.driver)] if bench.peer and name == bench.peer.name else driver.command()
    command += ["--endpoint", f"unix:{folder}/csi.sock", "--nodeid", "bench", "--v", "5"]
    if name != GO:  # the Go plugin does not have these options
        command += ["--run-dir", f"{folder}/run", "--admin-socket", f"{folder}/admin.sock"]
    return Server(name, folder, [*command, *options], is_alone)


def grpcio(bench: Bench) -> Server:
    """Return the server that does nothing."""
    folder = _folder(bench, GRPC)
    return Server(GRPC, folder, [sys.executable, "-B", "-m", "bench.bare_server", f"unix:{folder}/csi.sock"])


def _folder(bench: Bench, name: str) -> Path:
    number = len(list(bench.folder.glob("server-*")))
    folder = bench.folder / f"server-{number}-{name}"
    folder.mkdir(mode=0o755)
    return folder


def _caller(socket: Path, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-B", "-m", "bench.caller", str(socket), str(PODS), str(count)]
    return subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _expect(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if line != word:
        raise BenchError(f"a process that calls the driver answered {line!r} and not {word!r}; see its errors above")


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    while (line := process.stdout.readline().strip()) not in ("end", ""):
        yield line
