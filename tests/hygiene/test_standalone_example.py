"""Check the examples for hosts without Kubernetes: the Compose file, the Quadlet files and the page start the same containers."""

import re

import pytest
import yaml
from test_files import ROOT

FOLDER = ROOT / "examples" / "standalone"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
PAGE = (FOLDER / "README.md").read_text()

each_container = pytest.mark.parametrize(("service", "unit"), [("sshfs", "photos-sshfs"), ("gallery", "gallery")])


def of_the_unit(unit: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", (FOLDER / "quadlet" / f"{unit}.container").read_text(), re.MULTILINE)


def of_the_page(name: str) -> list[str]:
    """Return what the page's `docker run` gives to the container of this name."""
    (command,) = re.findall(rf"^    docker run -d --name {name} ((?:.*\\\n)*.*)$", PAGE, re.MULTILINE)
    return re.findall(r"-v (\S+)", command)


@each_container
def test_each_way_gives_a_container_the_same(service: str, unit: str) -> None:
    compose = COMPOSE[service]
    assert sorted(compose["volumes"]) == sorted(of_the_unit(unit, "Volume"))
    assert compose.get("devices", []) == of_the_unit(unit, "AddDevice")
    # The page's command has the driver's empty file instead of the device.
    assert sorted(compose["volumes"]) == sorted(volume for volume in of_the_page(unit) if not volume.endswith("/dev-fuse:/dev/fuse"))


def test_both_run_the_same_program() -> None:
    assert [COMPOSE["sshfs"]["command"]] == of_the_unit("photos-sshfs", "Exec")


def test_a_restart_of_the_driver_stops_no_container() -> None:
    for unit in ("photos-sshfs", "gallery"):
        assert of_the_unit(unit, "Requires") == of_the_unit(unit, "BindsTo") == []


def test_podman_confines_no_fuse_program_by_apparmor() -> None:
    """A confined one does not ask fusermount3: tests/kernels shows it."""
    assert "--security-opt=apparmor=unconfined" in of_the_unit("photos-sshfs", "PodmanArgs")
    assert "start_container sshfs --security-opt apparmor=unconfined " in (FOLDER / "run").read_text()
