"""Make manifests of the tests' own pods: a FUSE program in a sidecar, and applications."""

from typing import Any

from cluster import BUSYBOX, DRIVER, IMAGES, Manifest

SSHFS = f"{IMAGES}/mfcp-example-proxy-sshfs:latest"

VOLUME = "data"
SOCKETS = "fuse-fd-passing"
SOCKET = "data.sock"

CONTENT = "Hello from the SSH server.\n"

_SERVE = """
start-sshd
touch /dev/fuse
"""
# Most images do this: the program is the container, and the container ends with it.
SERVE = f"{_SERVE} exec sshfs -f root@127.0.0.1:/root/sshfs-example /tmp"
# This container outlives its program: with kubelet's back-off each restart would be later than the one before.
SERVE_AGAIN_AND_AGAIN = f"{_SERVE} while :; do sshfs -f root@127.0.0.1:/root/sshfs-example /tmp; sleep 0.1; done"

SLEEP = ["sh", "-c", "trap 'exit 0' TERM; sleep infinity & wait"]


def csi(**attributes: str) -> Manifest:
    """Return an inline volume."""
    return {
        "name": VOLUME,
        "csi": {
            "driver": DRIVER,
            "volumeAttributes": {"fdPassingEmptyDirName": SOCKETS, "fdPassingSocketName": SOCKET} | attributes,
        },
    }


def mount(path: str, volume: str = VOLUME, **more: Any) -> Manifest:
    """Return a volumeMount; with a FUSE volume it sees later mounts too."""
    return {"name": volume, "mountPath": path, **({"mountPropagation": "HostToContainer"} if volume == VOLUME else {}), **more}


def application(name: str = "app", script: list[str] | None = None, *mounts: Manifest) -> Manifest:
    """Return a container that only uses the volume."""
    return {
        "name": name,
        "image": BUSYBOX,
        "imagePullPolicy": "IfNotPresent",
        "command": script or SLEEP,
        "volumeMounts": list(mounts) or [mount("/data")],
    }


def sidecar(serve: str = SERVE, **more: Any) -> Manifest:
    """Return a container with sshfs and its server, which starts before the applications."""
    return {
        "name": "starter",
        "image": SSHFS,
        "imagePullPolicy": "IfNotPresent",
        "restartPolicy": "Always",
        "command": ["sh", "-c", serve],
        "env": [{"name": "FUSERMOUNT3PROXY_FDPASSING_SOCKPATH", "value": f"/fusermount3-proxy/{SOCKET}"}],
        "volumeMounts": [mount("/fusermount3-proxy", SOCKETS), mount("/data")],
        "startupProbe": {
            "exec": {"command": ["sh", "-c", "mount | grep /data | grep fuse"]},
            "periodSeconds": 1,
            "failureThreshold": 120,
            "timeoutSeconds": 10,
        },
        **more,
    }


def pod(
    name: str,
    *containers: Manifest,
    starter: Manifest | None = None,
    volume: Manifest | None = None,
    volumes: list[Manifest] | None = None,
    grace: int = 5,
    **spec: Any,
) -> Manifest:
    """Return a pod's manifest; `volumes` replaces all of its volumes."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"mfcp-e2e-{name}", "namespace": "default"},
        "spec": {
            "terminationGracePeriodSeconds": grace,
            "initContainers": [sidecar() if starter is None else starter],
            "containers": list(containers) or [application()],
            "volumes": volumes or [{"name": SOCKETS, "emptyDir": {}}, volume or csi()],
            **spec,
        },
    }
