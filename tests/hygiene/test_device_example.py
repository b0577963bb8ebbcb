"""Check the examples of the fuse device: each asks for the device by the name that the driver gives it, and for nothing else."""

import re

import pytest
import yaml
from test_files import ROOT

from driver.cli import FUSE_RESOURCE
from driver.devices import cdi

FOLDER = ROOT / "examples/device"
ANY = f"{cdi.KIND}={cdi.ANY}"


def test_the_compose_file_asks_for_the_device_and_for_no_privilege() -> None:
    (service,) = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"].values()
    assert service["devices"] == [ANY]
    assert not {"privileged", "cap_add", "security_opt"} & service.keys()


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md", "examples/device/README.md", "examples/device/run"])
def test_commands_name_the_device_as_the_driver_does(page: str) -> None:
    named = re.findall(r"--device ([\w.]+/\w+=\w+)", (ROOT / page).read_text())
    assert named
    assert set(named) == {ANY}


def test_the_pod_asks_for_one_device_and_for_no_privilege() -> None:
    pod = yaml.safe_load((FOLDER / "sshfs/deploy.yaml").read_text())
    (container,) = pod["spec"]["containers"]
    assert container["resources"] == {"limits": {FUSE_RESOURCE: 1}}
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_image_has_nothing_of_ours() -> None:
    dockerfile = (FOLDER / "sshfs/Dockerfile").read_text()
    assert "mfcp" not in dockerfile
    assert "fusermount" not in dockerfile


def test_podman_confines_no_fuse_program_by_apparmor() -> None:
    """A confined one does not ask fusermount3: tests/kernels shows it."""
    (command,) = re.findall(r"^start_container app (.*)$", (FOLDER / "run").read_text(), re.MULTILINE)
    assert "--security-opt apparmor=unconfined" in command
