"""Test the fuse device on a real kubelet: pods of a restricted namespace, as an ordinary user with a read-only root, mount where they like.

The image has Debian's sshfs and bindfs, and nothing of this project.
"""

import json
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import yaml
from cluster import DAEMON_SET, IMAGES, ROOT, SYSTEM, Cluster, Done, Manifest, NodeShell, Pod, existing, load, wait_until
from test_deployments import OURS, WITH_REGISTRAR, deploy, undeploy

RESOURCE = "mfcp.storage.pfn.io/fuse"
IMAGE = f"{IMAGES}/mfcp-example-device-sshfs:latest"
EXAMPLE = ROOT / "examples/device/sshfs/deploy.yaml"
NAMESPACE = "mfcp-e2e-device"
USER = 10001
DEVICES = 256  # of the node: --fuse-devices

HOME = "/home/demo"
MOUNTPOINT = f"{HOME}/mnt"
CONTENT = "content\n"
PREPARE = f"mkdir -p {HOME}/source {MOUNTPOINT} && echo content >{HOME}/source/file"
MOUNT = f"bindfs {HOME}/source {MOUNTPOINT}"
SLEEP = "trap 'exit 0' TERM; sleep infinity & wait"
IS_MOUNTED = f"mountpoint -q {MOUNTPOINT}"
# It counts what it reads, and keeps every error.
READ_FOR_EVER = f"""
while :; do
    if content=$(cat {MOUNTPOINT}/file 2>&1) && [ "$content" = content ]; then
        echo $((reads += 1)) >{HOME}/reads.new && mv {HOME}/reads.new {HOME}/reads
    else
        echo "$content" >>{HOME}/errors
    fi
    sleep 0.01
done
"""


def container(script: str = f"{PREPARE}; {SLEEP}", name: str = "app", count: int = 1, **more: Any) -> Manifest:
    """Return a container with fuse devices."""
    return {
        "name": name,
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", script],
        "resources": {"limits": {RESOURCE: count}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "home", "mountPath": HOME}],
        **more,
    }


def pod(name: str, *containers: Manifest, namespace: str = NAMESPACE, grace: int = 5, **spec: Any) -> Manifest:
    """Return a pod that a restricted namespace takes."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"mfcp-e2e-{name}", "namespace": namespace},
        "spec": {
            "terminationGracePeriodSeconds": grace,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": list(containers) or [container()],
            "volumes": [{"name": "home", "emptyDir": {}}],
            **spec,
        },
    }


def check(made: Pod, script: str, name: str = "app") -> str:
    """Run a shell script in a container, which must succeed, and return its output."""
    done = made.execute(name, script)
    assert done.code == 0, f"{script}: {done.err or done.out}"
    return done.out


def is_mounted(made: Pod, name: str = "app") -> bool:
    """Return whether something is mounted at the mountpoint."""
    return made.execute(name, IS_MOUNTED).code == 0


def driver(cluster: Cluster, *command: str) -> str:
    """Run a command of the driver in its pod."""
    return cluster.check("-n", SYSTEM, "exec", f"daemonset/{DAEMON_SET}", "-c", DAEMON_SET, "--", DAEMON_SET, *command)


def mounts_of(cluster: Cluster, made: Pod) -> list[tuple[str, str, str]]:
    """Return owner, mountpoint and source of what the driver says that a pod has mounted."""
    devices = json.loads(driver(cluster, "device", "list", "--output", "json"))
    mine = [each for each in devices if each["owner"].startswith(f"{made.namespace}/{made.name}/")]
    return [(each["owner"], mount["mountpoint"], mount["source"]) for each in mine for mount in each["mounts"]]


def all_mounts(cluster: Cluster) -> list[Any]:
    """Return all that is mounted through fuse devices."""
    return [mount for each in json.loads(driver(cluster, "device", "list", "--output", "json")) for mount in each["mounts"]]


def allocatable(cluster: Cluster) -> list[int]:
    """Return how many fuse devices each node has for pods."""
    return [int(node["status"]["allocatable"].get(RESOURCE, 0)) for node in cluster.json("get", "nodes")["items"]]


def replace_driver(cluster: Cluster, *how: str) -> None:
    """Delete the driver's pod, and wait for the next one."""
    (old,) = [each["metadata"]["name"] for each in cluster.driver_pods()]
    cluster.check("-n", SYSTEM, "delete", "pod", old, *how)
    cluster.wait_for_driver()
    assert old not in [each["metadata"]["name"] for each in cluster.driver_pods()]


@pytest.fixture(scope="module", autouse=True)
def namespace(cluster: Cluster) -> Iterator[None]:
    """Make a namespace whose pods have no privileges."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/enforce-version": "latest"}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}})
    wait_until("the namespace has its service account", lambda: cluster.run("-n", NAMESPACE, "get", "serviceaccount", "default").code == 0)
    wait_until("kubelet has the devices", lambda: all(count == DEVICES for count in allocatable(cluster)))
    yield
    assert all_mounts(cluster) == []
    cluster.check("delete", "namespace", NAMESPACE, "--wait=true", timeout=300)


def test_the_namespace_takes_no_privileged_pod(cluster: Cluster) -> None:
    bad = pod("privileged", container(securityContext={"privileged": True}))
    assert "violates PodSecurity" in cluster.run("apply", "-f", "-", stdin=yaml.safe_dump(bad)).err


def test_the_example_mounts_an_ssh_server(cluster: Cluster) -> None:
    (manifest,) = load(EXAMPLE)
    manifest["metadata"]["namespace"] = NAMESPACE
    made = Pod(cluster, manifest)
    with existing(made):
        made.wait_ready()
        assert check(made, "cat mnt/hello.txt") == "Hello from the SSH server.\n"
        check(made, "echo reply >mnt/reply.txt")
        assert check(made, "ssh files cat shared/reply.txt") == "reply\n"
        assert check(made, "id -u; grep CapEff /proc/self/status; touch /x 2>&1 || :").split()[:3] == ["10001", "CapEff:", "0" * 16]
        made.delete()


def test_a_program_mounts_dies_mounts_again_and_unmounts(cluster: Cluster, node: NodeShell) -> None:
    made = Pod(cluster, pod("life"))
    with existing(made):
        made.wait_ready()
        check(made, MOUNT)
        assert check(made, f"cat {MOUNTPOINT}/file") == CONTENT
        (line,) = [line for line in check(made, "cat /proc/self/mountinfo").splitlines() if " - fuse" in line]
        assert {"nosuid", "nodev"} <= set(line.split()[5].split(","))
        uid = made.get()["metadata"]["uid"]
        assert not [line for line in node.mounts(uid) if " - fuse" in line]  # nobody else sees it
        node.signal(made, "bindfs", "KILL")
        wait_until("the dead mount is gone", lambda: not is_mounted(made), 10)
        check(made, MOUNT)
        refused = made.execute("app", f"cd {MOUNTPOINT} && fusermount3 -u {MOUNTPOINT}")
        assert (refused.code, "Device or resource busy" in refused.err) == (1, True)
        check(made, f"fusermount3 -u {MOUNTPOINT}")
        assert not is_mounted(made)
        wait_until("bindfs has ended", lambda: not node.processes(made, "bindfs"))
        assert made.restarts("app") == 0
        made.delete()


def test_what_it_refuses(cluster: Cluster) -> None:
    made = Pod(cluster, pod("refused"))
    with existing(made):
        made.wait_ready()
        done = made.execute("app", f"bindfs {HOME}/source /mnt")
        assert (done.code, done.err.splitlines()[0]) == (1, "fusermount: user has no write access to mountpoint /mnt")
        made.delete()


def test_the_runtimes_default_filter_allows_no_user_namespace(cluster: Cluster) -> None:
    """In one of its own the container could mount with the real /dev/fuse, and without the driver."""
    made = Pod(cluster, pod("unshare"))
    with existing(made):
        made.wait_ready()
        assert "Operation not permitted" in made.execute("app", "unshare --user --map-root-user --mount true").err
        made.delete()


def test_the_driver_says_whose_mounts_they_are(cluster: Cluster) -> None:
    made = Pod(cluster, pod("named"))
    with existing(made):
        made.wait_ready()
        check(made, MOUNT)
        expected = [(f"{NAMESPACE}/{made.name}/app", MOUNTPOINT, f"{HOME}/source")]
        wait_until("the driver names the container", lambda: mounts_of(cluster, made) == expected, 30)
        assert f"{NAMESPACE}/{made.name}/app" in driver(cluster, "device", "list")
        made.delete()
        wait_until("the driver has forgotten it", lambda: made.name not in driver(cluster, "device", "list"), 90)
        assert all_mounts(cluster) == []


def test_a_driver_that_is_replaced_disturbs_nobody(cluster: Cluster, node: NodeShell) -> None:
    made = Pod(cluster, pod("reading", container(f"{PREPARE}; {MOUNT}; ({READ_FOR_EVER}) & {SLEEP}")))
    with existing(made):
        made.wait_ready()

        def reads() -> int:
            return int(made.execute("app", f"cat {HOME}/reads").out or 0)

        wait_until("the application reads", lambda: reads() > 10)
        for how in (["--wait=true"], ["--grace-period=0", "--force"]):
            replace_driver(cluster, *how)
            seen = reads()
            wait_until("it reads still", lambda before=seen: reads() > before + 10)
        driver_pod = Pod(cluster, cluster.driver_pods()[0])
        before = driver_pod.restarts(DAEMON_SET)
        node.signal(driver_pod, "meta-fuse-csi-p", "KILL")  # the kernel keeps this much of its name
        wait_until("kubelet starts it again", lambda: driver_pod.restarts(DAEMON_SET) > before and driver_pod.is_ready())
        seen = reads()
        wait_until("it reads still", lambda: reads() > seen + 10)
        assert check(made, f"cat {HOME}/errors 2>/dev/null || :") == ""
        # The new driver serves the container as the old one did.
        expected = [(f"{NAMESPACE}/{made.name}/app", MOUNTPOINT, f"{HOME}/source")]
        wait_until("the driver names the container", lambda: mounts_of(cluster, made) == expected, 60)
        node.signal(made, "bindfs", "KILL")
        wait_until("the dead mount is gone", lambda: not is_mounted(made), 10)
        check(made, MOUNT)
        check(made, f"fusermount3 -u {MOUNTPOINT}")
        assert made.restarts("app") == 0
        made.delete()


def test_a_program_that_asks_while_no_driver_runs_waits_for_the_next(cluster: Cluster) -> None:
    made = Pod(cluster, pod("waits"))
    with existing(made):
        made.wait_ready()
        (old,) = [each["metadata"]["name"] for each in cluster.driver_pods()]
        cluster.check("-n", SYSTEM, "delete", "pod", old, "--grace-period=0", "--force", "--wait=false")
        check(made, MOUNT)
        assert check(made, f"cat {MOUNTPOINT}/file") == CONTENT
        cluster.wait_for_driver()
        check(made, f"fusermount3 -u {MOUNTPOINT}")
        made.delete()


def test_a_kubelet_that_is_restarted_goes_on_handing_out_devices(cluster: Cluster, node: NodeShell) -> None:
    before, after = Pod(cluster, pod("before")), Pod(cluster, pod("after"))
    with existing(before, after):
        before.wait_ready()
        after.end()
        check(before, MOUNT)
        node.restart_kubelet()
        wait_until("kubelet has the devices again", lambda: all(count == DEVICES for count in allocatable(cluster)))
        after.create()
        after.wait_ready()
        check(after, MOUNT)
        assert check(before, f"cat {MOUNTPOINT}/file") == check(after, f"cat {MOUNTPOINT}/file") == CONTENT
        assert before.restarts("app") == 0
        for made in (before, after):
            made.delete()


def test_a_container_that_starts_again_mounts_again(cluster: Cluster, node: NodeShell) -> None:
    """kubelet replays its answer, and does not ask the driver."""
    made = Pod(cluster, pod("again", container(f"{PREPARE}; {MOUNT}; {SLEEP}")))
    with existing(made):
        made.wait_ready()
        wait_until("it is mounted", lambda: is_mounted(made))
        for restarts in (1, 2):
            node.signal(made, "sleep", "KILL")
            wait_until("the container starts again", lambda count=restarts: made.restarts("app") == count)
            wait_until("it is mounted again", lambda: is_mounted(made))
            assert check(made, f"cat {MOUNTPOINT}/file") == CONTENT
            assert check(made, "grep -c ' - fuse' /proc/self/mountinfo") == "1\n"
        wait_until("the driver knows this one alone", lambda: len(mounts_of(cluster, made)) == 1, 60)
        made.delete()


def test_containers_of_a_pod_have_devices_of_their_own(cluster: Cluster) -> None:
    """kubelet gives the devices of init containers to the others, but those of sidecars to nobody else."""
    init = container(f"{PREPARE}; {MOUNT} && cat {MOUNTPOINT}/file >{HOME}/seen", "init")
    sidecar = container(f"{PREPARE}; {MOUNT}; {SLEEP}", "sidecar", restartPolicy="Always")
    made = Pod(cluster, pod("several", container(), container(name="other"), initContainers=[init, sidecar]))
    with existing(made):
        made.wait_ready()
        assert check(made, f"cat {HOME}/seen") == CONTENT
        assert not is_mounted(made)  # the mounts of the other containers are their own
        check(made, MOUNT)
        check(made, MOUNT, "other")
        names = [f"{NAMESPACE}/{made.name}/{name}" for name in ("app", "other", "sidecar")]
        wait_until("the driver names each", lambda: sorted(owner for owner, *_ in mounts_of(cluster, made)) == names, 30)
        check(made, f"fusermount3 -u {MOUNTPOINT}")
        assert is_mounted(made, "other")
        assert is_mounted(made, "sidecar")
        made.delete()


def test_a_pod_in_a_user_namespace_of_its_own(cluster: Cluster, node: NodeShell) -> None:
    probe = pod("user-namespaces", hostUsers=False)
    made = Pod(cluster, probe)
    with existing(made):

        def refusals() -> list[str]:
            return [event for event in made.events() if "user namespaces" in event]

        refused = wait_until("the pod is ready or refused", lambda: [""] if made.is_ready() else refusals())
        if refused[0]:
            pytest.skip(f"this node does not start pods with hostUsers: false: {refused[0]}")
        inside, outside, _ = check(made, "cat /proc/self/uid_map").split()
        assert int(inside) == 0 < int(outside)
        check(made, MOUNT)
        assert check(made, f"cat {MOUNTPOINT}/file && stat -c %u {MOUNTPOINT}/file") == f"{CONTENT}{USER}\n"
        assert f"user_id={USER}," in check(made, "grep ' - fuse' /proc/self/mountinfo")
        check(made, f"fusermount3 -u {MOUNTPOINT}")
        check(made, MOUNT)
        node.signal(made, "bindfs", "KILL")
        wait_until("the dead mount is gone", lambda: not is_mounted(made), 10)
        check(made, MOUNT)
        replace_driver(cluster, "--wait=true")
        assert check(made, f"cat {MOUNTPOINT}/file") == CONTENT
        made.delete()


def test_a_quota_limits_the_devices_of_a_namespace(cluster: Cluster) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "fuse", "namespace": NAMESPACE},
        "spec": {"hard": {f"requests.{RESOURCE}": "1"}},
    }
    cluster.apply(quota)
    first = Pod(cluster, pod("first"))
    try:
        wait_until("the quota counts", lambda: cluster.json("-n", NAMESPACE, "get", "resourcequota", "fuse")["status"].get("used"))
        with existing(first):
            second = cluster.run("apply", "-f", "-", stdin=yaml.safe_dump(pod("second")))
            counts = ", ".join(f"{what}: requests.{RESOURCE}=1" for what in ("requested", "used", "limited"))
            assert f"exceeded quota: fuse, {counts}" in second.err
            first.wait_ready()
            first.delete()
    finally:
        cluster.check("-n", NAMESPACE, "delete", "resourcequota", "fuse")


def test_a_pod_waits_while_all_devices_are_taken(cluster: Cluster) -> None:
    greedy = [Pod(cluster, pod(f"greedy-{number}", container(count=count))) for number, count in enumerate((DEVICES - 1, 1))]
    waiting = Pod(cluster, pod("waiting"))
    with existing(*greedy, waiting):
        for made in greedy:
            made.wait_ready()
        waiting.wait_event(f"Insufficient {RESOURCE}")
        assert waiting.get()["status"]["phase"] == "Pending"
        check(greedy[0], MOUNT)  # one of its devices is used
        for made in greedy:
            made.delete()
        waiting.wait_ready()
        check(waiting, MOUNT)
        waiting.delete()


def test_a_pod_whose_program_is_stopped_goes_in_time(cluster: Cluster, node: NodeShell) -> None:
    made = Pod(cluster, pod("stopped"))
    with existing(made):
        made.wait_ready()
        check(made, MOUNT)
        node.signal(made, "bindfs", "STOP")
        check(made, f"(cat {MOUNTPOINT}/file &) >/dev/null 2>&1 </dev/null; sleep 1")
        made.delete()
    wait_until("nothing is mounted", lambda: all_mounts(cluster) == [], 30)


def test_a_pod_that_waits_for_its_own_program_goes_in_time(cluster: Cluster) -> None:
    """The program is the container's first process, and stops itself while another process of the container waits for it."""
    script = f"{PREPARE}; (sleep 2; cat {MOUNTPOINT}/file) & (sleep 1; kill -STOP 1) & exec bindfs -f {HOME}/source {MOUNTPOINT}"
    made = Pod(cluster, pod("first-process", container(script)))
    with existing(made):
        made.wait_ready()
        made.delete()
    wait_until("nothing is mounted", lambda: all_mounts(cluster) == [], 30)


def test_a_job_mounts_and_ends(cluster: Cluster) -> None:
    made = Pod(cluster, pod("job", container(f"{PREPARE}; {MOUNT} && cat {MOUNTPOINT}/file"), restartPolicy="Never"))
    with existing(made):
        wait_until("it has ended", lambda: made.get()["status"]["phase"] == "Succeeded", explain=made.describe)
        assert made.kubectl("logs", made.name).out == CONTENT
    wait_until("nothing is mounted", lambda: all_mounts(cluster) == [], 30)


def test_many_pods_at_once_leave_nothing(cluster: Cluster, node: NodeShell) -> None:
    count = int(os.environ.get("MFCP_E2E_PODS", "30"))

    def open_fds() -> int:
        pids = node.processes(Pod(cluster, cluster.driver_pods()[0]), "meta-fuse-csi-p")
        return sum(int(node.check(f"ls /proc/{pid}/fd | wc -l")) for pid in pids)

    pods = [Pod(cluster, pod(f"many-{number}", container(f"{PREPARE}; {MOUNT}; {SLEEP}"))) for number in range(count)]
    with existing(*pods):
        for made in pods:
            made.wait_ready(600)
        for made in pods:
            wait_until("it is mounted", partial(is_mounted, made))
            assert check(made, f"cat {MOUNTPOINT}/file") == CONTENT
        assert len(all_mounts(cluster)) == count
        with_mounts = open_fds()
        uids = [made.get()["metadata"]["uid"] for made in pods]
        cluster.check("-n", NAMESPACE, "delete", "pod", *(made.name for made in pods), "--wait=false")
        names = [made.name for made in pods]
        wait_until("all are gone", lambda: not cluster.run("-n", NAMESPACE, "get", "pods", *names, "--ignore-not-found").out, 300)
        wait_until("nothing is mounted", lambda: all_mounts(cluster) == [], 30)
        assert open_fds() < with_mounts - count
        table = "\n".join(node.mounts("/pods/"))
        assert not [uid for uid in uids if uid in table]
        wait_until("the driver lists nothing", lambda: json.loads(driver(cluster, "device", "list", "--output", "json")) == [], 90)


def test_a_driver_without_the_folders_of_kubelet_still_serves_volumes(cluster: Cluster) -> None:
    """A manifest from before there were fuse devices lacks them."""
    fetched = [load(ROOT / "deploy/csi-driver-daemonset.yaml")[0] for _ in range(2)]
    spec = fetched[1]["spec"]["template"]["spec"]
    lacking = ("device-plugins", "pod-resources")
    spec["volumes"] = [volume for volume in spec["volumes"] if volume["name"] not in lacking]
    mounts = spec["containers"][0]["volumeMounts"]
    spec["containers"][0]["volumeMounts"] = [mount for mount in mounts if mount["name"] not in lacking]
    made = Pod(cluster, pod("no-device"))
    try:
        cluster.apply(fetched[1])
        cluster.wait_for_driver()
        log = cluster.check("-n", SYSTEM, "logs", f"daemonset/{DAEMON_SET}")
        assert len([line for line in log.splitlines() if "no pod gets a fuse device" in line]) == 1
        wait_until("kubelet has no devices", lambda: all(count == 0 for count in allocatable(cluster)), 90)
        with existing(made):
            made.wait_event(f"Insufficient {RESOURCE}")
    finally:
        cluster.apply(fetched[0])
        cluster.wait_for_driver()
    wait_until("kubelet has the devices", lambda: all(count == DEVICES for count in allocatable(cluster)))


def test_the_variant_with_node_driver_registrar_does_the_same(cluster: Cluster, node: NodeShell) -> None:
    made, other = Pod(cluster, pod("registrar")), Pod(cluster, pod("registrar-later"))
    with existing(made, other):
        made.wait_ready()
        other.end()
        check(made, MOUNT)
        undeploy(cluster)
        deploy(cluster, WITH_REGISTRAR)
        try:
            wait_until("kubelet has the devices", lambda: all(count == DEVICES for count in allocatable(cluster)))
            other.create()
            other.wait_ready()
            check(other, MOUNT)
            assert check(made, f"cat {MOUNTPOINT}/file") == check(other, f"cat {MOUNTPOINT}/file") == CONTENT
            node.signal(made, "bindfs", "KILL")
            wait_until("the dead mount is gone", lambda: not is_mounted(made), 10)
            check(made, MOUNT)
        finally:
            undeploy(cluster)
            deploy(cluster, OURS)
        check(made, f"fusermount3 -u {MOUNTPOINT}")
        for each in (made, other):
            each.delete()


def without_the_device(cluster: Cluster) -> Done:
    """Return what a program says in a pod that asks for no device."""
    made = Pod(cluster, pod("without", container(resources={})))
    with existing(made):
        made.wait_ready()
        return made.execute("app", MOUNT)


def test_without_the_device_nothing_is_mounted(cluster: Cluster) -> None:
    done = without_the_device(cluster)
    assert done.code != 0
    assert "fuse: device not found" in done.err
