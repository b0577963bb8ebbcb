"""Test pods whose root is another user of the node: what docs/guide.md says of `hostUsers: false`, with a real kubelet and runtime."""

from functools import partial

import pytest
from cluster import BUSYBOX, Cluster, Manifest, NodeShell, Pod, existing, load, wait_until
from pods import CONTENT, SLEEP, SOCKET, application, mount, pod, sidecar
from test_examples import IMAGE_VOLUME, reads

IDMAP_REFUSED = "failed to set MOUNT_ATTR_IDMAP"

# The node's number of the pod's root: the files belong to root of the pod.
_OWNER = "read _ uid _ </proc/self/uid_map"
_SSHFS = "sshfs -f -o uid=$uid,gid=$uid,allow_other root@127.0.0.1:/root/sshfs-example"
_STARTER = f"/mfcp-bin/fuse-starter --fd-passing-socket-path /fusermount3-proxy/{SOCKET}"
PROGRAMS = {
    "fusermount3": f"start-sshd; touch /dev/fuse; {_OWNER}; exec {_SSHFS} /tmp",
    "fuse-starter": f"start-sshd; {_OWNER}; exec {_STARTER} -- {_SSHFS} /dev/fd/3",
}


@pytest.fixture(scope="module", autouse=True)
def has_user_namespaces(cluster: Cluster) -> None:
    """Skip these tests, and show the node's own words, where its runtime does not start such pods."""
    container = {"name": "app", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": SLEEP}
    bare = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "mfcp-e2e-host-users", "namespace": "default"},
        "spec": {"hostUsers": False, "terminationGracePeriodSeconds": 1, "containers": [container]},
    }
    found = Pod(cluster, bare)
    with existing(found):
        refusals = wait_until("the pod is ready or refused", lambda: [""] if found.is_ready() else refused(found))
    if refusals[0]:
        pytest.skip(f"this node does not start pods with hostUsers: false: {refusals[0]}")


def refused(found: Pod) -> list[str]:
    """Return the pod's events that say that there are no user namespaces."""
    return [event for event in found.events() if "user namespaces" in event]


def serving(program: str) -> Manifest:
    """Return the FUSE container: not a sidecar, because the application has to start before it mounts."""
    container = sidecar(PROGRAMS[program])
    del container["restartPolicy"], container["startupProbe"]
    return container


def host_users_pod(name: str, *containers: Manifest) -> Manifest:
    """Return the manifest of a pod in a user namespace of its own, without init containers."""
    manifest = pod(name, *containers)
    del manifest["spec"]["initContainers"]
    manifest["spec"]["hostUsers"] = False
    return manifest


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_serves_applications_that_are_listed_before_it(cluster: Cluster, node: NodeShell, program: str) -> None:
    # kubelet starts containers in the order of the manifest.
    tested = Pod(cluster, host_users_pod(f"host-users-{program}", application("busybox"), serving(program)))
    with existing(tested):
        tested.wait_ready()
        serves_and_recovers(tested, node, "sshfs", CONTENT)
        assert tested.execute("busybox", "echo x >/data/new && cat /data/new").out == "x\n"
        tested.delete()


def test_rclone_from_an_image_volume(cluster: Cluster, node: NodeShell) -> None:
    """The pod is examples/proxy/rclone's, whose programs are not root in the pod either."""
    (manifest,) = load(IMAGE_VOLUME)
    manifest["metadata"]["name"] = "mfcp-e2e-host-users-rclone"
    spec = manifest["spec"]
    spec["hostUsers"] = False
    starter = spec["initContainers"].pop()
    del starter["restartPolicy"], starter["startupProbe"]
    options = f"--uid $uid --gid $uid {' '.join(starter.pop('args')).replace('--read-only', '')}"
    starter["command"] = ["sh", "-c", f"{_OWNER}; exec rclone {options}"]
    # A container with a subPath does not start (below).
    spec["containers"][0]["volumeMounts"] = [each for each in spec["containers"][0]["volumeMounts"] if "subPath" not in each]
    spec["containers"].append(starter)
    tested = Pod(cluster, manifest)
    with existing(tested):
        tested.wait_ready()
        serves_and_recovers(tested, node, "rclone", "Hello from MinIO.\n")
        tested.delete()


def serves_and_recovers(tested: Pod, node: NodeShell, process: str, content: str) -> None:
    """Check that `busybox` sees the file as its root's, and sees it again after the FUSE program was killed."""
    file = "/data/subdir/test.txt"
    wait_until("the application sees the file", partial(reads, tested, file, content))
    assert tested.execute("busybox", f"stat -c '%u %g' {file}").out == "0 0\n"
    inside, outside, _ = tested.execute("starter", "cat /proc/self/uid_map").out.split()
    assert int(inside) == 0 < int(outside)
    node.signal(tested, process, "KILL")
    wait_until("kubelet has seen it", lambda: tested.restarts("starter") == 1)
    wait_until("the application sees the file again", partial(reads, tested, file, content))
    assert tested.restarts("busybox") == 0


def test_a_container_that_starts_after_the_mount_fails_with_the_words_of_the_guide(cluster: Cluster) -> None:
    manifest = pod("host-users-late", application())
    manifest["spec"]["hostUsers"] = False
    tested = Pod(cluster, manifest)
    with existing(tested):
        tested.wait_event(IDMAP_REFUSED)
        tested.delete()


def test_a_sub_path_does_not_work(cluster: Cluster) -> None:
    late = application("late", None, mount("/data", subPath="subdir"))
    tested = Pod(cluster, host_users_pod("host-users-sub-path", late, serving("fusermount3")))
    with existing(tested):
        tested.wait_event("failed to create subPath directory")
        tested.wait_event(IDMAP_REFUSED)
        tested.delete()
