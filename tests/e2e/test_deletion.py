"""Test that pods are gone within their grace period and ten seconds, whatever their FUSE program does."""

import pytest
from cluster import Cluster, NodeShell, Pod, existing, wait_until
from pods import SERVE_AGAIN_AND_AGAIN, application, mount, pod, sidecar


@pytest.mark.parametrize("how", ["mounted", "in use", "stopped", "killed"])
def test_a_pod_is_gone_in_time(cluster: Cluster, node: NodeShell, how: str) -> None:
    users = [application("app", None, mount("/data"), mount("/part", subPath="subdir"))]
    if how == "in use":
        users.append(application("user", ["sh", "-c", "cd /data/subdir; exec 3<test.txt; while :; do cat test.txt; sleep 0.1; done"]))
    starter = sidecar(
        SERVE_AGAIN_AND_AGAIN
        if how != "killed"
        else "start-sshd; touch /dev/fuse; sshfs root@127.0.0.1:/root/sshfs-example /tmp; sleep 1000"
    )
    made = Pod(cluster, pod(f"deleted-{how.replace(' ', '-')}", *users, starter=starter))
    with existing(made):
        made.wait_ready()
        uid = made.get()["metadata"]["uid"]
        assert node.files(f"pods/{uid}/volumes")
        if how == "stopped":
            node.signal(made, "sshfs", "STOP")
        if how == "killed":
            node.signal(made, "sshfs", "KILL")
        made.delete()
        wait_until("nothing of it is mounted", lambda: not node.mounts(uid))
        wait_until("its folder is gone", lambda: f"pods/{uid}" not in node.files("pods"))


def test_a_pod_that_never_mounts_is_gone_in_time(cluster: Cluster, node: NodeShell) -> None:
    starter = sidecar("trap 'exit 0' TERM; sleep 1000 & wait")
    del starter["startupProbe"]
    made = Pod(cluster, pod("deleted-waiting", starter=starter))
    with existing(made):
        made.wait_ready()
        uid = made.get()["metadata"]["uid"]
        made.delete()
        wait_until("nothing of it is mounted", lambda: not node.mounts(uid))
