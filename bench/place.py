"""Makes the place where everything is measured: a mount namespace of its own, with tmpfs for all that is written."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from harness import mounts
from harness.pod import TREE

from bench.rows import GO
from bench.table import Results

PODS = Path("/var/lib/kubelet/pods")  # the Go plugin knows no other
TREE_PLACE = Path("/opt/mfcp")
_PEER_TREE = TREE_PLACE.with_name("mfcp-peer")
_OUR_TREE = TREE_PLACE.with_name("mfcp-ours")  # while the peer's is in its place


class BenchError(Exception):
    """Says in one line why something cannot be measured."""


@dataclass(frozen=True)
class Peer:
    """Names another build that is measured beside ours, and the folder with what its packaging/build made."""

    name: str  # in the table
    dist: Path

    @property
    def can_unmount(self) -> bool:
        """Return whether a container can mount again after its program has ended. With the Go plugin it cannot."""
        return self.name != GO

    @property
    def driver(self) -> Path:
        return self.dist / "meta-fuse-csi-plugin/meta-fuse-csi-plugin"

    @property
    def tree(self) -> Path:
        return self.dist / "mfcp"

    @property
    def single_file(self) -> Path:
        return self.dist / "fusermount3"


@dataclass(frozen=True)
class Bench:
    """Holds what belongs to one run."""

    folder: Path
    peer: Peer | None
    is_short: bool
    results: Results = field(default_factory=Results)

    def pick(self, short: int, full: int) -> int:
        """Return the number that this form of the run takes."""
        return short if self.is_short else full


@contextmanager
def private_place(peer: Peer | None) -> Iterator[Path]:
    """Give a folder on a tmpfs, with the trees at /opt and a pods folder on a tmpfs, in a mount namespace of our own."""
    if not TREE.exists():
        raise BenchError(f"{TREE} is missing; run packaging/build")
    mounts.enter_private_namespace()
    # The path of a socket holds 107 bytes, so TMPDIR could be too long.
    path = Path(tempfile.mkdtemp(prefix="mfcp-bench-", dir="/tmp"))
    made = [folder for folder in (PODS, *PODS.parents) if not folder.exists()]
    try:
        path.chmod(0o755)
        mounts.mount("-t", "tmpfs", "-o", "nosuid,nodev,mode=0755", "mfcp-bench", path)
        # Copies, because a tree that was just built starts more slowly than a copy of the same files.
        shutil.copytree(TREE, path / "opt" / TREE_PLACE.name, symlinks=True)
        if peer is not None:
            shutil.copytree(peer.tree, path / "opt" / _PEER_TREE.name, symlinks=True)
        mounts.cover(TREE_PLACE.parent, TREE_PLACE.name, path / "opt", flags=mounts.MS_BIND)
        PODS.mkdir(parents=True, exist_ok=True)
        mounts.mount("-t", "tmpfs", "-o", "mode=0755", "mfcp-bench", PODS)
        mounts.mount("--make-shared", PODS)
        yield path
    finally:
        for place in (PODS, TREE_PLACE.parent, path):
            mounts.unmount_all_below(place)
        shutil.rmtree(path)
        for folder in made:
            folder.rmdir()


@contextmanager
def peer_in_place() -> Iterator[None]:
    """Let the peer's tree lie at /opt/mfcp during the block: its programs start nothing but what lies there."""
    TREE_PLACE.rename(_OUR_TREE)
    _PEER_TREE.rename(TREE_PLACE)
    try:
        yield
    finally:
        TREE_PLACE.rename(_PEER_TREE)
        _OUR_TREE.rename(TREE_PLACE)
