"""Test what a container sees that gets the fuse device, by the file for the Container Device Interface or by options of the engine.

The kit and the file are made here as the driver makes them. /etc is covered, in the tests' mount namespace: engines read /etc/cdi.
"""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import mounts
from harness.cdi import own_cdi_folder
from harness.container import Bind, Container, Engine
from harness.pod import PLACE, TREE
from harness.programs import REPOSITORY

from driver.devices import cdi
from driver.devices.kit import HELPERS, SOCKETS, Kit

NAME = "photos"
ANY, NAMED = (f"--device={cdi.KIND}={name}" for name in (cdi.ANY, NAME))
VERSION = "fusermount3 version: 3.14.0\n"


@pytest.fixture(scope="module")
def cdi_folder(folder: Path, built: None) -> Iterator[Path]:
    """Return the folder that engines read, in an /etc of the tests' own."""
    with own_cdi_folder(folder) as path:
        yield path


@pytest.fixture
def place(folder: Path) -> Iterator[Path]:
    """Make the driver's folder for what containers bind, with the folders of two sockets."""
    place = Path(tempfile.mkdtemp(prefix="fuse-", dir=folder))
    for name in (cdi.ANY, NAME):
        (place / SOCKETS / name).mkdir(parents=True)
        (place / SOCKETS / name / f"socket-of-{name}").touch()
    yield place
    shutil.rmtree(place)


@pytest.fixture
def kit(place: Path, cdi_folder: Path) -> Iterator[Kit]:
    """Install the kit, and write the file."""
    kit = Kit(str(place), str(place), str(TREE))
    kit.install()
    cdi.write(str(cdi_folder), {name: kit.for_socket(name) for name in (cdi.ANY, NAME)})
    yield kit
    cdi.remove(str(cdi_folder))


@pytest.fixture
def containers(engine: Engine) -> Iterator[list[Container]]:
    """Collect containers, and stop them at the end."""
    started: list[Container] = []
    yield started
    engine.stop(started)


def check_programs(container: Container) -> None:
    for program in (f"{PLACE}/fusermount3", f"{PLACE}/bin/fusermount3", f"{PLACE}/bin/fusermount", *HELPERS):
        assert container.check(f"{program} -V") == VERSION, program


def check_read_only(container: Container) -> None:
    for path in (PLACE, f"{PLACE}/socket"):
        assert "Read-only file system" in container.run(f"touch {path}/new").err
    for helper in HELPERS:
        assert container.run(f": >{helper}").code != 0


def options_of(container: Container, path: str) -> frozenset[str]:
    table = mounts.parse(container.check("cat /proc/self/mountinfo"))
    return mounts.stack(path, table)[-1].options


@pytest.mark.usefixtures("kit")
@pytest.mark.parametrize(
    "options",
    [[], ["--user=1234:1234"], ["--read-only", "--read-only-tmpfs=false"], ["--cap-drop=all"]],
    ids=["root", "user", "read-only root", "no capabilities"],
)
def test_what_a_container_with_the_device_sees(engine: Engine, containers: list[Container], options: list[str]) -> None:
    container = engine.start(options=[ANY, *options])
    containers.append(container)
    check_programs(container)
    check_read_only(container)
    assert container.check(f"ls {PLACE}/socket") == f"socket-of-{cdi.ANY}\n"
    assert container.check("stat -c '%F %t:%T %a' /dev/fuse") == "character special file a:e5 666\n"
    container.check("exec 3<>/dev/fuse")
    for path in (PLACE, f"{PLACE}/socket"):
        assert {"ro", "nosuid", "nodev"} <= options_of(container, path)
        assert "noexec" not in options_of(container, path)


@pytest.mark.usefixtures("kit")
def test_a_named_device_brings_its_own_socket(engine: Engine, containers: list[Container]) -> None:
    container = engine.start(options=[NAMED])
    containers.append(container)
    assert container.check(f"ls {PLACE}/socket") == f"socket-of-{NAME}\n"
    check_programs(container)


@pytest.mark.usefixtures("kit")
def test_an_image_without_any_of_the_mountpoints(engine: Engine, containers: list[Container], tmp_path: Path) -> None:
    """The engine makes them. The programs of the tree need nothing of the image."""
    tmp_path.chmod(0o755)
    (tmp_path / "image").mkdir()
    container = engine.start(options=[ANY], rootfs=tmp_path / "image", command=["/usr/bin/fusermount", "-V"])
    containers.append(container)
    ended = container.wait()
    assert (ended.code, ended.out) == (0, VERSION.strip()), ended.err


@pytest.mark.usefixtures("kit")
def test_a_container_in_a_user_namespace_of_its_own(engine: Engine, containers: list[Container], tmp_path: Path) -> None:
    """The engine cannot make the device there, and binds the node's."""
    tmp_path.chmod(0o755)
    image = tmp_path / "image"
    image.mkdir()
    os.chown(image, 200_000, 200_000)
    container = engine.start(options=[ANY, "--uidmap=0:200000:65536"], rootfs=image, command=["/usr/bin/fusermount", "-V"])
    containers.append(container)
    ended = container.wait()
    assert (ended.code, ended.out) == (0, VERSION.strip()), ended.err


def test_without_the_file_the_engine_refuses_the_device(engine: Engine, containers: list[Container], kit: Kit, cdi_folder: Path) -> None:
    cdi.remove(str(cdi_folder))
    container = engine.start(options=[ANY], command=["/bin/true"])
    containers.append(container)
    ended = container.wait()
    assert ended.code != 0
    assert cdi.KIND in ended.err


@pytest.mark.parametrize("has_device", [True, False], ids=["device", "stand-in"])
def test_the_same_by_options_of_the_engine(
    engine: Engine, containers: list[Container], place: Path, cdi_folder: Path, tmp_path: Path, has_device: bool
) -> None:
    """Without the device FUSE libraries still open what is at /dev/fuse, fail to mount it, and ask fusermount3."""
    kit = Kit(str(place), str(place), str(TREE), "/dev/fuse" if has_device else f"{tmp_path}/none")
    kit.install()
    found = kit.for_socket(cdi.ANY)
    devices = [f"--device={device.source}:{device.target}:{device.permissions}" for device in found.devices]
    assert bool(devices) == has_device
    binds = [Bind(Path(bind.source), bind.target, read_only=bind.read_only) for bind in found.binds]
    container = engine.start(binds, options=[*devices, "--user=1234:1234"])
    containers.append(container)
    check_programs(container)
    check_read_only(container)
    kind = "character special file" if has_device else "fifo"
    assert container.check("stat -c '%F %a' /dev/fuse") == f"{kind} 666\n"
    container.check("exec 3<>/dev/fuse")
    result = container.run("mkdir /tmp/mnt && bindfs -f /srv /tmp/mnt")
    assert result.code != 0
    assert result.err.startswith(("fusermount3: ", "fusermount: ")), result.err
    assert "/dev/fuse" not in result.err


def test_an_upgrade_keeps_the_tree_of_a_running_container_as_long_as_that_runs(
    engine: Engine, kit: Kit, place: Path, cdi_folder: Path, tmp_path: Path
) -> None:
    former = (place / "tree").resolve()
    container = engine.start(options=[ANY])
    check_programs(container)
    newer = shutil.copytree(TREE, tmp_path / "mfcp")
    (newer / "of-the-next-version").touch()
    tmp_path.chmod(0o755)
    upgraded = Kit(str(place), str(place), str(newer))
    for _ in range(2):
        upgraded.install()
    assert (place / "tree").resolve() != former
    assert former.exists()
    check_programs(container)
    engine.stop([container])
    upgraded.install()
    assert not former.exists()
    assert not cdi.write(str(cdi_folder), {name: upgraded.for_socket(name) for name in (cdi.ANY, NAME)}), "the file has changed"


def test_a_container_that_is_started_again_after_an_upgrade_gets_the_new_tree(
    engine: Engine, kit: Kit, place: Path, tmp_path: Path
) -> None:
    """Engines keep the paths of options that a container was made with."""
    binds = [f"--volume={bind.source}:{bind.target}:ro" for bind in kit.for_socket(cdi.ANY).binds]
    limits = ("--network", "none", *engine.limits, *engine.security)
    made = engine.call("create", "--name=upgraded", *limits, *binds, "--rootfs", "/:O", "ls", PLACE)
    assert made.returncode == 0, made.stderr
    try:
        newer = shutil.copytree(TREE, tmp_path / "mfcp")
        (newer / "of-the-next-version").touch()
        for _ in range(2):
            Kit(str(place), str(place), str(newer)).install()
        started = engine.call("start", "--attach", "upgraded")
        assert started.returncode == 0, started.stderr
        assert "of-the-next-version" in started.stdout.split()
    finally:
        engine.call("rm", "--force", "upgraded")


def test_a_file_system_without_exec_is_refused(folder: Path, built: None) -> None:
    place = Path(tempfile.mkdtemp(prefix="noexec-", dir=folder))
    mounts.mount("-t", "tmpfs", "-o", "noexec", "mfcp-test", place)
    try:
        with pytest.raises(Exception, match="noexec"):
            Kit(str(place), str(place), str(TREE)).install()
        assert list(place.iterdir()) == []
    finally:
        mounts.unmount(place)
        place.rmdir()


def test_the_capabilities_that_the_driver_keeps_suffice(place: Path, built: None) -> None:
    """It drops all others before it installs and repairs."""
    kept = ",".join(f"+{name}" for name in ("sys_admin", "mknod", "dac_override", "chown", "fowner"))
    script = f"from driver.devices.kit import Kit; Kit({str(place)!r}, '/node', {str(TREE)!r}).install()"
    command = ["setpriv", f"--bounding-set=-all,{kept}", "--no-new-privs", sys.executable, "-c", script]
    subprocess.run(command, cwd=REPOSITORY, check=True, timeout=60)
    helper = place / "tree/fusermount3"
    os.chown(helper, 1234, 1234)
    helper.chmod(0o600)
    (place / "tree/bin/fusermount3").unlink()
    subprocess.run(command, cwd=REPOSITORY, check=True, timeout=60)
    for path in [place / "tree", *(place / "tree").rglob("*")]:
        info = path.stat()
        assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode) & 0o222) == (0, 0, 0), path
    assert (place / "tree/bin/fusermount3").read_bytes() == helper.read_bytes()


def test_the_trampolines_alone_have_the_set_uid_bit(kit: Kit, place: Path) -> None:
    """AppImages take no other helper. The trampoline gives up what the bit gives (test_device_programs.py)."""
    tree = (place / "tree").resolve()
    found = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.stat().st_mode & 0o6000}
    assert found == {"fusermount3", "bin/fusermount3", "bin/fusermount"}
