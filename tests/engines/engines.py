"""Run containers by each engine, with each runtime. An engine has its storage, and its daemons if it has any, below one folder."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness.container import limits
from harness.events import wait_until

os.environ["PATH"] += ":/usr/sbin:/sbin"  # where the daemons are
_TIMEOUT = 60.0  # seconds
_WAIT = ("sleep", "600")


class Refused(Exception):
    """Reports that an engine's command failed. The text is what the engine says."""


def call(*command: str | Path, cwd: Path | None = None) -> str:
    """Return what a command prints. Raises Refused if it fails."""
    # A file takes the output, because a process that an engine leaves running would keep a pipe open.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=cwd, timeout=_TIMEOUT)
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().strip())
    if done.returncode != 0:
        raise Refused(said[1] or said[0] or f"{command[0]} ended with {done.returncode}")
    return said[0]


@contextmanager
def _daemon(log: Path, socket: Path, *command: str | Path) -> Iterator[None]:
    """Run a daemon until the block ends. Raises Refused if it ends before its socket is there."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        wait_until(f"{command[0]} listens", lambda: socket.exists() or process.poll() is not None, _TIMEOUT)
        if process.poll() is not None:
            raise Refused(log.read_text().splitlines()[-1])
        yield
    finally:
        process.terminate()
        process.wait(_TIMEOUT)


class Commands:
    """Runs containers by a command line such as Docker's."""

    def __init__(self, *command: str | Path, options: Sequence[str | Path] = (), image: Sequence[str | Path]) -> None:
        self.command = command
        self._options = options
        self._image = image

    def start(self, name: str, volumes: Sequence[str], more: Sequence[str] = ()) -> None:
        """Start a container with options -v and others, which waits until it is removed."""
        options = [*self._options, *(word for volume in volumes for word in ("-v", volume)), *more]
        call(*self.command, "run", "--detach", "--name", name, "--network", "none", "--stop-signal", "KILL", *options, *self._image, *_WAIT)

    def run(self, name: str, command: str) -> None:
        """Run a shell command in a container. Raises Refused if it fails. What it prints is not used: nerdctl may lose that."""
        call(*self.command, "exec", name, "sh", "-c", command)

    def remove(self, name: str) -> None:
        """Remove a container, whatever runs in it."""
        call(*self.command, "rm", "--force", name)


class Ctr:
    """Runs containers by ctr."""

    def __init__(self, address: Path, runtime: str, root: Path) -> None:
        self._command = ["ctr", "--address", str(address), "--namespace", "mfcp-test"]
        self._runtime = runtime
        self._root = root

    def start(self, name: str, volumes: Sequence[str]) -> None:
        """Start a container, with mounts in ctr's own form."""
        mounts = [
            f"--mount=type=bind,src={source},dst={target},options={options.replace(',', ':')}"
            for source, target, options in _split(volumes)
        ]
        options = ["--detach", "--null-io", "--runc-binary", self._runtime, "--env", "PATH=/usr/bin:/bin", *mounts]
        call(*self._command, "run", *options, "--rootfs", self._root, name, *_WAIT)

    def run(self, name: str, command: str) -> None:
        """Run a shell command in a container. Raises Refused if it fails. What it prints is not used: nerdctl may lose that."""
        call(*self._command, "task", "exec", "--exec-id", os.urandom(4).hex(), name, "sh", "-c", command)

    def remove(self, name: str) -> None:
        """Remove a container, whatever runs in it."""
        call(*self._command, "task", "rm", "--force", name)
        call(*self._command, "container", "rm", name)


class Bare:
    """Runs containers by a runtime alone."""

    def __init__(self, runtime: str, folder: Path, root: Path) -> None:
        self._command = [runtime, "--root", str(folder / "state")]
        self._folder = folder
        self._root = root

    def start(self, name: str, volumes: Sequence[str]) -> None:
        """Start a container from the runtime's own example of a configuration, with the mounts added."""
        bundle = self._folder / name
        bundle.mkdir(parents=True)
        call(*self._command, "spec", cwd=bundle)
        file = bundle / "config.json"
        config = json.loads(file.read_text())
        config["root"] = {"path": str(self._root)}
        config["linux"]["rootfsPropagation"] = "rslave"  # crun's default is rprivate, with which no option of a mount lets later mounts in
        config["process"] |= {"terminal": False, "args": _WAIT}
        config["mounts"] += [
            {"type": "bind", "source": source, "destination": target, "options": options.split(",")}
            for source, target, options in _split(volumes)
        ]
        file.write_text(json.dumps(config))
        call(*self._command, "run", "--detach", "--bundle", bundle, name)

    def run(self, name: str, command: str) -> None:
        """Run a shell command in a container. Raises Refused if it fails. What it prints is not used: nerdctl may lose that."""
        call(*self._command, "exec", name, "sh", "-c", command)

    def remove(self, name: str) -> None:
        """Remove a container, whatever runs in it."""
        call(*self._command, "delete", "--force", name)


Containers = Commands | Ctr | Bare


def _split(volumes: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield source, target and mount options of what -v takes."""
    for volume in volumes:
        source, target, *propagation = volume.split(":")
        yield source, target, ",".join(["rbind", *(propagation or ["rprivate"])])


@contextmanager
def podman(folder: Path, root: Path, runtime: str) -> Iterator[Commands]:
    """Yield podman."""
    places = ["--root", folder / "storage", "--runroot", folder / "run", "--events-backend", "none", "--cgroup-manager", "cgroupfs"]
    image = ["--rootfs", f"{root}:O"]
    yield Commands("podman", "--log-level", "error", *places, "--runtime", runtime, options=[*limits(), "--pids-limit", "0"], image=image)


@contextmanager
def docker(folder: Path, root: Path, runtime: str) -> Iterator[Containers]:
    """Yield docker, and run a dockerd meanwhile that leaves the machine's network as it is."""
    settings, socket = folder / "daemon.json", folder / "docker.sock"
    runtimes = {runtime: {"path": shutil.which(runtime)}} if runtime != "runc" else {}  # Docker knows runc, and lets nobody define it
    settings.write_text(json.dumps({"bridge": "none", "iptables": False, "runtimes": runtimes, "features": {"cdi": True}}))
    places = ["--data-root", folder / "data", "--exec-root", folder / "exec", "--pidfile", folder / "docker.pid"]
    with _daemon(folder / "log", socket, "dockerd", "--config-file", settings, "--host", f"unix://{socket}", *places):
        command = ["docker", "--host", f"unix://{socket}"]
        call("tar", "--create", "--file", folder / "image.tar", "--directory", root, ".")
        call(*command, "import", folder / "image.tar", "mfcp-test")
        yield Commands(*command, options=["--runtime", runtime], image=["mfcp-test"])


@contextmanager
def _containerd(folder: Path) -> Iterator[Path]:
    """Run a containerd without the part for Kubernetes, and yield its socket."""
    settings, socket = folder / "config.toml", folder / "containerd.sock"
    settings.write_text(
        f'version = 2\nroot = "{folder}/root"\nstate = "{folder}/state"\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
        f'[grpc]\naddress = "{socket}"\n'
    )
    with _daemon(folder / "log", socket, "containerd", "--config", settings):
        yield socket


@contextmanager
def ctr(folder: Path, root: Path, runtime: str) -> Iterator[Containers]:
    """Yield ctr, and run a containerd meanwhile."""
    with _containerd(folder) as socket:
        yield Ctr(socket, runtime, root)


@contextmanager
def nerdctl(folder: Path, root: Path, runtime: str) -> Iterator[Containers]:
    """Yield nerdctl, and run a containerd meanwhile."""
    with _containerd(folder) as socket:
        command = ["nerdctl", "--address", socket, "--data-root", folder / "data", "--cgroup-manager", "cgroupfs"]
        yield Commands(*command, options=["--runtime", runtime], image=["--rootfs", root])


@contextmanager
def bare(folder: Path, root: Path, runtime: str) -> Iterator[Containers]:
    """Yield the runtime itself."""
    yield Bare(runtime, folder, root)


# Each engine with the programs that it needs besides a runtime. The first one's version is the engine's.
ENGINES = {
    "podman": (podman, ("podman",)),
    "docker": (docker, ("dockerd", "docker")),
    "ctr": (ctr, ("ctr", "containerd")),
    "nerdctl": (nerdctl, ("nerdctl", "containerd")),
    "the runtime alone": (bare, ()),
}
RUNTIMES = ("runc", "crun")
