"""Pods of the tests' own: a FUSE program in a sidecar, and applications."""

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
# What most images do: the program is the container, and ends with it.
SERVE = f"{_SERVE} exec sshfs -f root@127.0.0.1:/root/sshfs-example /tmp"
# A container that outlives its program: kubelet's back-off would make each new start later than the one before.
SERVE_AGAIN_AND_AGAIN = f"{_SERVE} while :; do sshfs -f root@127.0.0.1:/root/sshfs-example /tmp; sleep 0.1; done"

SLEEP = ["sh", "-c", "trap 'exit 0' TERM; sleep infinity & wait"]


def csi(**attributes: str) -> Manifest:
    """An inline volume."""
    return {
        "name": VOLUME,
        "csi": {
            "driver": DRIVER,
            "volumeAttributes": {"fdPassingEmptyDirName": SOCKETS, "fdPassingSocketName": SOCKET} | attributes,
        },
    }


def mount(path: str, volume: str = VOLUME, **more: Any) -> Manifest:
    """A volumeMount; those of FUSE volumes see what is mounted later."""
    return {"name": volume, "mountPath": path, **({"mountPropagation": "HostToContainer"} if volume == VOLUME else {}), **more}


def application(name: str = "app", script: list[str] | None = None, *mounts: Manifest) -> Manifest:
    """A container that only uses the volume."""
    return {
        "name": name,
        "image": BUSYBOX,
        "imagePullPolicy": "IfNotPresent",
        "command": script or SLEEP,
        "volumeMounts": list(mounts) or [mount("/data")],
    }


def sidecar(serve: str = SERVE, **more: Any) -> Manifest:
    """A container with sshfs and its server, which starts before the applications."""
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
    """A pod's manifest; `volumes` replaces all of them."""
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
