"""Run many volumes at once: all FUSE programs in one container, and each application as a mere process."""

import itertools
import os
import subprocess
from pathlib import Path

from harness import mounts
from harness.container import Background, Bind, Container
from harness.events import wait_until
from harness.kubelet import Published
from harness.mounts import Mount
from harness.pod import TEST_PROGRAMS, VARIABLE, Node, tree

_PODS = "/pods"


class Fleet:
    """Represents a container that sees the pods folder as it changes: the sockets, the targets, and what is mounted there."""

    def __init__(self, node: Node) -> None:
        self._pods_dir = node.driver.pods_dir
        binds = [Bind(self._pods_dir, _PODS, "rslave"), TEST_PROGRAMS, *tree()]
        self.container: Container = node.engine.start(binds)
        self.container.check("touch /dev/fuse")
        self._engine = node.engine
        self._pid = self.container.pid

    def inside(self, path: Path) -> str:
        """Return a path of the pods folder as it is in the container."""
        return f"{_PODS}/{path.relative_to(self._pods_dir)}"

    def seen(self, volume: Published) -> Path:
        """Return the volume's target as it is in the container."""
        return Path(f"/proc/{self._pid}/root{self.inside(volume.target)}")

    def all_mounts(self) -> list[Mount]:
        """Return what the container sees mounted in the pods folder."""
        return [mount for mount in mounts.table(self._pid) if mount.path.startswith(f"{_PODS}/")]

    def start(self, volume: Published, how: str, text: str, program: str = "odd_program.py", at: str = "") -> Background:
        """Start a program of tests/system/programs, which mounts at the volume's target or at `at`."""
        socket = f"{VARIABLE}={self.inside(volume.socket)}"
        return self.container.start(f"{socket} python3 /programs/{program} {how} {at or self.inside(volume.target)} {text}")

    def unmount(self, volume: Published, *options: str) -> Background:
        """Start `fusermount3 -u` for the volume."""
        socket = f"{VARIABLE}={self.inside(volume.socket)}"
        return self.container.start(f"{socket} fusermount3 -u {' '.join(options)} {self.inside(volume.target)}")

    def close(self) -> None:
        self._engine.stop([self.container])


class Application:
    """Represents a process with a mount namespace of its own that has bound a volume as a container does, and shows what is there.

    One that starts while a FUSE file system is mounted has bound that file system, and not the placeholder beneath.
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

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def text_at(seen: Path) -> str:
    """Return what an application reads, "" where it reads nothing. The FUSE program, if any, must not be stopped."""
    try:
        return (seen / "hello").read_text().strip()
    except OSError:
        return ""


def shows(seen: Path, text: str) -> None:
    """Wait until an application reads `text`; "" stands for the placeholder."""
    wait_until(f"{seen} shows {text!r}", lambda: text_at(seen) == text if text else _is_empty(seen))


def _is_empty(seen: Path) -> bool:
    try:
        return os.listdir(seen) == []
    except OSError:
        return False
