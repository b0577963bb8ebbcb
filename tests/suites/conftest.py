"""Run the suites of libfuse and sshfs with libfuse's fusermount3 and with ours, and print and write what came of them.

packaging/build                             builds what is tested
tests/suites/build                          builds the suites, as root
.venv/bin/python -m pytest tests/suites     as root
"""

import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "system"))

import suites
from harness import mounts
from harness.container import Engine
from harness.driver import Driver
from harness.events import wait_until
from harness.image import check_built
from suite_table import Runs

_DEVICE = "suites"
_AT_ONCE = 3  # they mostly sleep
_RUNS = pytest.StashKey[Runs]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_RUNS] = Runs()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "suites" in item.path.parts:
            item.add_marker(pytest.mark.timeout(7200))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash[_RUNS].lines():
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
def engine(folder: Path) -> Iterator[Engine]:
    """Run the container engine."""
    engine = Engine(folder / "engine")
    try:
        yield engine
    finally:
        engine.close()


@pytest.fixture(scope="session")
def driver(folder: Path) -> Iterator[Driver]:
    """Run the driver with folders and sockets of its own, and a fuse device. At the end nothing may be left of any mount."""
    check_built()
    place = folder / "node"
    driver = Driver(place)
    (driver.fuse_dir / "sockets" / _DEVICE).mkdir(parents=True)
    driver.pods_dir.mkdir()
    mounts.mount("--bind", driver.pods_dir, driver.pods_dir)
    mounts.mount("--make-shared", driver.pods_dir)
    driver.start()
    before = driver.state()
    try:
        yield driver
        wait_until("nothing is left of the containers", lambda: driver.state() == before and not driver.children())
        assert "Traceback" not in driver.log, driver.log
        assert driver.stop() == 0, driver.log
    finally:
        driver.end()


@pytest.fixture(scope="session")
def runs(request: pytest.FixtureRequest, folder: Path, engine: Engine, driver: Driver) -> Iterator[Runs]:
    """Begin to run the suites of the tests that were asked for, with each fusermount3."""
    wanted = {item.callspec.params.get("suite") for item in request.session.items if isinstance(item, pytest.Function)}
    helpers = {each.name: each for each in (suites.Libfuses(), suites.Ours(folder, driver.fuse_dir / "sockets" / _DEVICE))}
    reports = (folder / f"report-{number}" for number in itertools.count())
    runs = request.config.stash[_RUNS]
    runs.run_one = lambda suite, name, test: suites.run(engine, suite, helpers[name], next(reports), test)[test]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for suite in suites.ALL:
            if suite in wanted and suite.tests:
                for name, helper in helpers.items():
                    runs.futures[suite, name] = pool.submit(suites.run, engine, suite, helper, next(reports))
        yield runs
    runs.write()
