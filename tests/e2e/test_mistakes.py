"""Test what `kubectl describe pod`, or a container's log, shows where something is wrong with a pod or a node."""

import json

import pytest
from cluster import DAEMON_SET, DRIVER, ROOT, SYSTEM, Cluster, Pod, existing, wait_until
from pods import CONTENT, SERVE, SOCKETS, VOLUME, application, csi, mount, pod, sidecar


@pytest.mark.parametrize(
    ("name", "attributes", "words"),
    [
        ("no-socket", {"fdPassingSocketName": ""}, ("fdPassingSocketName", "missing or empty", "volumeAttributes")),
        ("no-empty-dir", {"fdPassingEmptyDirName": ""}, ("fdPassingEmptyDirName", "missing or empty")),
        ("other-empty-dir", {"fdPassingEmptyDirName": "absent"}, ("absent", "emptyDir")),
        ("path", {"fdPassingSocketName": "../x.sock"}, ("fdPassingSocketName", "../x.sock")),
    ],
)
def test_a_wrong_attribute_is_reported(cluster: Cluster, name: str, attributes: dict[str, str], words: tuple[str, ...]) -> None:
    made = Pod(cluster, pod(f"wrong-{name}", volume=csi(**attributes)))
    with existing(made):
        made.wait_event(*words)
        made.delete()


def test_two_volumes_with_one_socket_are_reported(cluster: Cluster) -> None:
    volumes = [{"name": SOCKETS, "emptyDir": {}}, csi(), {**csi(), "name": "other"}]
    made = Pod(cluster, pod("two-volumes", application("app", None, mount("/data"), mount("/other", "other")), volumes=volumes))
    with existing(made):
        made.wait_event("data.sock", VOLUME, "another fdPassingSocketName")
        made.delete()


def test_a_driver_that_is_not_deployed_is_reported(cluster: Cluster) -> None:
    cluster.check("delete", "--wait=true", "-f", str(ROOT / "deploy/csi-driver-daemonset.yaml"))
    try:
        wait_until("kubelet forgets the driver", lambda: not cluster.is_registered())
        made = Pod(cluster, pod("no-driver"))
        with existing(made):
            made.wait_event("meta-fuse-csi-plugin.csi.storage.pfn.io", "not found in the list of registered CSI drivers")
            # It needs only the driver to go on.
            cluster.check("apply", "-f", str(ROOT / "deploy/csi-driver-daemonset.yaml"))
            made.wait_ready(300)
            assert made.read("app", "/data/subdir/test.txt") == CONTENT
            made.delete()
    finally:
        cluster.check("apply", "-f", str(ROOT / "deploy/csi-driver-daemonset.yaml"))
        cluster.wait_for_driver()


def test_a_missing_csi_driver_is_reported(cluster: Cluster) -> None:
    cluster.check("delete", "csidriver", DRIVER)
    try:
        made = Pod(cluster, pod("no-csidriver"))
        with existing(made):
            made.wait_event('volume mode "Ephemeral" not supported by driver', "no CSIDriver object")
            cluster.check("apply", "-f", str(ROOT / "deploy/csi-driver.yaml"))
            made.wait_ready(300)
            made.delete()
    finally:
        cluster.check("apply", "-f", str(ROOT / "deploy/csi-driver.yaml"))


def test_a_node_whose_mounts_no_container_would_see_is_reported(cluster: Cluster) -> None:
    manifest = ROOT / "deploy/csi-driver-daemonset.yaml"
    pods_folder = {"name": "pods", "mountPath": "/var/lib/kubelet/pods", "mountPropagation": "None"}
    template = {"spec": {"containers": [{"name": DAEMON_SET, "volumeMounts": [pods_folder]}]}}
    before = cluster.driver_pods()[0]["metadata"]["name"]
    made = Pod(cluster, pod("no-propagation"))
    cluster.check("-n", SYSTEM, "patch", "daemonset", DAEMON_SET, "-p", json.dumps({"spec": {"template": template}}))
    try:
        wait_until("another driver runs", lambda: [found for found in cluster.driver_pods() if found["metadata"]["name"] != before])
        with existing(made):
            made.wait_event("is not shared", "mountPropagation: Bidirectional")
            # It is also shown where the cluster's administrators look.
            (driver,) = (Pod(cluster, found) for found in cluster.driver_pods())
            driver.wait_event("Readiness probe failed", "not ready", "mountPropagation: Bidirectional")
            cluster.check("apply", "-f", str(manifest))
            made.wait_ready(300)
            assert made.read("app", "/data/subdir/test.txt") == CONTENT
            made.delete()
    finally:
        cluster.check("apply", "-f", str(manifest))
        cluster.wait_for_driver()


def test_an_image_without_dev_fuse_is_reported(cluster: Cluster) -> None:
    serve = SERVE.replace("touch /dev/fuse", "")
    assert serve != SERVE
    made = Pod(cluster, pod("no-dev-fuse", starter=sidecar(serve)))
    with existing(made):
        # This message is libfuse's: it gives up before it calls anything of ours.
        printed = "fuse: device not found, try 'modprobe fuse' first\n"
        wait_until("sshfs prints it", lambda: made.kubectl("logs", made.name, "-c", "starter").out.endswith(printed))
        made.delete()


def test_a_dev_fuse_from_another_empty_dir_is_reported(cluster: Cluster) -> None:
    """kubelet makes a folder in place of a subPath that does not exist."""
    starter = sidecar(SERVE.replace("touch /dev/fuse", ""))
    starter["volumeMounts"].append({"name": "other", "mountPath": "/dev/fuse", "subPath": "dev-fuse"})
    volumes = [{"name": SOCKETS, "emptyDir": {}}, {"name": "other", "emptyDir": {}}, csi()]
    made = Pod(cluster, pod("other-dev-fuse", starter=starter, volumes=volumes))
    with existing(made):
        printed = "fuse: failed to open /dev/fuse: Is a directory\n"
        wait_until("sshfs prints it", lambda: made.kubectl("logs", made.name, "-c", "starter").out.endswith(printed))
        made.delete()


def test_the_driver_logs_what_is_wrong_with_the_pod_too(cluster: Cluster) -> None:
    made = Pod(cluster, pod("bad-empty-dir", volume=csi(fdPassingEmptyDirName="absent")))
    with existing(made):
        made.wait_event("absent")
        log = cluster.check("-n", SYSTEM, "logs", "daemonset/meta-fuse-csi-plugin")
        assert [line for line in log.splitlines() if f"pod=default/{made.name}" in line and "absent" in line]
