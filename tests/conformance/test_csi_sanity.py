"""Run csi-sanity, Kubernetes' conformance tests for CSI drivers, against a driver (MFCP_DRIVER chooses it as for the system tests)."""

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import provisioner
import pytest
from harness import mounts
from harness.driver import Driver
from harness.programs import REPOSITORY, missing

POD = "6f1c9a52-3b0e-4d55-9f0a-0c5b7f0d2e11"
TARGET_FOLDER = f"{POD}/volumes/kubernetes.io~csi/volume"
EMPTY_DIR = f"{POD}/volumes/kubernetes.io~empty-dir/fuse-fd-passing"
ATTRIBUTES = {"fdPassingEmptyDirName": "fuse-fd-passing", "fdPassingSocketName": "fuse-csi-ephemeral.sock"}

# For these tests csi-sanity makes a volume without asking whether the driver can. Only the second run has a provisioner, and
# ValidateVolumeCapabilities is for drivers with a Controller service, which this one does not claim to have.
NEED_CREATE_VOLUME = "ValidateVolumeCapabilities|NodeUnpublishVolume should remove target path|does not exist on the specified path"

IDENTITY = {
    "Identity Service GetPluginCapabilities should return appropriate capabilities",
    "Identity Service GetPluginInfo should return appropriate information",
    "Identity Service Probe should return appropriate information",
}
NODE = {
    "Node Service NodeGetCapabilities should return appropriate capabilities",
    "Node Service NodeGetInfo should return appropriate values",
    "Node Service NodeGetVolumeStats should fail when no volume id is provided",
    "Node Service NodeGetVolumeStats should fail when no volume path is provided",
    "Node Service NodeGetVolumeStats should fail when volume is not found",
    "Node Service NodePublishVolume should fail when no target path is provided",
    "Node Service NodePublishVolume should fail when no volume capability is provided",
    "Node Service NodePublishVolume should fail when no volume id is provided",
    "Node Service NodeUnpublishVolume should fail when no target path is provided",
    "Node Service NodeUnpublishVolume should fail when no volume id is provided",
}
CONTROLLER = {"Controller Service [Controller Server] ControllerGetCapabilities should return appropriate capabilities"}
PUBLISHING = {
    "Node Service NodeGetVolumeStats should fail when volume does not exist on the specified path",
    "Node Service NodeUnpublishVolume should remove target path",
    "Node Service should be idempotent",
    "Node Service should work",
}

# Building csi-sanity for the first time fetches and compiles a good deal.
pytestmark = pytest.mark.timeout(900)


@dataclass
class Report:
    """Holds what csi-sanity ran."""

    summary: str
    passed: set[str]
    failed: set[str]


def test_the_driver_conforms(csi_sanity: Path, driver: Driver, say: Callable[[str], None]) -> None:
    report = run(csi_sanity, driver, f"unix:{driver.csi_socket}", f"--ginkgo.skip={NEED_CREATE_VOLUME}")
    say(f"csi-sanity: {report.summary}")
    assert not report.failed
    assert report.passed >= IDENTITY | NODE | CONTROLLER


def test_volumes_are_published_as_csi_says(csi_sanity: Path, driver: Driver, say: Callable[[str], None]) -> None:
    endpoint = f"unix:{driver.csi_socket}.provisioner"
    with provisioner.serving(endpoint, f"unix:{driver.csi_socket}", ATTRIBUTES):
        report = run(csi_sanity, driver, endpoint, "--ginkgo.focus=Node Service")
    say(f"csi-sanity's Node Service, with volumes: {report.summary}")
    assert not report.failed
    assert report.passed >= NODE | PUBLISHING
    assert [mount.path for mount in mounts.below(driver.pods_dir)] == [str(driver.pods_dir)]
    assert not [path for path in (driver.pods_dir / EMPTY_DIR).iterdir() if path.is_socket()]


def run(program: Path, driver: Driver, endpoint: str, *options: str) -> Report:
    place = driver.csi_socket.parent
    json_report = place / "report.json"
    # csi-sanity checks FOLDER/target, which is not where the provisioner has it made.
    check_path = place / "check-path"
    check_path.write_text('#!/bin/sh\nif [ -d "${1%/target}/mount" ]; then echo directory; else echo not_found; fi\n')
    check_path.chmod(0o755)
    done = subprocess.run(
        [
            program,
            f"--csi.endpoint={endpoint}",
            f"--csi.mountdir={driver.pods_dir / TARGET_FOLDER}",
            f"--csi.stagingdir={place}/staging",
            f"--csi.checkpathcmd={check_path}",
            f"--ginkgo.json-report={json_report}",
            "--ginkgo.no-color",
            *options,
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    print(done.stdout)
    states: dict[str, set[str]] = {}
    for spec in json.loads(json_report.read_text())[0]["SpecReports"]:
        name = " ".join([*(spec["ContainerHierarchyTexts"] or []), spec["LeafNodeText"]])
        states.setdefault(spec["State"], set()).add(name)
    failed = {name for state, names in states.items() if state not in ("passed", "skipped", "pending") for name in names}
    assert done.returncode == 0 or failed, f"csi-sanity exited with {done.returncode}"
    summary = " ".join(re.findall(r"^(?:Ran .* Specs in .*|[A-Z]+! -- .*)$", done.stdout, re.MULTILINE))
    return Report(summary, states.get("passed", set()), failed)


@pytest.fixture(scope="module")
def csi_sanity() -> Path:
    build = subprocess.run([Path(__file__).with_name("build-csi-sanity")], capture_output=True, text=True)
    if build.returncode != 0:
        missing(f"csi-sanity is missing: {build.stderr.strip()}")
    return REPOSITORY / ".cache/csi-sanity"


@pytest.fixture(scope="module")
def namespace() -> None:
    if os.geteuid() != 0:
        missing("the driver mounts, which only root may: run these tests as root")
    mounts.enter_private_namespace()


@pytest.fixture
def driver(namespace: None) -> Iterator[Driver]:
    """Run a driver, with the folders of a pod."""
    # Not tmp_path, which is long: a Unix socket's path may have 107 bytes.
    place = Path(tempfile.mkdtemp(prefix="csi-"))
    driver = Driver(place)
    try:
        driver.pods_dir.mkdir()
        mounts.mount("-t", "tmpfs", "-o", "mode=0755", "pods", driver.pods_dir)
        mounts.mount("--make-shared", driver.pods_dir)  # as on a node
        (driver.pods_dir / EMPTY_DIR).mkdir(parents=True)
        (driver.pods_dir / TARGET_FOLDER).parent.mkdir(parents=True)
        driver.start()
        yield driver
        assert driver.stop() == 0, driver.log
    finally:
        driver.end()
        mounts.unmount_all_below(place)
        shutil.rmtree(place)


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Return a function that prints although the test passes: how much csi-sanity ran is worth seeing."""

    def say(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}")

    return say
