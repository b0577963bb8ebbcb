"""Test the example pods of the Go plugin's users with our images: not a word of their manifests has to change.

Each manifest here has the names, images, environment, volumes and commands of the Go plugin's example of that name.
"""

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from cluster import BUSYBOX, DRIVER, IMAGES, ROOT, Cluster, Manifest, NodeShell, Pod, existing, load, wait_until
from pods import SLEEP
from test_examples import CONTENT, DOWNLOADED, reads

VOLUME = "fuse-csi-ephemeral"
SOCKETS = "fuse-fd-passing"
SOCKET = f"{VOLUME}.sock"
ENDPOINT = "http://localhost:9000"
MINIO_KEYS = {"AWS_ACCESS_KEY_ID": "minioadmin", "AWS_SECRET_ACCESS_KEY": "minioadmin"}

# sshfs' manifests have no command: the images' own CMD runs. The others' are these.
COMMANDS = {
    "proxy-mountpoint-s3": f"mount-s3 test-bucket /tmp --endpoint-url {ENDPOINT} -d --allow-other --auto-unmount --foreground"
    " --force-path-style",
    "proxy-goofys": f"/goofys --endpoint {ENDPOINT} -f test-bucket /tmp",
    "proxy-s3fs": f"touch /dev/fuse && s3fs test-bucket /tmp -o url={ENDPOINT} -o use_path_request_style -f",
    "proxy-ros3fs": f"touch /dev/fuse && /ros3fs /tmp --endpoint={ENDPOINT} --bucket_name=test-bucket/ --cache_dir=/ro3fs-temp -f",
    "starter-ros3fs": f"/mfcp-bin/fuse-starter --fd-passing-socket-path /{SOCKETS}/{SOCKET} -- /ros3fs /dev/fd/3"
    f" --endpoint={ENDPOINT} --bucket_name=test-bucket/ --cache_dir=/ro3fs-temp -f",
}
NAMES = [*COMMANDS, "proxy-sshfs", "starter-sshfs", "proxy-gcsfuse"]
PROCESSES = {"mountpoint-s3": "mount-s3"}  # where the program has another name


def sidecar(name: str, image: str, environment: dict[str, str], **more: Any) -> Manifest:
    """Return an init container that runs beside the others."""
    env = [{"name": key, "value": value} for key, value in environment.items()]
    return {"name": name, "image": image, "imagePullPolicy": "IfNotPresent", "restartPolicy": "Always", "env": env, **more}


def data_mount(path: str = "/data", **more: str) -> Manifest:
    """Return the volumeMount of the FUSE volume."""
    return {"name": VOLUME, "mountPath": path, "readOnly": True, "mountPropagation": "HostToContainer", **more}


def manifest(name: str) -> Manifest:
    """Return the pod's manifest."""
    kind, _, program = name.partition("-")
    is_proxy = kind == "proxy"
    sockets_path = "/fusermount3-proxy" if is_proxy else f"/{SOCKETS}"
    environment = {"FUSERMOUNT3PROXY_FDPASSING_SOCKPATH": f"{sockets_path}/{SOCKET}"} if is_proxy else {}
    starter = sidecar(
        "starter",
        f"{IMAGES}/mfcp-example-{name}:latest",
        environment,
        volumeMounts=[{"name": SOCKETS, "mountPath": sockets_path}, data_mount()],
        startupProbe={
            "exec": {"command": ["sh", "-c", "mount | grep /data | grep fuse"]},
            "periodSeconds": 1,
            "failureThreshold": 120,
        },
    )
    init_containers = [starter]
    volumes: list[Manifest] = [
        {"name": SOCKETS, "emptyDir": {}},
        {
            "name": VOLUME,
            "csi": {
                "driver": DRIVER,
                "readOnly": True,
                "volumeAttributes": {"fdPassingEmptyDirName": SOCKETS, "fdPassingSocketName": SOCKET},
            },
        },
    ]
    spec: Manifest = {}
    if name in COMMANDS:
        starter["command"] = ["/bin/bash", "-c", f"./configure_minio.sh && {COMMANDS[name]}"]
        keys = {"AWSACCESSKEYID": "minioadmin", "AWSSECRETACCESSKEY": "minioadmin"} if program == "s3fs" else MINIO_KEYS
        starter["env"] += [{"name": key, "value": value} for key, value in keys.items()]
        minio = {"MINIO_ROOT_USER": "minioadmin", "MINIO_ROOT_PASSWORD": "minioadmin"}
        arguments = ["server", "/data", "--console-address", ":9090"]
        init_containers.insert(0, sidecar("minio", "quay.io/minio/minio:latest", minio, args=arguments))
    if program == "gcsfuse":
        # Besides what the Go plugin's has, it needs a server that stands in for Google's, and its address.
        starter["command"] = ["gcsfuse"]
        starter["args"] = ["--foreground", "--implicit-dirs", "--temp-dir=/gcsfuse-temp"]
        starter["args"] += ["--custom-endpoint=http://127.0.0.1:4443/storage/v1/", "--anonymous-access", "test-bucket", "/tmp"]
        starter["volumeMounts"].append({"name": "temp", "mountPath": "/gcsfuse-temp"})
        volumes.append({"name": "temp", "emptyDir": {}})
        spec["serviceAccountName"] = "gcsfuse"
        (fake,) = load(ROOT / "examples/proxy/gcsfuse/deploy-fake.yaml")
        init_containers[:0] = fake["spec"]["initContainers"][:-1]
        volumes += [volume for volume in fake["spec"]["volumes"] if volume["name"] == "objects"]
    application = {
        "name": "busybox",
        "image": BUSYBOX,
        "imagePullPolicy": "IfNotPresent",
        "command": SLEEP,
        "volumeMounts": [data_mount(), data_mount("/data-subpath", subPath="subdir")],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"mfcp-example-{name}", "namespace": "csi-dev" if program == "gcsfuse" else "default"},
        "spec": {
            "terminationGracePeriodSeconds": 10,
            "initContainers": init_containers,
            "containers": [application],
            "volumes": volumes,
            **spec,
        },
    }


def names() -> list[str]:
    """Return the pods whose images can be made here."""
    return [name for name in NAMES if os.environ.get("MFCP_E2E_ALL") or name.partition("-")[2] not in DOWNLOADED]


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[None]:
    """Make the namespace and the service account of gcsfuse's pod."""
    made: list[Manifest] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "csi-dev"}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "gcsfuse", "namespace": "csi-dev"}},
    ]
    cluster.apply(*made)
    yield
    cluster.check("delete", "namespace", "csi-dev", "--wait=true", timeout=300)


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("name", names())
def test_a_pod_of_the_go_plugin_runs_unchanged_and_recovers(cluster: Cluster, node: NodeShell, name: str) -> None:
    program = name.partition("-")[2]
    content = {"sshfs": CONTENT["sshfs"], "gcsfuse": "Hello from the bucket.\n"}.get(program, CONTENT["minio"])
    pod = Pod(cluster, manifest(name))
    with existing(pod):
        pod.wait_ready()
        files = ("/data/subdir/test.txt", "/data-subpath/test.txt")
        assert [pod.read("busybox", file) for file in files] == [content] * 2
        assert pod.restarts("starter") == 0
        node.signal(pod, PROCESSES.get(program, program), "KILL")
        wait_until("kubelet has seen it", lambda: pod.restarts("starter") == 1)
        for file in files:
            wait_until(f"{file} is there again", partial(reads, pod, file, content))
        pod.delete()
