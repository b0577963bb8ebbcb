"""Make both sides, once for all tests, and decide how many examples each property gets.

    packaging/build                                  builds what is tested
    .venv/bin/python -m pytest tests/differential    as root

The reference is the fusermount3 of this machine; with MFCP_ALL=1 (tests/run --all) also that of Debian 13. MFCP_EXAMPLES sets the
number of examples, as in tests/property.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "system"))

import debian13
from device_sides import Agent, DeviceOurs, DeviceReference
from harness import mounts
from harness.driver import Driver
from harness.pod import PLACE, TREE
from harness.programs import missing
from sides import USER, Ours, Place, Reference, make_mountpoints

# Each example is four programs and a mount or two; the number of examples of tests/property would take hours.
_WANTED = int(os.environ.get("MFCP_EXAMPLES", "0"))
_EXAMPLES = max(400, _WANTED // 8)
_SECONDS_PER_EXAMPLE = 0.5
# With a fuse device processes of the driver enter a mount namespace for each mount, and an example may be a sequence.
_DEVICE_EXAMPLES = max(40, _WANTED // 64)
_SECONDS_PER_DEVICE_EXAMPLE = 5

settings.register_profile(
    "differential",
    max_examples=_EXAMPLES,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
settings.load_profile("differential")
device_examples = settings(max_examples=_DEVICE_EXAMPLES)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "differential" in item.path.parts:
            seconds = _EXAMPLES * _SECONDS_PER_EXAMPLE
            if "device" in item.path.stem:
                seconds = _DEVICE_EXAMPLES * _SECONDS_PER_DEVICE_EXAMPLE
            item.add_marker(pytest.mark.timeout(120 + seconds))


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """Mount a tmpfs in a mount namespace of the tests' own."""
    if os.geteuid() != 0:
        pytest.fail("these tests mount file systems and become another user: run them as root", pytrace=False)
    if not os.path.exists("/dev/fuse"):
        pytest.fail("there is no /dev/fuse: type 'modprobe fuse' (a container needs --device /dev/fuse too)", pytrace=False)
    if shutil.which("fusermount3") is None:
        missing("fusermount3 is missing; type: apt-get install fuse3")
    if not TREE.exists():
        missing(f"{TREE} is missing; run packaging/build")
    mounts.enter_private_namespace()
    path = Path(tempfile.mkdtemp(prefix="mfcp-test-", dir="/tmp"))
    path.chmod(0o755)
    # It must allow device nodes.
    mounts.mount("-t", "tmpfs", "-o", "nosuid,mode=0755", "mfcp-test", path)
    _provide_mtab(path)
    try:
        yield path
    finally:
        mounts.unmount_all_below(path)
        shutil.rmtree(path)


@pytest.fixture(scope="session")
def place(folder: Path) -> Place:
    """Make the user's folder, and in this namespace alone a /dev/fuse and an /etc/fuse.conf of the tests' own."""
    user = folder / "user"
    user.mkdir()
    os.chown(user, USER, USER)
    make_mountpoints(user)
    device, conf = folder / "dev-fuse", folder / "fuse.conf"
    os.mknod(device, 0o20666, os.makedev(10, 229))
    conf.touch()
    place = Place(user, device, conf)
    _bind_places(place, Path("/"))
    return place


def _bind_places(place: Place, root: Path) -> None:
    mounts.mount("--bind", place.device, root / "dev/fuse")
    mounts.mount("--bind", place.conf, root / "etc/fuse.conf")


def _provide_mtab(folder: Path) -> None:
    """Make /etc/mtab where the machine has none, in this namespace alone: libfuse's fusermount3 looks there for what to unmount."""
    mtab = Path("/etc/mtab")
    if not mtab.exists():
        _overlay(folder, mtab.parent, mtab.parent)
        mtab.unlink(missing_ok=True)  # a link that leads nowhere
        mtab.symlink_to("../proc/self/mounts")


def _overlay(folder: Path, lower: Path, at: Path) -> None:
    """Mount a copy of `lower` at `at` that can be written."""
    layers = _layers(folder)
    mounts.mount("-t", "overlay", "-o", f"lowerdir={lower},upperdir={layers[0]},workdir={layers[1]}", "overlay", at)


def _layers(folder: Path) -> tuple[Path, Path]:
    """Make an upper and a work folder for an overlay."""
    layers = Path(tempfile.mkdtemp(prefix="upper-", dir=folder)), Path(tempfile.mkdtemp(prefix="work-", dir=folder))
    layers[0].chmod(0o755)
    return layers


@pytest.fixture(scope="session", params=["installed", *(["Debian 13"] if os.environ.get("MFCP_ALL") else [])])
def reference(request: pytest.FixtureRequest, folder: Path, place: Place) -> Iterator[Reference]:
    """Yield libfuse's fusermount3."""
    root = Path("/")
    if request.param == "Debian 13":
        root = Path(tempfile.mkdtemp(prefix="root-", dir=folder))
        _overlay(folder, debian13.root(), root)
        (root / "dev/fuse").touch()
        _bind_places(place, root)
        mounts.mount("--bind", "/proc", root / "proc")
        inside = Path(f"{root}{place.folder}")
        inside.mkdir(parents=True)
        mounts.mount("--bind", place.folder, inside)
    side = Reference(place, root)
    yield side
    side.close()


@pytest.fixture(scope="session")
def driver(folder: Path) -> Iterator[Driver]:
    """Run a driver."""
    with _running(Driver(folder)) as driver:
        yield driver


@contextmanager
def _running(driver: Driver) -> Iterator[Driver]:
    driver.pods_dir.mkdir()
    mounts.mount("--bind", driver.pods_dir, driver.pods_dir)
    mounts.mount("--make-shared", driver.pods_dir)
    driver.start()
    yield driver
    assert driver.stop() == 0, driver.log
    assert "Traceback" not in driver.log, driver.log


@pytest.fixture(scope="session")
def ours(folder: Path, place: Place, driver: Driver) -> Iterator[Ours]:
    """Yield our fusermount3."""
    # The place of the tree exists in this namespace alone.
    _overlay(folder, Path("/opt"), Path("/opt"))
    os.makedirs(PLACE, exist_ok=True)
    mounts.mount("--bind", TREE, PLACE)
    added = driver.cli("volume", "add", "volume")
    assert added.returncode == 0, added.stderr
    published = driver.run_dir / "volumes" / "volume"
    # The folder of all volumes is closed to other users, as on a node; a container has this volume bound.
    sockets = folder / "sockets"
    sockets.mkdir()
    mounts.mount("--bind", published / "sock", sockets)
    side = Ours(place, published / "mount", sockets)
    yield side
    side.close()


@pytest.fixture(scope="session")
def device_driver(folder: Path) -> Iterator[Driver]:
    """Run a driver with a fuse device."""
    node = folder / "node"
    node.mkdir()
    driver = Driver(node)
    _device_sockets(driver).mkdir(parents=True)
    with _running(driver):
        yield driver


def _device_sockets(driver: Driver) -> Path:
    return driver.fuse_dir / "sockets" / "test"


@pytest.fixture(scope="session")
def device_reference(folder: Path, place: Place) -> Iterator[DeviceReference]:
    """Yield libfuse's fusermount3 in a mount namespace of its own."""
    side = DeviceReference(place, Agent(), _layers(folder))
    yield side
    side.close()


@pytest.fixture(scope="session")
def device_ours(folder: Path, place: Place, device_driver: Driver) -> Iterator[DeviceOurs]:
    """Yield our fusermount3 with a fuse device in a mount namespace of its own."""
    side = DeviceOurs(place, Agent(), _device_sockets(device_driver), _layers(folder))
    yield side
    side.close()
