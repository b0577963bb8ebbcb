"""Test what the driver does for kubelet besides CSI, and where it keeps its files, as in a DaemonSet's pod."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from harness import mounts
from harness.driver import Driver, command
from harness.events import wait_until
from harness.programs import REPOSITORY

from driver.api.csi import NAME
from driver.api.rpc import csi_pb2, csi_pb2_grpc, pluginregistration_pb2, pluginregistration_pb2_grpc

_END = 20.0  # seconds


class DaemonSetDriver:
    """Runs a driver whose root is read-only except for a folder, as in the Go plugin's manifest."""

    def __init__(self, folder: Path) -> None:
        self.csi_socket, self.registrations = folder / "csi.sock", folder / "registration"
        self.socket = self.registrations / f"{NAME}-reg.sock"
        self._log = folder / "log"
        options = [f"--endpoint=unix:{self.csi_socket}", "--nodeid=n", f"--pods-dir={folder}/pods"]
        options += ["--kubelet-registration-path=/node/csi.sock", f"--plugin-registration-path={self.registrations}"]
        script = 'mount -t tmpfs -o ro none /run && exec "$@"'
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", script, "sh", *command(), *options], cwd=REPOSITORY, stdout=log, stderr=log
            )
        wait_until("the driver registers", self.socket.exists, _END)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def kubelet(self) -> grpc.Channel:
        return grpc.insecure_channel(f"unix:{self.socket}")


@pytest.fixture
def driver(folder: Path) -> Iterator[DaemonSetDriver]:
    place = Path(tempfile.mkdtemp(prefix="daemonset-", dir=folder))
    made = DaemonSetDriver(place)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait(_END)
        mounts.unmount_all_below(place)


def test_a_driver_with_a_read_only_root_keeps_its_things_beside_its_socket(driver: DaemonSetDriver) -> None:
    assert {"dev", "state", "admin.sock"} <= set(os.listdir(driver.csi_socket.parent / ".mfcp"))
    with grpc.insecure_channel(f"unix:{driver.csi_socket}") as channel:
        assert csi_pb2_grpc.IdentityStub(channel).Probe(csi_pb2.ProbeRequest()).ready.value
    # In a container of such a pod there is no /run/mfcp either.
    for options in ([f"--endpoint=unix:{driver.csi_socket}"], [f"--run-dir={driver.csi_socket.parent}/.mfcp"]):
        asked = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o ro none /run && exec "$@"', "sh", *command(), *options, "status"]
        status = subprocess.run(asked, cwd=REPOSITORY, capture_output=True, text=True, timeout=_END)
        assert status.returncode == 0, status.stderr
        assert "ready" in status.stdout


def test_a_driver_that_stops_is_no_longer_registered(driver: DaemonSetDriver) -> None:
    with driver.kubelet() as channel:
        info = pluginregistration_pb2_grpc.RegistrationStub(channel).GetInfo(pluginregistration_pb2.InfoRequest())
        assert (info.name, info.endpoint) == (NAME, "/node/csi.sock")
    driver.process.send_signal(signal.SIGTERM)
    assert driver.process.wait(_END) == 0
    assert not driver.socket.exists()


@pytest.mark.parametrize("name", ["csi_socket", "socket"])
def test_a_driver_whose_socket_somebody_removed_ends_so_that_it_is_started_again(driver: DaemonSetDriver, name: str) -> None:
    path: Path = getattr(driver, name)
    path.unlink()
    assert driver.process.wait(_END) == 1
    assert f"somebody has removed {path}, by which" in driver.log
    assert "Traceback" not in driver.log


def test_a_driver_that_somebody_else_registers_says_that_its_socket_was_removed(folder: Path) -> None:
    """The driver goes on: without Kubernetes nobody may want that socket."""
    place = Path(tempfile.mkdtemp(prefix="unregistered-", dir=folder))
    driver = Driver(place)
    driver.start()
    try:
        assert driver.cli("status").returncode == 0
        driver.csi_socket.unlink()
        status = driver.cli("status")
        assert status.returncode == 1
        assert f"not ready: somebody has removed {driver.csi_socket}, by which" in status.stdout
        assert driver.cli("volume", "list").returncode == 0
    finally:
        driver.end()
        mounts.unmount_all_below(place)


def test_a_driver_that_kubelet_refuses_ends_so_that_it_is_started_again(driver: DaemonSetDriver) -> None:
    with driver.kubelet() as channel:
        kubelet = pluginregistration_pb2_grpc.RegistrationStub(channel)
        kubelet.NotifyRegistrationStatus(pluginregistration_pb2.RegistrationStatus(plugin_registered=False, error="too old"))
    assert driver.process.wait(_END) == 1
    assert driver.log.splitlines()[-1] == "Error: kubelet does not register the driver: too old"
    assert not driver.socket.exists()
