"""Run containers by podman, with the engine's default capabilities and seccomp profile."""

import itertools
import os
import queue
import secrets
import shlex
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from harness.events import SLOWER, wait_until
from harness.programs import path_of, runtime

_CAP_SYS_RESOURCE = 24  # capabilities(7)
_LOW_LIMIT = 4096
_START = 30.0  # seconds

os.environ["PODMAN_IGNORE_CGROUPSV1_WARNING"] = "1"  # Podman 5 would write it to each container's standard error
LOG_FOLDER = "/harness"  # in every container: background programs write their output here


@dataclass(frozen=True)
class Bind:
    """Represents a path of the node in a container; `propagation` as in mount(8)."""

    source: Path
    target: str
    propagation: str = "rprivate"
    read_only: bool = False

    @property
    def argument(self) -> str:
        return f"--volume={self.source}:{self.target}:{self.propagation}{',ro' if self.read_only else ''}"


@dataclass(frozen=True)
class Result:
    """Holds what a command in a container printed, and its exit code."""

    code: int
    out: str
    err: str


class Engine:
    """Runs podman with a storage of its own, so that the machine's other containers do not matter."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._podman = [path_of("podman"), "--root", f"{folder}/storage", "--runroot", f"{folder}/run", "--events-backend", "none"]
        # Podman prefers crun, which refuses to work where cgroups are hybrid.
        self._podman += ["--runtime", runtime()]
        self.limits = limits()
        # Under AppArmor's profile for containers libfuse's own attempt to mount fails with EACCES, and libfuse then asks no helper.
        self.security = ["--security-opt=apparmor=unconfined"]
        # The first call makes the storage. Two first calls at once would both try to make it.
        self.call("ps")
        self._running: list[Container] = []

    def start(
        self,
        binds: Sequence[Bind] = (),
        options: Sequence[str] = (),
        command: Sequence[str] = (),
        rootfs: Path | str = "/",
        network: "Container | None" = None,
        environment: dict[str, str] | None = None,
    ) -> "Container":
        """Start a container on an overlay of `rootfs`. Returns at once; the first use of the container waits until it runs.

        Without a `command`, a shell runs and waits for the commands of Container.run(). Containers of one pod share the `network`.
        """
        name = f"mfcp-test-{secrets.token_hex(6)}"
        logs = self._folder / "logs" / name
        logs.mkdir(parents=True)
        logs.chmod(0o777)
        if network is not None:
            network.wait_until_running()
        if command:
            self.settle()
        binds = [*binds, Bind(logs, LOG_FOLDER)]
        process = subprocess.Popen(
            [
                *self._podman,
                *("run", "--interactive", "--rm", "--name", name, "--log-driver", "none", "--hostname", "test"),
                *("--network", f"container:{network.name}" if network else "none"),
                *self.limits,
                *self.security,
                *(bind.argument for bind in binds),
                *(f"--env={key}={value}" for key, value in (environment or {}).items()),
                *options,
                *("--rootfs", f"{rootfs}:O"),
                *(command or ("/bin/sh",)),
            ],
            cwd=self._folder,  # conmon writes a file `oom` to its working directory when the kernel kills the container for want of memory
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        container = Container(self, name, process, logs, has_shell=not command, is_guest=network is not None)
        self._running.append(container)
        return container

    def settle(self) -> None:
        """Wait until every container with a shell runs.

        Call it before any program is started: a container that was started before a mount must neither bind that mount nor
        the dead mount that remains when its program has died.
        """
        for container in self._running:
            if container.has_shell:
                container.wait_until_running()

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a podman command."""
        return subprocess.run([*self._podman, *arguments], capture_output=True, text=True, timeout=_START * SLOWER)

    def owns(self, path: str) -> bool:
        """Return whether podman itself has mounted `path`, for its storage as a whole."""
        return path == f"{self._folder}/storage/overlay"

    def stop(self, containers: Sequence["Container"]) -> None:
        """End containers, and wait until nothing of them is left."""
        guests = [container for container in containers if container.is_guest]
        # podman waits 20 s for a container whose network other containers still use.
        for group in (guests, [container for container in containers if not container.is_guest]):
            for container in group:
                container.end()
            for container in group:
                container.wait()
                self._running.remove(container)

    def close(self) -> None:
        """Remove everything that is left."""
        self.stop(list(self._running))
        self.call("rm", "--all", "--force", "--time", "0")


class Container:
    """Represents one container. Commands run in its shell; the shell and the commands end with the container."""

    def __init__(self, engine: Engine, name: str, process: subprocess.Popen[bytes], logs: Path, has_shell: bool, is_guest: bool) -> None:
        self.name = name
        self.logs = logs
        self.is_guest = is_guest
        self._engine = engine
        self._process = process
        self.has_shell = has_shell
        self._is_ready = False
        self._numbers = itertools.count(1)
        self._out, self._err = _Lines(process.stdout), _Lines(process.stderr)

    def run(self, command: str, timeout: float = 20.0) -> Result:
        """Run a shell command in the container and wait for it."""
        assert self.has_shell and self._process.stdin is not None
        mark = f"end-{secrets.token_hex(8)}"
        # A subshell keeps an exit, and a read of standard input, away from the shell that serves the tests.
        script = f"(\n{command}\n) </dev/null; printf '\\n{mark} %d\\n' $?; printf '\\n{mark}\\n' >&2\n"
        try:
            self._process.stdin.write(script.encode(errors="surrogateescape"))
            self._process.stdin.flush()
        except BrokenPipeError:
            raise AssertionError(f"the container has ended: {self._err.rest()}") from None
        try:
            out, last = self._out.until(mark, timeout, command)
            err, _ = self._err.until(mark, timeout, command)
        except EOFError:
            raise AssertionError(f"the container ended during {command!r}: {self._out.rest()}{self._err.rest()}") from None
        return Result(int(last.split()[1]), out, err)

    def check(self, command: str, timeout: float = 20.0) -> str:
        """Return the output of a command that must succeed."""
        result = self.run(command, timeout)
        assert result.code == 0, f"{command} ended with {result.code}: {result.out}{result.err}"
        return result.out

    def wait_for(self, command: str) -> None:
        """Wait until a command succeeds."""
        wait_until(f"{command} succeeds", lambda: self.run(command).code == 0)

    def line(self) -> str:
        """Return the next line of standard output of the first process, where that is not the tests' own shell."""
        return self._out.line()

    def error_line(self) -> str:
        """Return the next line of standard error of the first process, where that is not the tests' own shell."""
        return self._err.line()

    def start(self, command: str) -> "Background":
        """Start a program in the background. `command` is one program with its arguments; variable assignments may precede it."""
        self._engine.settle()
        number = next(self._numbers)
        file = f"{LOG_FOLDER}/{number}"
        # The shell starts background jobs with these two signals ignored, and programs of libfuse leave them ignored.
        inner = f"echo $$ >{file}.pid; exec env --default-signal=INT,QUIT {command}"
        self.check(f"{{ sh -c {shlex.quote(inner)}; echo $? >{file}.tmp; mv {file}.tmp {file}.exit; }} >{file}.out 2>{file}.err &")
        return Background(self, self.logs / str(number), command)

    def wait_until_running(self) -> None:
        """Wait until the first process runs."""
        if self._is_ready:
            return
        if self.has_shell:
            self.check("true", _START)
        else:
            wait_until(f"{self.name} runs", lambda: self.pid or self._process.poll() is not None, _START)
        self._is_ready = True

    @property
    def pid(self) -> int:
        """Return the pid of the first process as the node sees it; 0 where it does not run."""
        done = self._engine.call("inspect", "--format", "{{.State.Pid}}", self.name)
        return int(done.stdout) if done.returncode == 0 else 0

    def kill(self, signal: str) -> None:
        """Send a signal to the first process."""
        done = self._engine.call("kill", "--signal", signal, self.name)
        assert done.returncode == 0, done.stderr

    def exec(self, command: str, user: str = "0") -> Result:
        """Run a shell command in the container by the engine, beside its first process."""
        done = self._engine.call("exec", "--user", user, self.name, "/bin/sh", "-c", command)
        return Result(done.returncode, done.stdout, done.stderr)

    def remove(self) -> None:
        """Have the engine remove the container, whatever runs in it."""
        done = self._engine.call("rm", "--force", "--time", "0", self.name)
        assert done.returncode == 0, done.stderr

    def wait(self, timeout: float = _START) -> Result:
        """Wait for the container's end. Returns the exit code and the output of its first process."""
        try:
            code = self._process.wait(timeout * SLOWER)
        except subprocess.TimeoutExpired:
            self._engine.call("rm", "--force", "--time", "0", self.name)
            code = self._process.wait(timeout * SLOWER)
        return Result(code, self._out.rest(), self._err.rest())

    def end(self) -> None:
        """Make the container end: the shell ends with its input, and everything in the container ends with the shell."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        if not self.has_shell and self._process.poll() is None:
            self._engine.call("kill", "--signal", "KILL", self.name)


class Background:
    """Represents a program that runs in a container."""

    def __init__(self, container: Container, files: Path, command: str) -> None:
        self._container = container
        self._files = files
        self.command = command

    @property
    def pid(self) -> int:
        """Return its pid in the container."""
        return int(wait_until(f"{self.command} has started", lambda: _text(self._files, "pid").strip()))

    @property
    def out(self) -> str:
        return _text(self._files, "out")

    @property
    def err(self) -> str:
        return _text(self._files, "err")

    @property
    def is_running(self) -> bool:
        return not _text(self._files, "exit")

    def wait_until_it_says(self, text: str) -> None:
        """Wait until `text` is in its output. Raises AssertionError where it ends without that."""

        def says() -> bool:
            is_running = self.is_running  # asked first: one that has ended has said everything
            if text in self.out:
                return True
            assert is_running, f"{self.command} has ended without saying {text!r}: {self.out}{self.err}"
            return False

        wait_until(f"{self.command} says {text!r}", says)

    def kill(self, signal: str = "KILL") -> None:
        self._container.check(f"kill -{signal} {self.pid}")

    def wait(self, timeout: float = 15.0) -> int:
        """Return its exit code; 128 plus the signal's number where a signal ended it."""
        try:
            return int(wait_until(f"{self.command} ends", lambda: _text(self._files, "exit"), timeout))
        except AssertionError as error:
            raise AssertionError(f"{error}; it printed: {self.out}{self.err}") from None


class _Lines:
    """Reads the lines that come out of a pipe in a thread, so that neither side ever waits for the other."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._queue: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, args=(pipe,), daemon=True).start()

    def until(self, mark: str, timeout: float, command: str) -> tuple[str, str]:
        """Return what came before the line that begins with `mark`, without the newline that was added to it; and that line.

        Raises EOFError where the pipe ends first.
        """
        lines = []
        while True:
            try:
                line = self._queue.get(timeout=timeout * SLOWER)
            except queue.Empty:
                raise AssertionError(f"no end of {command!r} within {timeout * SLOWER:g} s; so far: {''.join(lines)}") from None
            if line is None:
                self._queue.put(None)
                raise EOFError
            if line.startswith(mark):
                return "".join(lines).removesuffix("\n"), line
            lines.append(line)

    def line(self) -> str:
        """Return the next line."""
        line = self._queue.get(timeout=_START * SLOWER)
        assert line is not None, "the pipe has ended"
        return line.strip()

    def rest(self) -> str:
        """Return everything up to the end of the pipe."""
        lines = []
        while (line := self._queue.get(timeout=_START * SLOWER)) is not None:
            lines.append(line)
        self._queue.put(None)
        return "".join(lines).strip()

    def _read(self, pipe: IO[bytes]) -> None:
        for line in pipe:
            self._queue.put(line.decode(errors="surrogateescape"))
        self._queue.put(None)


def _text(files: Path, kind: str) -> str:
    try:
        return files.with_suffix(f".{kind}").read_text(errors="surrogateescape")
    except FileNotFoundError:
        return ""


def limits() -> list[str]:
    """Return lower limits where podman may not raise the two that it raises for each container."""
    effective = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff:"))
    if int(effective.split()[1], 16) >> _CAP_SYS_RESOURCE & 1:
        return []
    return [f"--ulimit={name}={_LOW_LIMIT}:{_LOW_LIMIT}" for name in ("nofile", "nproc")]
