"""Many volumes at once: their FUSE programs in one container, and applications that cost a process each."""

import itertools
import os
import subprocess
from pathlib import Path

from harness import mounts
from harness.container import Background, Bind, Container
from harness.events import wait_until
from harness.kubelet import Published
from harness.mounts import Mount
from harness.pod import VARIABLE, Node, tree
from harness.programs import SOURCES

_PODS = "/pods"


class Fleet:
    """A container that sees the pods folder as it changes: sockets, targets, and what is mounted there."""

    def __init__(self, node: Node) -> None:
        self._pods_dir = node.driver.pods_dir
        binds = [Bind(self._pods_dir, _PODS, "rslave"), Bind(SOURCES, "/programs", read_only=True), *tree()]
        self.container: Container = node.engine.start(binds)
        self.container.check("touch /dev/fuse")
        self._engine = node.engine
        self._pid = self.container.pid

    def inside(self, path: Path) -> str:
        """A path of the pods folder, in the container."""
        return f"{_PODS}/{path.relative_to(self._pods_dir)}"

    def seen(self, volume: Published) -> Path:
        """The volume's target, as the container sees it."""
        return Path(f"/proc/{self._pid}/root{self.inside(volume.target)}")

    def mounts(self, volume: Published) -> list[Mount]:
        """What the container sees mounted at the target, topmost last."""
        return mounts.stack(self.inside(volume.target), mounts.table(self._pid))

    def start(self, volume: Published, how: str, text: str, program: str = "odd_program.py") -> Background:
        """A program of tests/system/programs, at the volume's target."""
        socket = f"{VARIABLE}={self.inside(volume.socket)}"
        return self.container.start(f"{socket} python3 /programs/{program} {how} {self.inside(volume.target)} {text}")

    def unmount(self, volume: Published, *options: str) -> Background:
        """fusermount3 -u."""
        socket = f"{VARIABLE}={self.inside(volume.socket)}"
        return self.container.start(f"{socket} fusermount3 -u {' '.join(options)} {self.inside(volume.target)}")

    def close(self) -> None:
        self._engine.stop([self.container])


class Application:
    """A process with a mount namespace of its own that has bound a volume as a container does, and shows what is there.

    One that starts while a FUSE file system is mounted has bound that one, and not what lies beneath it.
    """

    _numbers = itertools.count()

    def __init__(self, volume: Published) -> None:
        script = 'mount --rbind "$0" /mnt && echo ready && exec sleep 100000'
        command = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script, volume.target]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self._process.stdout is not None and self._process.stderr is not None
        if self._process.stdout.readline() != "ready\n":
            raise AssertionError(f"an application cannot bind {volume.target}: {self._process.stderr.read()}")
        self.seen = Path(f"/proc/{self._process.pid}/root/mnt")

    @property
    def mounts(self) -> list[Mount]:
        """What it sees mounted, topmost last."""
        return mounts.stack("/mnt", mounts.table(self._process.pid))

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def text_at(seen: Path) -> str:
    """What an application reads; "" where it reads nothing. Only where a program that is not stopped serves, or none."""
    try:
        return (seen / "hello").read_text().strip()
    except OSError:
        return ""


def shows(seen: Path, text: str) -> None:
    """Wait until an application reads `text`; "" is the placeholder."""
    wait_until(f"{seen} shows {text!r}", lambda: text_at(seen) == text if text else _is_empty(seen))


def _is_empty(seen: Path) -> bool:
    try:
        return os.listdir(seen) == []
    except OSError:
        return False
