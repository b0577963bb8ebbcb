"""Test the ways to deploy the driver: the Go plugin's own manifests, node-driver-registrar, and changes between them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cluster import DRIVER, ROOT, SYSTEM, Cluster, Done, NodeShell, Pod, existing, wait_until
from pods import CONTENT, SERVE_AGAIN_AND_AGAIN, SOCKETS, VOLUME, pod, sidecar

DEPLOY = ROOT / "deploy"
OURS = DEPLOY / "csi-driver-daemonset.yaml"
WITH_REGISTRAR = DEPLOY / "csi-driver-daemonset-registrar.yaml"
GO_PLUGINS = Path(__file__).parent / "manifests/go-csi-driver-daemonset.yaml"

FILE = "/data/subdir/test.txt"


def deploy(cluster: Cluster, path: Path) -> None:
    """Put a DaemonSet in the place of the one that is deployed."""
    cluster.check("apply", "-f", str(path))
    cluster.wait_for_driver()


def undeploy(cluster: Cluster) -> None:
    """Remove the DaemonSet."""
    cluster.check("-n", SYSTEM, "delete", "daemonset", "meta-fuse-csi-plugin", "--ignore-not-found", "--wait=true")
    # Its pods end later, and would share folders with the next ones.
    wait_until("its pods are gone", lambda: not cluster.driver_pods())


@pytest.fixture
def other_daemon_sets(cluster: Cluster) -> Iterator[Cluster]:
    """Yield the cluster, which gets its own DaemonSet back at the end."""
    yield cluster
    # The DaemonSet is deployed from nothing: fields that the other manifest does not name would stay.
    undeploy(cluster)
    deploy(cluster, OURS)


def check_recovers(made: Pod, node: NodeShell) -> None:
    """Kill a pod's program, and see the files of the next one."""
    (program,) = wait_until("sshfs runs", lambda: node.processes(made, "sshfs"))
    node.check(f"kill -9 {program}")
    wait_until("another sshfs runs", lambda: set(node.processes(made, "sshfs")) - {program})
    wait_until("the application reads again", lambda: made.execute("app", f"cat {FILE}").out == CONTENT)


@pytest.mark.parametrize("manifest", [GO_PLUGINS, WITH_REGISTRAR], ids=["the Go plugin's", "with node-driver-registrar"])
def test_another_daemon_set_does_the_same(other_daemon_sets: Cluster, node: NodeShell, manifest: Path) -> None:
    cluster = other_daemon_sets
    undeploy(cluster)
    deploy(cluster, manifest)
    made = Pod(cluster, pod("other-daemonset", starter=sidecar(SERVE_AGAIN_AND_AGAIN)))
    with existing(made):
        made.wait_ready()
        assert made.read("app", FILE) == CONTENT
        check_recovers(made, node)
        # The driver keeps its records where the next one finds them.
        (old,) = [found["metadata"]["name"] for found in cluster.driver_pods()]
        cluster.check("-n", SYSTEM, "delete", "pod", old, "--wait=true")
        cluster.wait_for_driver()
        table = cluster.check(
            *("-n", SYSTEM, "exec", "daemonset/meta-fuse-csi-plugin", "-c", "meta-fuse-csi-plugin", "--"),
            *("meta-fuse-csi-plugin", "status"),
        )
        assert f"{made.namespace}/{made.name}" in table
        check_recovers(made, node)
        made.delete()


def test_from_the_go_plugins_daemon_set_to_ours_under_a_pod_that_runs(other_daemon_sets: Cluster, node: NodeShell) -> None:
    cluster = other_daemon_sets
    undeploy(cluster)
    deploy(cluster, GO_PLUGINS)
    made = Pod(cluster, pod("migrated", starter=sidecar(SERVE_AGAIN_AND_AGAIN)))
    with existing(made):
        made.wait_ready()
        deploy(cluster, OURS)
        assert made.read("app", FILE) == CONTENT
        check_recovers(made, node)
        assert (made.restarts("app"), made.restarts("starter")) == (0, 0)
        uid = made.get()["metadata"]["uid"]
        made.delete()
        wait_until("nothing of it is mounted", lambda: not node.mounts(uid))


def test_kustomize_removes_all_and_deploys_all(cluster: Cluster, node: NodeShell) -> None:
    made = Pod(cluster, pod("kustomized"))
    assert f"plugins_registry/{DRIVER}-reg.sock" in node.files("plugins_registry")
    before = node.mounts("mfcp")  # of other people's pods
    try:
        cluster.check("delete", "--wait=true", "-k", str(DEPLOY), timeout=300)
        wait_until("kubelet forgets the driver", lambda: not cluster.is_registered())
        for gone in (("namespace", SYSTEM), ("csidriver", DRIVER)):
            assert "NotFound" in cluster.run("get", *gone).err
        assert not [name for name in node.files("plugins_registry") if DRIVER in name]
        assert [mount for mount in node.mounts("mfcp") if mount not in before] == []
    finally:
        cluster.check("apply", "-k", str(DEPLOY))
        cluster.wait_for_driver()
    with existing(made):
        made.wait_ready()
        assert made.read("app", FILE) == CONTENT
        made.delete()


def test_metrics_are_a_component(other_daemon_sets: Cluster, tmp_path: Path) -> None:
    cluster = other_daemon_sets
    # kustomize accepts no absolute paths.
    deploy_folder = os.path.relpath(DEPLOY, tmp_path.resolve())
    overlay = {"resources": [deploy_folder], "components": [f"{deploy_folder}/metrics"]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    made = Pod(cluster, pod("measured"))
    with existing(made):
        made.wait_ready()

        def scrape() -> Done:
            (driver,) = cluster.driver_pods()
            return cluster.run("get", "--raw", f"/api/v1/namespaces/{SYSTEM}/pods/{driver['metadata']['name']}:9909/proxy/metrics")

        # Nothing listens unless somebody has asked for it.
        assert "connection refused" in scrape().err
        cluster.check("apply", "-k", str(tmp_path))
        cluster.wait_for_driver()
        assert 'mfcp_volumes{state="mounted"} 1\n' in scrape().out
        made.delete()


def test_persistent_volumes_with_one_handle_in_two_pods(cluster: Cluster) -> None:
    attributes = {"fdPassingEmptyDirName": SOCKETS, "fdPassingSocketName": "data.sock"}
    csi = {"driver": DRIVER, "volumeHandle": "mfcp-e2e", "volumeAttributes": attributes}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": "mfcp-e2e"},
        "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany"], "storageClassName": "", "csi": csi},
    }
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "mfcp-e2e", "namespace": "default"},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "",
            "volumeName": "mfcp-e2e",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    inline = Pod(cluster, pod("inline"))
    cluster.apply(volume, claim)
    try:
        used = {"name": VOLUME, "persistentVolumeClaim": {"claimName": "mfcp-e2e"}}
        pods = [Pod(cluster, pod(f"persistent-{number}", volume=used)) for number in (1, 2)]
        with existing(inline, *pods):
            inline.wait_ready()
            refusal = 'volume mode "Persistent" not supported by driver'
            # kubelet was seen to report it for only one of them.
            wait_until("it is reported", lambda: any(refusal in text for made in pods for text in made.events()))
            cluster.check("replace", "--force", "-f", str(DEPLOY / "csi-driver-persistent.yaml"))
            assert inline.read("app", FILE) == CONTENT
            for made in pods:
                made.wait_ready(300)  # kubelet tries again at growing intervals
                made.execute("app", f"echo {made.name} >/data/name")
            assert [made.read("app", "/data/name") for made in pods] == [f"{made.name}\n" for made in pods]
            pods[0].delete()
            assert pods[1].read("app", FILE) == CONTENT
            pods[1].delete()
    finally:
        cluster.check("-n", "default", "delete", "pvc", "mfcp-e2e", "--wait=true")
        cluster.check("delete", "pv", "mfcp-e2e", "--wait=true")
        # Not the file: it contains the namespace, and the namespace contains the driver.
        cluster.check("delete", "csidriver", DRIVER)
        cluster.check("apply", "-f", str(DEPLOY / "csi-driver.yaml"))


def test_thirty_pods_at_once(cluster: Cluster, node: NodeShell) -> None:
    pods = [Pod(cluster, pod(f"many-{number}", starter=sidecar(SERVE_AGAIN_AND_AGAIN))) for number in range(30)]
    with existing(*pods):
        for made in pods:
            made.wait_ready(600)
        for made in pods:
            assert made.read("app", FILE) == CONTENT
        uids = [made.get()["metadata"]["uid"] for made in pods]
        cluster.check("delete", "pod", *(made.name for made in pods), "--wait=false")
        wait_until("all are gone", lambda: not cluster.run("get", "pods", *(made.name for made in pods), "--ignore-not-found").out, 300)
        table = "\n".join(node.mounts("/pods/"))
        assert not [uid for uid in uids if uid in table]
