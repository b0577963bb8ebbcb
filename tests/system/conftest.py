"""Make nodes for the system tests. What is missing on this machine fails every test with one line; nothing is skipped.

    packaging/build                             builds what is tested
    .venv/bin/python -m pytest tests/system     as root

The tests need the packages of packages.txt, and once Go and its module proxy for the S3 server. MFCP_DRIVER=source runs the
driver from its source instead of the frozen one.
"""

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from clients import CLIENTS
from harness import mounts
from harness.container import Bind, Container, Engine
from harness.device import FOLDER, Device, source
from harness.driver import Driver
from harness.image import Asked, Image, answering, check_built
from harness.kubelet import Kubelet
from harness.pod import Node, Pod
from harness.programs import check_installed
from harness.table import Table, is_everything_run
from sidebyside import rank

_DEVICES = itertools.count()

FUSECTL = Path("/sys/fs/fuse/connections")  # systemd mounts it there on each machine, and a container has none


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: tests/run --all alone runs it")
    config.addinivalue_line("markers", "alone: it measures time, so that tests/run runs nothing beside it")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests that take long, or build what takes long, without --all; pytest counts them as deselected."""
    items.sort(key=lambda item: rank(item.path))
    if is_everything_run():
        return
    long = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]


@pytest.fixture(scope="session")
def table() -> Iterator[Table]:
    """Collect what is seen of each FUSE program; all tests together write it into docs/compatibility.md."""
    table = Table()
    yield table
    if is_everything_run():
        table.write([client.name for client in CLIENTS])


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """Mount a tmpfs in a mount namespace of the tests' own; /run is a tmpfs on most machines, too."""
    if os.geteuid() != 0:
        pytest.fail("the system tests mount file systems and start containers: run them as root", pytrace=False)
    if not os.path.exists("/dev/fuse"):
        pytest.fail("there is no /dev/fuse: type 'modprobe fuse' (a container needs --device /dev/fuse too)", pytrace=False)
    check_installed()
    try:
        mounts.enter_private_namespace()
    except OSError as error:
        pytest.fail(f"the system tests need a mount namespace of their own (CAP_SYS_ADMIN): {error}", pytrace=False)
    # This ignores TMPDIR: the path of a Unix socket has at most 107 bytes, and podman needs short paths too.
    path = Path(tempfile.mkdtemp(prefix="mfcp-test-", dir="/tmp"))
    path.chmod(0o755)
    mounts.mount("-t", "tmpfs", "-o", "nosuid,nodev,mode=0755", "mfcp-test", path)
    mounts.mount("-t", "fusectl", "mfcp-test", FUSECTL)
    try:
        yield path
    finally:
        mounts.unmount(FUSECTL)
        left = [mount.path for mount in mounts.below(path) if mount.path != str(path)]
        mounts.unmount_all_below(path)
        shutil.rmtree(path)
    assert not left, f"mounts are left at the end: {left}"


@pytest.fixture(scope="session")
def engine(folder: Path) -> Iterator[Engine]:
    """Run the container engine."""
    engine = Engine(folder / "engine")
    try:
        yield engine
    finally:
        engine.close()
        # podman mounts this for its storage.
        mounts.unmount_all_below(folder / "engine")


@pytest.fixture(scope="module")
def module_node(folder: Path, engine: Engine, request: pytest.FixtureRequest) -> Iterator[Node]:
    """Run a node with a driver for all tests of a module; its DRIVER_OPTIONS are added to the driver's command line."""
    place = Path(tempfile.mkdtemp(prefix="node-", dir=folder))
    place.chmod(0o755)
    driver = Driver(place)
    driver.options = getattr(request.module, "DRIVER_OPTIONS", ())
    driver.pods_dir.mkdir()
    # On a node of Kubernetes kubelet's folder is shared with containers, too.
    mounts.mount("--bind", driver.pods_dir, driver.pods_dir)
    mounts.mount("--make-shared", driver.pods_dir)
    node = Node(place, driver, Kubelet(driver.csi_socket, driver.pods_dir), engine)
    try:
        driver.start()
        yield node
        node.delete_pods()
        # The node's own folders are mounts too.
        left = mounts.below(driver.pods_dir)[1:]
        assert not left, f"mounts are left in the pods folder: {left}"
        if driver.is_started:
            assert driver.stop() == 0, driver.log
    finally:
        driver.end()
        node.engine.close()
        mounts.unmount_all_below(place)


@pytest.fixture
def node(module_node: Node) -> Iterator[Node]:
    """Yield the module's node. At the end of the test its pods are deleted, and nothing of them may be left."""
    kept = list(module_node.pods)
    before = module_node.snapshot()
    said = len(module_node.driver.log)
    yield module_node
    print(module_node.driver.log[said:])  # pytest shows it for tests that fail
    module_node.delete_pods(kept)
    module_node.expect(before)
    assert "Traceback" not in module_node.driver.log[said:], module_node.driver.log[said:]


@pytest.fixture
def pod(node: Node) -> Pod:
    """Make a new pod."""
    return node.pod()


@pytest.fixture
def device_name(module_node: Node) -> str:
    """Give the node one more fuse device. The driver has to be started again for that, which disturbs nobody."""
    name = f"test-{next(_DEVICES)}"
    (module_node.driver.fuse_dir / "sockets" / name).mkdir(parents=True)
    module_node.driver.restart()
    return name


@pytest.fixture
def device(device_name: str, node: Node, pod: Pod) -> Device:
    """Return that device."""
    return Device(node, pod, device_name)


@pytest.fixture
def device_container(device: Device, node: Node) -> Container:
    """Start a container with a device and an ordinary user's folder at FOLDER, and a source for bindfs at /source."""
    container = device.container([Bind(source(node), "/source")])
    container.check(f"mkdir {FOLDER} && chown 1234:1234 {FOLDER}")
    return container


@pytest.fixture(scope="module")
def built() -> None:
    """Check that the frozen programs are in dist/."""
    check_built()


@pytest.fixture
def image(tmp_path: Path) -> Image:
    """Make an image that contains no libc, no /proc and no /dev, only a mountpoint and the folder of the socket."""
    root = tmp_path / "image"
    for folder in ("opt/mfcp", "usr/bin", "mnt", "proc", "fusermount3-proxy"):
        (root / folder).mkdir(parents=True)
    tmp_path.chmod(0o755)
    return Image(root)


@pytest.fixture
def image_with_proc(image: Image) -> Image:
    """Make such an image with /proc, which every container has."""
    image.binds.append((Path("/proc"), "/proc"))
    return image


@pytest.fixture
def machine() -> Image:
    """Use this machine's own root, with the tree in its place."""
    return Image(Path("/"))


@pytest.fixture
def stand_in(image: Image) -> Iterator[Asked]:
    """Run a stand-in for the driver, with its socket in `image`."""
    with answering(image.root / "fusermount3-proxy" / "fuse.sock") as asked:
        yield asked
