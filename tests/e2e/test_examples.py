"""Test each example's deploy.yaml as its users apply it, and what the Go plugin's own check looks at."""

import os
from functools import partial
from pathlib import Path

import pytest
import yaml
from cluster import ROOT, SOON, Cluster, Pod, existing, load, wait_until

CONTENT = {"sshfs": "Hello from the SSH server.\n", "minio": "Hello from MinIO.\n"}

# The programs of these are downloaded when their images are built, from places that not every network reaches. README.md says what
# stand-ins/make makes instead.
DOWNLOADED = ("goofys", "mountpoint-s3", "ros3fs")

IMAGE_VOLUME = ROOT / "examples/proxy/rclone/deploy-image-volume.yaml"


def examples() -> list[Path]:
    """Return the manifest of every example's pod."""
    found = [path for kind in ("proxy", "starter") for path in (ROOT / "examples" / kind).glob("*/deploy*.yaml")]
    left_out = () if os.environ.get("MFCP_E2E_ALL") else DOWNLOADED
    return sorted(path for path in found if path.parent.name not in (*left_out, "gcsfuse") and path != IMAGE_VOLUME)  # see below


@pytest.mark.parametrize("path", [pytest.param(path, id=str(path.relative_to(ROOT / "examples"))) for path in examples()])
def test_an_example_shows_its_files_and_goes(cluster: Cluster, path: Path) -> None:
    (manifest,) = [manifest for manifest in load(path) if manifest["kind"] == "Pod"]
    pod = Pod(cluster, manifest)
    expected = CONTENT["sshfs" if path.parent.name == "sshfs" else "minio"]
    with existing(pod):
        pod.wait_ready()
        for file in ("/data/subdir/test.txt", "/data-subpath/test.txt"):
            assert pod.read("busybox", file) == expected
        refused = pod.execute("busybox", "echo x >/data/new")
        assert refused.code != 0
        assert "Read-only file system" in refused.err
        assert all(pod.restarts(c["name"]) == 0 for c in [*manifest["spec"]["initContainers"], *manifest["spec"]["containers"]])
        pod.delete()


def with_a_bucket() -> list[Path]:
    """Return the examples whose program asks the pod's MinIO for what is new, and whose image has MinIO's client."""
    return [path for path in examples() if path.name == "deploy.yaml" and path.parent.name in ("goofys", "mountpoint-s3", "s3fs")]


@pytest.mark.parametrize("path", [pytest.param(path, id=str(path.relative_to(ROOT / "examples"))) for path in with_a_bucket()])
def test_what_is_uploaded_appears(cluster: Cluster, path: Path) -> None:
    """It runs the Go plugin's own commands, in the same container."""
    (manifest,) = load(path)
    pod = Pod(cluster, manifest)
    with existing(pod):
        pod.wait_ready()
        commands = [
            "cd /root",
            "echo 'hello from mc' >hello.txt",
            "/usr/bin/mc cp hello.txt k8s-minio-dev/test-bucket",
            "/usr/bin/mc cp hello.txt k8s-minio-dev/test-bucket/subdir/",
        ]
        done = pod.execute("starter", " && ".join(commands))
        assert done.code == 0, done.err
        for file in ("/data/hello.txt", "/data/subdir/hello.txt", "/data-subpath/hello.txt"):
            wait_until(f"{file} appears", partial(reads, pod, file, "hello from mc\n"))
        pod.delete()


def reads(pod: Pod, file: str, content: str) -> bool:
    """Return whether an application reads `content`."""
    return pod.execute("busybox", f"cat {file}").out == content


def test_a_job_with_a_sidecar_ends(cluster: Cluster) -> None:
    path = str(ROOT / "examples/proxy/sshfs/job.yaml")
    cluster.check("apply", "-f", path)
    try:
        cluster.check("wait", "--for=condition=Complete", "job/mfcp-example-job-sshfs", f"--timeout={SOON}s", timeout=SOON + 10)
        assert cluster.check("logs", "job/mfcp-example-job-sshfs", "-c", "busybox") == "27 /data/subdir/test.txt\n"
        wait_until("the sidecar has ended too", lambda: not running(cluster, "mfcp-example-job-sshfs"))
    finally:
        cluster.check("delete", "--wait=true", "-f", path)


def running(cluster: Cluster, job: str) -> list[str]:
    """Return the phases of a job's pods that have not ended."""
    pods = cluster.json("get", "pods", "-l", f"job-name={job}")["items"]
    return [pod["status"]["phase"] for pod in pods if pod["status"]["phase"] not in ("Succeeded", "Failed")]


def test_an_unmodified_image_runs_in_a_restricted_namespace(cluster: Cluster) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/enforce-version": "latest"}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "mfcp-e2e-restricted", "labels": labels}}
    (manifest,) = load(ROOT / "examples/proxy/rclone/deploy.yaml")
    manifest["metadata"]["namespace"] = "mfcp-e2e-restricted"
    pod = Pod(cluster, manifest)
    cluster.apply(namespace)
    try:
        cluster.check("-n", pod.namespace, "get", "serviceaccounts")
        # The namespace really is a restricted one.
        privileged = {"name": "x", "image": "x", "securityContext": {"privileged": True}}
        bad = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "x", "namespace": pod.namespace},
            "spec": {"containers": [privileged]},
        }
        assert "violates PodSecurity" in cluster.run("apply", "-f", "-", stdin=yaml.safe_dump(bad)).err
        wait_until("the namespace has its service account", lambda: pod.kubectl("get", "serviceaccount", "default").code == 0)
        with existing(pod):
            pod.wait_ready()
            assert pod.read("busybox", "/data/subdir/test.txt") == pod.read("busybox", "/data-subpath/test.txt") == CONTENT["minio"]
            assert pod.execute("starter", "id -u; grep CapEff /proc/1/status; touch /x").out.split() == ["10001", "CapEff:", "0" * 16]
            pod.delete()
    finally:
        cluster.check("delete", "namespace", "mfcp-e2e-restricted", "--wait=true", timeout=300)


def test_an_image_volume_brings_our_programs(cluster: Cluster) -> None:
    (manifest,) = load(IMAGE_VOLUME)
    minor = int(cluster.json("version")["serverVersion"]["minor"].rstrip("+"))
    if minor < 35:
        pytest.skip(f"Kubernetes has image volumes by default since 1.35, and this is 1.{minor}")
    pod = Pod(cluster, manifest)
    with existing(pod):
        pod.wait_ready()
        assert pod.read("busybox", "/data/subdir/test.txt") == pod.read("busybox", "/data-subpath/test.txt") == CONTENT["minio"]
        for name in ("fusermount3", "fusermount", "fuse-starter"):
            assert pod.execute("starter", f"command -v {name}").out == f"/opt/mfcp/bin/{name}\n"
        pod.delete()


def test_gcsfuse_of_a_server_that_stands_in_for_google(cluster: Cluster) -> None:
    (manifest,) = load(ROOT / "examples/proxy/gcsfuse/deploy-fake.yaml")
    # Users of Google's service run the same, except for the bucket's server.
    (real,) = load(ROOT / "examples/proxy/gcsfuse/deploy.yaml")
    (starter,) = real["spec"]["initContainers"]
    assert starter["args"][-2:] == ["BUCKET", "/tmp"]
    starter["args"][-2:] = ["--custom-endpoint=http://127.0.0.1:4443/storage/v1/", "--anonymous-access", "test-bucket", "/tmp"]
    assert manifest["spec"]["initContainers"][-1] == starter
    assert manifest["spec"]["containers"] == real["spec"]["containers"]
    pod = Pod(cluster, manifest)
    with existing(pod):
        pod.wait_ready()
        for path in ("/data/subdir/test.txt", "/data-subpath/test.txt"):
            assert pod.read("busybox", path) == "Hello from the bucket.\n"
        pod.delete()
