"""Test that a FUSE program mounts for the containers of each engine, from `volume add` to `volume remove`.

An engine or a runtime that this machine does not have, or that starts no container here even without a volume, is skipped. The
table then says why, in the engine's own words.
"""

import re
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
from engine_table import NOT_RUN, Table
from engines import ENGINES, RUNTIMES, Containers, Refused
from harness import mounts
from harness.driver import Driver
from harness.events import wait_until

pytestmark = pytest.mark.timeout(300)  # on a busy machine a daemon takes a while to start

_VOLUME = "engine"
# ctr does not say how mounts propagate into a container, and crun then lets none in, whatever the option of the volume says.
_LETS_NO_MOUNT_IN = {("ctr", "crun")}
NO_SYS_ADMIN = "CapEff:.*[014589cd][0-9a-f]{5}$"  # bit 21 is not set: capabilities(7)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_fuse_program_mounts_for_containers(engine: str, runtime: str, folder: Path, root: Path, driver: Driver, table: Table) -> None:
    make, programs = ENGINES[engine]
    missing = [name for name in (*programs, runtime) if shutil.which(name) is None]
    if missing:
        table.add(engine, runtime, f"{NOT_RUN} {' and no '.join(missing)}")
        pytest.skip(f"this machine has no {' and no '.join(missing)}")
    place = folder / f"{engine}-{runtime}"
    place.mkdir()
    with ExitStack() as stack:
        try:
            containers = stack.enter_context(make(place, root, runtime))
            containers.start("plain", [])
        except Refused as refused:
            words = last_words(refused, folder)
            table.add(engine, runtime, f"starts no container: `{words}`")
            pytest.skip(f"{engine} with {runtime} starts no container: {words}")
        containers.remove("plain")
        sees_later_mounts = (engine, runtime) not in _LETS_NO_MOUNT_IN
        use_a_volume(containers, driver, sees_later_mounts)
    table.add(engine, runtime, "works" if sees_later_mounts else "a container sees what was mounted when it started, and no later mount")


def use_a_volume(containers: Containers, driver: Driver, sees_later_mounts: bool) -> None:
    added = driver.cli("volume", "add", _VOLUME)
    assert added.returncode == 0, added.stderr
    target = driver.run_dir / "volumes" / _VOLUME / "mount"
    started: list[str] = []

    def start(name: str, whose: str) -> None:
        (options,) = re.findall(f"^  {whose}: +-v (.*)$", added.stdout, re.MULTILINE)
        containers.start(name, options.split(" -v "))
        started.append(name)

    def all_read(*names: str) -> None:
        for name in names:
            containers.run(name, "grep -q 'Hello World!' /data/hello")

    def all_are_empty(*names: str) -> None:
        for name in names:
            containers.run(name, '[ -z "$(ls -A /data)" ]')

    try:
        start("before", "applications")
        start("fuse", "the FUSE program")
        containers.run("fuse", f"grep -Eq '{NO_SYS_ADMIN}' /proc/1/status")
        all_are_empty(*started)
        containers.run("fuse", "hello /data")
        start("after", "applications")
        if sees_later_mounts:
            all_read(*started)
            containers.run("fuse", "killall -9 hello")
            wait_until("the dead mount is off", lambda: len(mounts.stack(target)) == 1)
            all_are_empty(*started)
            containers.run("fuse", "hello /data")
            all_read(*started)
        else:
            all_read("after")
            all_are_empty("before")
        containers.run("fuse", "fusermount3 -u /data")
        wait_until("the volume is unmounted", lambda: len(mounts.stack(target)) == 1)
        if sees_later_mounts:
            all_are_empty(*started)
        removed = driver.cli("volume", "remove", _VOLUME)
        assert removed.returncode == 0, removed.stderr
        assert not mounts.below(target)
    finally:
        for name in started:
            containers.remove(name)
        driver.cli("volume", "remove", _VOLUME)


def last_words(refused: Refused, folder: Path) -> str:
    """Return what an engine says last, without what differs each time, and in a form that fits into a cell."""
    last = [line for line in str(refused).splitlines() if line and "--help" not in line][-1]
    last = re.sub("[0-9a-f]{12,}", "...", last.replace(str(folder), "...").replace("`", "'").replace("|", "/"))
    return re.sub(r'^time="[^"]*" level=\w+ msg="(.*)"$', r"\1", last)
