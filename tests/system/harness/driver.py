"""Run the driver as a process."""

import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from driver.api.rpc import csi_pb2, csi_pb2_grpc
from harness.events import SLOWER, wait_until
from harness.programs import REPOSITORY, missing

VARIABLE = "MFCP_DRIVER"
NODE_ID = "test-node"

DEFAULT = REPOSITORY / "dist" / "meta-fuse-csi-plugin" / "meta-fuse-csi-plugin"
_START = 20.0  # seconds

# Parts of the names of the driver's files that differ from one driver process to the next.
_NUMBERS = re.compile(r"\b[0-9a-f]{16}\b|\d+")


def command() -> list[str]:
    """Return the command that starts the driver: the frozen one, or the one of MFCP_DRIVER ("source" is the source here)."""
    chosen = os.environ.get(VARIABLE, "")
    if chosen == "source":
        return [sys.executable, "-m", "driver.cli"]
    if chosen:
        return shlex.split(chosen)
    if not DEFAULT.exists():
        missing(f"{DEFAULT} is missing; run packaging/build (or set {VARIABLE}=source)")
    return [str(DEFAULT)]


class Driver:
    """Represents a driver with its folders below `folder`; it can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self.pods_dir = folder / "pods"
        self.run_dir = folder / "run"
        self.csi_socket = folder / "csi.sock"
        self.fuse_dir = folder / "fuse"
        self.admin_socket = folder / "admin.sock"
        self.options: tuple[str, ...] = ()  # further command line options
        self.wrapper: tuple[str, ...] = ()  # a command that starts the driver
        self._log = folder / "driver.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the driver, and wait until it answers."""
        self.begin()
        wait_until("the driver answers", self._answers, _START)

    def begin(self) -> None:
        """Start the driver without waiting."""
        self._log.touch()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *self.wrapper,
                    *command(),
                    *("--endpoint", f"unix:{self.csi_socket}", "--nodeid", NODE_ID, "--v", "5"),
                    *("--pods-dir", self.pods_dir, "--run-dir", self.run_dir, "--admin-socket", self.admin_socket),
                    # Without a folder of its own it would offer its fuse devices to the kubelet of this machine, if there is one.
                    *("--fuse-dir", self.fuse_dir, "--device-plugins-dir", self.run_dir / "no-kubelet"),
                    *self.options,
                ],
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop the driver, and return its exit code as subprocess reports it."""
        assert self._process is not None
        self._process.send_signal(number)
        return self.wait()

    def restart(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop the driver, and start the next one."""
        self.stop(number)
        self.start()

    def wait(self) -> int:
        """Wait for the driver's end. Returns its exit code, or that of the wrapper."""
        assert self._process is not None
        code = self._process.wait(_START * SLOWER)
        self._process = None
        return code

    def end(self) -> None:
        """Make sure that the driver does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_START * SLOWER)
            self._process = None

    @property
    def is_started(self) -> bool:
        """Return whether it was started and neither stopped nor waited for since then, dead or alive."""
        return self._process is not None

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop its process (SIGSTOP), and let it go on after the block."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    @property
    def log(self) -> str:
        """Return everything that it has logged, in all its starts together."""
        return self._log.read_text(errors="surrogateescape")

    @property
    def metrics_url(self) -> str:
        """Return the address of its page of metrics, where its options ask for one."""
        return re.findall(r"metrics are at (http://\S+)", self.log)[-1]

    def metrics(self) -> str:
        """Return its page of metrics."""
        with urllib.request.urlopen(self.metrics_url, timeout=10) as page:
            return str(page.read().decode())

    def fds(self) -> Counter[str]:
        """Count its open fds by what they are; sockets and the like are counted without their numbers."""
        assert self._process is not None
        folder = f"/proc/{self._process.pid}/fd"
        kinds: Counter[str] = Counter()
        for name in os.listdir(folder):
            try:
                kinds[_NUMBERS.sub("N", os.readlink(f"{folder}/{name}"))] += 1
            except FileNotFoundError:
                continue
        return kinds

    def has_fds_of_spares(self, spares: int) -> bool:
        """Return whether it has pidfds of its starters and of this many spare processes; it gets these a moment after they are there."""
        starters = len(self.own_processes()) - 1
        return sum(count for kind, count in self.fds().items() if "pidfd" in kind) >= starters + spares

    def state(self) -> frozenset[str]:
        """Return what lies in its own folder: device nodes, records, volumes without Kubernetes."""
        found = [os.path.join(path, name) for path, folders, files in os.walk(self.run_dir) for name in [*folders, *files]]
        return frozenset(_NUMBERS.sub("N", path) if "/private-" in path else path for path in found)

    def own_processes(self) -> set[int]:
        """Return the pids of the driver and of its starters."""
        return {self.pid, *(int(child) for children in self._of_threads("children") for child in children.split())}

    def starter(self) -> int:
        """Return the pid of the starter of the processes that ask FUSE programs; the one for containers' namespaces is forked before."""
        return max(self.own_processes() - {self.pid})

    def threads(self) -> int:
        """Count its threads without those of gRPC, which have names and come and go."""
        own = Path(f"/proc/{self.pid}/comm").read_text()
        return self._of_threads("comm").count(own)

    def watches(self) -> int:
        """Count the files that it watches with inotify."""
        watches = 0
        for fd in os.listdir(f"/proc/{self.pid}/fd"):
            try:
                watches += Path(f"/proc/{self.pid}/fdinfo/{fd}").read_text().count("inotify wd:")
            except FileNotFoundError:
                continue
        return watches

    def memory(self) -> int:
        """Return the bytes of its own memory, with those of its starters.

        Pages of files do not count. Pages that these processes share are counted twice from the beginning, because they are
        copied anyway when Python's garbage collector first visits them.
        """
        texts = [Path(f"/proc/{pid}/status").read_text() for pid in self.own_processes()]
        return sum(int(line.split()[1]) << 10 for text in texts for line in text.splitlines() if line.startswith("RssAnon:"))

    def children(self) -> list[str]:
        """Return the processes that were started for it and that have work."""
        return [child for child in self._started() if not self._is_spare(child)]

    def spares(self) -> set[int]:
        """Return the spare processes that wait for work or are just being started."""
        return {int(child) for child in self._started() if self._is_spare(child)}

    def _started(self) -> list[str]:
        started = [self._of_threads("children", pid) for pid in self.own_processes() - {self.pid}]
        return [child for threads in started for children in threads for child in children.split()]

    @staticmethod
    def _is_spare(child: str) -> bool:
        """Return whether it has nothing open that it works with: only its standard streams, its socket, and at first its pidfd.

        A process that hangs while it ends has no fds any more, and is no spare.
        """
        opened = []
        try:
            for fd in os.listdir(f"/proc/{child}/fd"):
                if int(fd) > 2:
                    opened.append(os.readlink(f"/proc/{child}/fd/{fd}"))
        except (FileNotFoundError, ProcessLookupError):
            return False
        return bool(opened) and all(what.startswith(("socket:", "pidfd:", "anon_inode:[pidfd]")) or what == os.devnull for what in opened)

    def waits_for_a_fuse_program(self) -> bool:
        """Return whether one of its processes waits for an answer from a FUSE program."""
        waits = [wait for child in self.children() for wait in self._of_threads("wchan", child)]
        return any("request_wait_answer" in wait for wait in waits)  # fs/fuse/dev.c

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of the commands that connect to the driver."""
        whole = [*command(), "--admin-socket", str(self.admin_socket), *arguments]
        return subprocess.run(whole, cwd=REPOSITORY, capture_output=True, text=True, timeout=_START * SLOWER)

    def _of_threads(self, name: str, pid: int | str | None = None) -> list[str]:
        """Return the content of one file of /proc/PID/task/TID for each thread of a process."""
        texts = []
        for task in Path(f"/proc/{pid or self.pid}/task").glob("*"):
            try:
                texts.append((task / name).read_text())
            except (FileNotFoundError, ProcessLookupError):
                continue
        return texts

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"the driver ended with {self._process.returncode}: {self.log}")
        if not self.csi_socket.exists():
            return False
        with grpc.insecure_channel(f"unix:{self.csi_socket}") as channel:
            try:
                return bool(csi_pb2_grpc.IdentityStub(channel).Probe(csi_pb2.ProbeRequest(), timeout=1).ready.value)
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                    raise AssertionError(f"the driver is not ready: {error.details()}") from None
                return False
