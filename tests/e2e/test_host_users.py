"""Test pods whose root is another user of the node: what docs/guide.md says of `hostUsers: false`, with a real kubelet and runtime.

A node whose container runtime has no user namespaces refuses such pods. Then that is what is tested.
"""

from functools import partial

import pytest
from cluster import BUSYBOX, Cluster, Manifest, NodeShell, Pod, existing, wait_until
from pods import CONTENT, SLEEP, SOCKET, application, pod, sidecar

IDMAP_REFUSED = "failed to set MOUNT_ATTR_IDMAP"

# The node's number of the pod's root: the files belong to root of the pod.
_OWNER = "read _ uid _ </proc/self/uid_map"
_SSHFS = "sshfs -f -o uid=$uid,gid=$uid,allow_other root@127.0.0.1:/root/sshfs-example"
_STARTER = f"/mfcp-bin/fuse-starter --fd-passing-socket-path /fusermount3-proxy/{SOCKET}"
PROGRAMS = {
    "fusermount3": f"start-sshd; touch /dev/fuse; {_OWNER}; exec {_SSHFS} /tmp",
    "fuse-starter": f"start-sshd; {_OWNER}; exec {_STARTER} -- {_SSHFS} /dev/fd/3",
}


@pytest.fixture(scope="module")
def has_user_namespaces(cluster: Cluster) -> bool:
    """Return whether the node's runtime starts such pods. Where it does not, it says so."""
    bare = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "mfcp-e2e-host-users", "namespace": "default"},
        "spec": {
            "hostUsers": False,
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "app", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": SLEEP}],
        },
    }
    found = Pod(cluster, bare)
    with existing(found):
        wait_until("the pod is ready or refused", lambda: found.is_ready() or any("user namespaces" in event for event in found.events()))
        return found.is_ready()


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
def test_a_program_serves_applications_that_are_listed_before_it(
    cluster: Cluster, node: NodeShell, has_user_namespaces: bool, program: str
) -> None:
    if not has_user_namespaces:
        return  # has_user_namespaces has checked what the node says
    # kubelet starts containers in the order of the manifest.
    tested = Pod(cluster, host_users_pod(f"host-users-{program}", application(), serving(program)))
    with existing(tested):
        tested.wait_ready()
        wait_until("the application sees the file", partial(reads_from, tested, "app"))
        assert tested.execute("app", "stat -c '%u %g' /data/subdir/test.txt").out == "0 0\n"
        assert tested.execute("app", "echo x >/data/new && cat /data/new").out == "x\n"
        uid_map = tested.execute("starter", "cat /proc/self/uid_map").out.split()
        assert uid_map[0] == "0"
        assert int(uid_map[1]) > 0
        node.signal(tested, "sshfs", "KILL")
        wait_until("kubelet has seen it", lambda: tested.restarts("starter") == 1)
        wait_until("the application sees the file again", partial(reads_from, tested, "app"))
        assert tested.restarts("app") == 0
        tested.delete()


def reads_from(tested: Pod, container: str) -> bool:
    """Return whether a container reads the file."""
    return tested.execute(container, "cat /data/subdir/test.txt").out == CONTENT


def test_a_container_that_starts_after_the_mount_fails_with_the_words_of_the_guide(cluster: Cluster, has_user_namespaces: bool) -> None:
    if not has_user_namespaces:
        return
    manifest = pod("host-users-late", application())
    manifest["spec"]["hostUsers"] = False
    tested = Pod(cluster, manifest)
    with existing(tested):
        tested.wait_event(IDMAP_REFUSED)
        tested.delete()
