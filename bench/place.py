"""Where everything is measured: a mount namespace of its own, with tmpfs for all that is written."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from harness import mounts
from harness.pod import TREE

from bench.table import Results

PODS = Path("/var/lib/kubelet/pods")  # the Go plugin knows no other
TREE_PLACE = Path("/opt/mfcp")


class BenchError(Exception):
    """It cannot be measured; the text is one line."""


@dataclass(frozen=True)
class Peers:
    """Another implementation's programs, each with its first arguments; empty where there is none."""

    name: str  # in the table
    driver: list[str]
    fusermount3: list[str]
    starter: list[str]


@dataclass(frozen=True)
class Bench:
    """One run."""

    folder: Path
    peers: Peers
    is_short: bool
    results: Results = field(default_factory=Results)

    def pick(self, short: int, full: int) -> int:
        """How many, of something."""
        return short if self.is_short else full


@contextmanager
def private_place() -> Iterator[Path]:
    """A folder on a tmpfs, the tree in its place, and a pods folder on a tmpfs, in a mount namespace of our own."""
    if not TREE.exists():
        raise BenchError(f"{TREE} is missing; run packaging/build")
    mounts.enter_private_namespace()
    # A path of a socket holds 107 bytes, so not wherever TMPDIR is.
    path = Path(tempfile.mkdtemp(prefix="mfcp-bench-", dir="/tmp"))
    made = [folder for folder in (PODS, *PODS.parents) if not folder.exists()]
    try:
        path.chmod(0o755)
        mounts.mount("-t", "tmpfs", "-o", "nosuid,nodev,mode=0755", "mfcp-bench", path)
        # Over the parent: the place itself need not exist on this machine, and TREE may be a link.
        tree = os.open(TREE, os.O_PATH)
        mounts.mount("-t", "tmpfs", "mfcp-bench", TREE_PLACE.parent)
        TREE_PLACE.mkdir()
        mounts.mount("--bind", f"/proc/{os.getpid()}/fd/{tree}", TREE_PLACE)
        os.close(tree)
        PODS.mkdir(parents=True, exist_ok=True)
        mounts.mount("-t", "tmpfs", "-o", "mode=0755", "mfcp-bench", PODS)
        mounts.mount("--make-shared", PODS)
        yield path
    finally:
        for place in (path, PODS, TREE_PLACE.parent):
            mounts.unmount_all_below(place)
        shutil.rmtree(path)
        for folder in made:
            folder.rmdir()
