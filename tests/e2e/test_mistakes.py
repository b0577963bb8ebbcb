"""What a user sees in `kubectl describe pod` where something is wrong with a pod."""

import pytest
from cluster import ROOT, SYSTEM, Cluster, Pod, existing, wait_until
from pods import CONTENT, SOCKETS, VOLUME, application, csi, mount, pod


@pytest.mark.parametrize(
    ("name", "attributes", "words"),
    [
        ("no-socket", {"fdPassingSocketName": ""}, ("fdPassingSocketName", "missing or empty", "volumeAttributes")),
        ("no-empty-dir", {"fdPassingEmptyDirName": ""}, ("fdPassingEmptyDirName", "missing or empty")),
        ("other-empty-dir", {"fdPassingEmptyDirName": "absent"}, ("absent", "emptyDir")),
        ("path", {"fdPassingSocketName": "../x.sock"}, ("fdPassingSocketName", "../x.sock")),
    ],
)
def test_a_wrong_attribute_is_told(cluster: Cluster, name: str, attributes: dict[str, str], words: tuple[str, ...]) -> None:
    made = Pod(cluster, pod(f"wrong-{name}", volume=csi(**attributes)))
    with existing(made):
        made.wait_event(*words)
        made.delete()


def test_two_volumes_with_one_socket_are_told(cluster: Cluster) -> None:
    volumes = [{"name": SOCKETS, "emptyDir": {}}, csi(), {**csi(), "name": "other"}]
    made = Pod(cluster, pod("two-volumes", application("app", None, mount("/data"), mount("/other", "other")), volumes=volumes))
    with existing(made):
        made.wait_event("data.sock", VOLUME, "another fdPassingSocketName")
        made.delete()


def test_a_driver_that_is_not_deployed_is_told(cluster: Cluster) -> None:
    cluster.check("delete", "--wait=true", "-f", str(ROOT / "deploy/csi-driver-daemonset.yaml"))
    try:
        wait_until("kubelet forgets the driver", lambda: not cluster.is_registered())
        made = Pod(cluster, pod("no-driver"))
        with existing(made):
            made.wait_event("meta-fuse-csi-plugin.csi.storage.pfn.io", "not found in the list of registered CSI drivers")
            # It needs nothing but the driver to go on.
            cluster.check("apply", "-f", str(ROOT / "deploy/csi-driver-daemonset.yaml"))
            made.wait_ready(300)
            assert made.read("app", "/data/subdir/test.txt") == CONTENT
            made.delete()
    finally:
        cluster.check("apply", "-f", str(ROOT / "deploy/csi-driver-daemonset.yaml"))
        cluster.wait_for_driver()


def test_the_driver_tells_what_the_pod_did_wrong_in_its_log_too(cluster: Cluster) -> None:
    made = Pod(cluster, pod("told", volume=csi(fdPassingEmptyDirName="absent")))
    with existing(made):
        made.wait_event("absent")
        log = cluster.check("-n", SYSTEM, "logs", "daemonset/meta-fuse-csi-plugin")
        assert [line for line in log.splitlines() if f"pod=default/{made.name}" in line and "absent" in line]
