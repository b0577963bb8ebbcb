"""Measures how large the shipped files are, and lists the largest."""

import gzip
import io
import subprocess
import tarfile
from pathlib import Path

from harness.driver import DEFAULT as DRIVER
from harness.pod import SINGLE_FILE, TREE

from bench.place import Bench, BenchError
from bench.rows import OURS

_ROOT = Path(__file__).resolve().parent.parent
_MB = 1e6
_LISTED = 8  # of the largest files


def measure(bench: Bench) -> None:
    """Fill in the rows of this group."""
    tree = DRIVER.parent
    if not DRIVER.exists():
        raise BenchError(f"{DRIVER} is missing; run packaging/build")
    shipped = {OURS: (TREE, SINGLE_FILE, tree)}
    if (peer := bench.peer) is not None:
        shipped[peer.name] = (peer.tree, peer.single_file, peer.driver.parent)
    for number, row in enumerate(("size-tree", "size-single", "size-driver")):
        bench.results.add(row, {name: [_size(paths[number])] for name, paths in shipped.items()})
    for what, folder in (("the tree", TREE), ("the driver's tree", tree)):
        largest = sorted(((_size(path), path) for path in folder.rglob("*") if path.is_file()), reverse=True)[:_LISTED]
        bench.results.add_detail(f"the largest files of {what}", [f"{path.name} {size:.1f} MB" for size, path in largest])
    if not bench.is_short:
        bench.results.add("size-image", {OURS: [_compressed(tree)]})


def _size(path: Path) -> float:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if not file.is_dir()) / _MB


def _compressed(tree: Path) -> float:
    """Return the size as a layer of an image, which is a tar file in gzip."""
    listed = subprocess.run([_ROOT / "packaging/driver-libs", "--tree", tree], capture_output=True, text=True, check=True)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(tree, "meta-fuse-csi-plugin")
        for library in listed.stdout.split():
            tar.add(Path(library).resolve(), library)
    return len(gzip.compress(archive.getvalue(), 6)) / _MB
