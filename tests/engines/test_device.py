"""Test the fuse device in containers of Podman, Docker and nerdctl: by its name (CDI), and by the options that `device flags` prints.

The image has a FUSE program, and nothing of ours.
"""

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from engine_table import version
from engines import ENGINES, RUNTIMES, Commands, Refused
from harness.driver import Driver
from harness.events import wait_until
from test_engines import NO_SYS_ADMIN, last_words

pytestmark = pytest.mark.timeout(300)

_BY_NAME = ("--device", "mfcp.storage.pfn.io/fuse=any")
_CDI_OF_DOCKER = 25  # the first version of dockerd with the Container Device Interface
_MOUNTPOINT = "/tmp/mountpoint"


def by_name(engine: str, driver: Driver) -> tuple[str, ...]:
    if engine == "docker" and int(version("dockerd").partition(".")[0]) < _CDI_OF_DOCKER:
        pytest.skip(f"dockerd {version('dockerd')} has no CDI")
    return _BY_NAME


def by_flags(engine: str, driver: Driver) -> tuple[str, ...]:
    printed = driver.cli("device", "flags", "--engine", "docker" if engine == "docker" else "podman")
    assert printed.returncode == 0, printed.stderr
    return tuple(printed.stdout.split())


@pytest.mark.parametrize("options", [by_name, by_flags])
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("engine", ["podman", "docker", "nerdctl"])
def test_a_container_mounts_where_it_likes(
    engine: str, runtime: str, options: Callable[[str, Driver], tuple[str, ...]], folder: Path, plain_root: Path, driver: Driver
) -> None:
    make, programs = ENGINES[engine]
    missing = [name for name in (*programs, runtime) if shutil.which(name) is None]
    if missing:
        pytest.skip(f"this machine has no {' and no '.join(missing)}")
    more = options(engine, driver)
    place = folder / f"{engine[0]}{runtime[0]}{options.__name__[3]}"
    place.mkdir()
    with ExitStack() as stack:
        try:
            containers = stack.enter_context(make(place, plain_root, runtime))
            assert isinstance(containers, Commands)
            containers.start("plain", [])
        except Refused as refused:
            pytest.skip(f"{engine} with {runtime} starts no container: {last_words(refused, folder)}")
        containers.remove("plain")
        mount_in_a_container(containers, more)


def mount_in_a_container(containers: Commands, options: tuple[str, ...]) -> None:
    containers.start("device", [], options)
    try:
        containers.run("device", f"grep -Eq '{NO_SYS_ADMIN}' /proc/1/status")
        containers.run("device", f"mkdir {_MOUNTPOINT}")
        for _ in range(2):
            containers.run("device", f"hello {_MOUNTPOINT} && grep -q 'Hello World!' {_MOUNTPOINT}/hello")
            containers.run("device", "killall -9 hello")
            wait_until("the dead mount is off", lambda: not is_mounted(containers))
        containers.run("device", f"hello {_MOUNTPOINT}")
        assert is_mounted(containers)
        containers.run("device", f"fusermount3 -u {_MOUNTPOINT}")
        assert not is_mounted(containers)
    finally:
        containers.remove("device")


def is_mounted(containers: Commands) -> bool:
    try:
        containers.run("device", f"grep -q ' {_MOUNTPOINT} .* - fuse' /proc/self/mountinfo")
        return True
    except Refused:
        return False
