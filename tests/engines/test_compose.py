"""Test that the Compose file of examples/device gives its container a fuse device, by podman-compose."""

import shutil
from pathlib import Path

import pytest
import yaml
from engines import Refused, call, podman
from harness.container import limits
from harness.driver import Driver
from harness.events import wait_until
from harness.programs import REPOSITORY, runtime

EXAMPLE = REPOSITORY / "examples/device/compose.yaml"
MOUNTPOINT = "/mnt/photos"


def test_the_compose_file_brings_the_device(folder: Path, plain_root: Path, driver: Driver) -> None:
    missing = [name for name in ("podman", "podman-compose") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"this machine has no {' and no '.join(missing)}")
    place = folder / "compose"
    place.mkdir()
    (service,) = yaml.safe_load(EXAMPLE.read_text())["services"].values()
    assert MOUNTPOINT in service["command"]
    # The image that is imported here has another program, no network and no folder with keys.
    service["image"] = "mfcp-test"
    service["command"] = f"sh -c 'mkdir -p {MOUNTPOINT} && hello {MOUNTPOINT} && exec sleep 600'"
    service["network_mode"] = "none"
    del service["volumes"]
    (place / "compose.yaml").write_text(yaml.safe_dump({"services": {"photos": service}}))
    with podman(place, plain_root, runtime()) as containers:
        engine = containers.command
        call("tar", "--create", "--file", place / "image.tar", "--directory", plain_root, ".")
        call(*engine, "import", place / "image.tar", "localhost/mfcp-test")
        compose = ["podman-compose", "--podman-args", " ".join(map(str, engine[1:])), "--podman-run-args", " ".join(map(str, limits()))]
        call(*compose, "up", "--detach", "--no-build", cwd=place)
        try:
            name = call(*engine, "ps", "--quiet", "--latest")
            assert name

            def reads() -> bool:
                try:
                    containers.run(name, f"grep -q 'Hello World!' {MOUNTPOINT}/hello")
                    return True
                except Refused:
                    return False

            wait_until("it is mounted", reads)
        finally:
            call(*compose, "down", cwd=place)
            containers.remove(name)
