"""Make a node with a driver and a root file system for containers, and collect what is seen of each engine into a table.

packaging/build                             builds what is tested
.venv/bin/python -m pytest tests/engines    as root
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "system"))

from engine_table import Table
from harness import mounts
from harness.cdi import own_cdi_folder
from harness.driver import Driver
from harness.image import check_built
from harness.pod import TREE
from harness.programs import missing, static_fuse_program

_TABLE = pytest.StashKey[Table]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TABLE] = Table()


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    table = request.config.stash[_TABLE]
    yield table
    table.write()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash[_TABLE].lines():
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """Mount a tmpfs in a mount namespace of the tests' own."""
    if os.geteuid() != 0:
        pytest.fail("these tests mount file systems and start containers: run them as root", pytrace=False)
    mounts.enter_private_namespace()
    path = Path(tempfile.mkdtemp(prefix="mfcp-test-", dir="/tmp"))
    path.chmod(0o755)
    mounts.mount("-t", "tmpfs", "-o", "mode=0755", "mfcp-test", path)
    try:
        yield path
    finally:
        mounts.unmount_all_below(path)
        shutil.rmtree(path)


@pytest.fixture(scope="session")
def plain_root(folder: Path) -> Path:
    """Make a root file system with a shell and a FUSE program, and nothing of ours."""
    check_built()
    busybox = shutil.which("busybox")
    if busybox is None:
        missing("busybox is missing; type: apt-get install busybox-static")
    root = folder / "plain"
    for name in ("usr/bin", "bin", "etc", "dev", "proc", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy(static_fuse_program(), root / "bin/hello")
    shutil.copy(busybox, root / "bin/busybox")
    for name in ("sh", "sleep", "cat", "ls", "grep", "killall", "mkdir"):
        (root / "bin" / name).symlink_to("busybox")
    return root


@pytest.fixture(scope="session")
def root(folder: Path, plain_root: Path) -> Path:
    """Make the containers' root file system as an image's author does, with our programs and two links."""
    root = folder / "rootfs"
    shutil.copytree(plain_root, root, symlinks=True)
    for name in ("data", "fusermount3-proxy"):
        (root / name).mkdir()
    shutil.copytree(TREE, root / "opt/mfcp", symlinks=True)
    for name in ("fusermount3", "fusermount"):
        (root / "usr/bin" / name).symlink_to("/opt/mfcp/fusermount3")
    return root


@pytest.fixture(scope="session")
def driver(folder: Path) -> Iterator[Driver]:
    """Run the driver with folders and sockets of its own, and describe its fuse devices to the engines."""
    place = folder / "node"
    place.mkdir()
    driver = Driver(place)
    driver.pods_dir.mkdir()
    mounts.mount("--bind", driver.pods_dir, driver.pods_dir)
    mounts.mount("--make-shared", driver.pods_dir)
    with own_cdi_folder(folder) as cdi:
        driver.options = ("--cdi-dir", str(cdi))
        driver.start()
        try:
            yield driver
            assert driver.stop() == 0, driver.log
        finally:
            driver.end()
