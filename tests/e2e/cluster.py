"""Use the cluster that KUBECONFIG names, through kubectl alone, and work with the pods of the tests."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]

DRIVER = "meta-fuse-csi-plugin.csi.storage.pfn.io"
SYSTEM = "mfcp-system"
DAEMON_SET = "meta-fuse-csi-plugin"
IMAGES = "ghcr.io/pfnet-research/meta-fuse-csi-plugin"
BUSYBOX = "docker.io/library/busybox:latest"

Manifest = dict[str, Any]
Found = TypeVar("Found")

# kubelet syncs a pod about every ten seconds, or every minute with default settings.
SOON = 120.0  # seconds


@dataclass(frozen=True)
class Done:
    """Holds how a command ended."""

    code: int
    out: str
    err: str


class Cluster:
    """Runs kubectl with time limits."""

    def run(self, *arguments: str, stdin: str | None = None, timeout: float = SOON) -> Done:
        """Run kubectl."""
        done = subprocess.run(["kubectl", *arguments], input=stdin, capture_output=True, text=True, timeout=timeout)
        return Done(done.returncode, done.stdout, done.stderr)

    def check(self, *arguments: str, stdin: str | None = None, timeout: float = SOON) -> str:
        """Run kubectl, which must succeed, and return its output."""
        done = self.run(*arguments, stdin=stdin, timeout=timeout)
        assert done.code == 0, f"kubectl {' '.join(arguments)}: {done.err or done.out}"
        return done.out

    def json(self, *arguments: str) -> Any:
        """Return what kubectl prints, as JSON."""
        return json.loads(self.check(*arguments, "-o", "json"))

    def apply(self, *manifests: Manifest) -> None:
        """Apply manifests."""
        self.check("apply", "-f", "-", stdin=yaml.safe_dump_all(manifests))

    def wait_for_driver(self) -> None:
        """Wait until the driver is ready, and registered, on every node."""
        self.check("-n", SYSTEM, "rollout", "status", f"daemonset/{DAEMON_SET}", f"--timeout={SOON}s", timeout=SOON + 10)
        wait_until("the driver is registered with kubelet on every node", self.is_registered)

    def is_registered(self) -> bool:
        """Return whether kubelet has registered the driver, on every node."""
        nodes = self.json("get", "csinodes")["items"]
        return all(DRIVER in [driver["name"] for driver in node["spec"].get("drivers") or []] for node in nodes)

    def driver_pods(self) -> list[Manifest]:
        """Return the driver's pods."""
        return list(self.json("-n", SYSTEM, "get", "pods", "-l", "k8s-app=meta-fuse-csi-plugin")["items"])


class Pod:
    """Represents a pod of a test."""

    def __init__(self, cluster: Cluster, manifest: Manifest) -> None:
        self.cluster = cluster
        self.manifest = manifest
        self.name: str = manifest["metadata"]["name"]
        self.namespace: str = manifest["metadata"].get("namespace", "default")
        self.grace: float = manifest["spec"].get("terminationGracePeriodSeconds", 30)

    def kubectl(self, *arguments: str, timeout: float = SOON) -> Done:
        """Run kubectl in the pod's namespace."""
        return self.cluster.run("-n", self.namespace, *arguments, timeout=timeout)

    def create(self) -> None:
        """Create the pod."""
        self.cluster.apply(self.manifest)

    def get(self) -> Manifest:
        """Return the pod as it is now."""
        found: Manifest = self.cluster.json("-n", self.namespace, "get", "pod", self.name)
        return found

    def wait_ready(self, limit: float = SOON) -> None:
        """Wait until the pod is ready; a failure says why it is not."""
        try:
            wait_until(f"pod {self.name} is ready", self.is_ready, limit)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.describe()}") from None

    def is_ready(self) -> bool:
        """Return whether the pod is ready."""
        conditions = self.get()["status"].get("conditions", [])
        return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)

    def execute(self, container: str, script: str, timeout: float = SOON) -> Done:
        """Run a shell script in a container."""
        return self.kubectl("exec", self.name, "-c", container, "--", "sh", "-c", script, timeout=timeout)

    def read(self, container: str, path: str) -> str:
        """Return the content of a file, as a container sees it."""
        done = self.execute(container, f"cat {path}")
        assert done.code == 0, done.err
        return done.out

    def restarts(self, container: str) -> int:
        """Return how often a container was restarted."""
        status = self.get()["status"]
        for found in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
            if found["name"] == container:
                return int(found["restartCount"])
        raise AssertionError(f"there is no container {container}")

    def events(self) -> list[str]:
        """Return the messages of the pod's events."""
        # The uid selects them, because there may have been another pod of this name.
        selector = f"involvedObject.uid={self.get()['metadata']['uid']}"
        listed = self.cluster.json("-n", self.namespace, "get", "events", "--field-selector", selector)
        return [event.get("message") or "" for event in listed["items"]]

    def wait_event(self, *words: str) -> str:
        """Wait for an event whose message has all the words, and return the message."""
        return wait_until(
            f"an event of pod {self.name} contains {words}",
            lambda: next((text for text in self.events() if all(word in text for word in words)), None),
        )

    def delete(self, more: float = 10.0) -> float:
        """Delete the pod; it must be gone within its grace period and `more` seconds. Returns how long it took."""
        began = time.monotonic()
        self.kubectl("delete", "pod", self.name, "--wait=false")
        wait_until(f"pod {self.name} is gone", lambda: self.kubectl("get", "pod", self.name).code != 0, self.grace + more, self.describe)
        return time.monotonic() - began

    def end(self) -> None:
        """Make sure that the pod is gone, whatever it takes."""
        self.kubectl("delete", "pod", self.name, "--ignore-not-found", "--wait=true", timeout=SOON * 3)

    def describe(self) -> str:
        """Return what a user would look at."""
        described = self.kubectl("describe", "pod", self.name).out.partition("\nEvents:")[2]
        containers = [*self.manifest["spec"].get("initContainers", []), *self.manifest["spec"]["containers"]]
        logs = [f"--- {c['name']}\n" + self.kubectl("logs", self.name, "-c", c["name"], "--tail=20").out for c in containers]
        return described + "\n".join(logs)


class NodeShell:
    """Runs commands on the nodes, in a privileged pod in the host's pid namespace, which sees kubelet's folder."""

    def __init__(self, cluster: Cluster) -> None:
        container = {
            "name": "shell",
            "image": BUSYBOX,
            "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", "trap 'exit 0' TERM; sleep infinity & wait"],
            "securityContext": {"privileged": True},
            # They see the host's mounts of now, and not those of when this pod began, which would keep what was mounted there.
            "volumeMounts": [{"name": "kubelet", "mountPath": "/kubelet", "readOnly": True, "mountPropagation": "HostToContainer"}],
        }
        kubelet = {"name": "kubelet", "hostPath": {"path": "/var/lib/kubelet", "type": "Directory"}}
        spec = {"hostPID": True, "containers": [container], "volumes": [kubelet], "tolerations": [{"operator": "Exists"}]}
        self.pod = Pod(
            cluster,
            # This namespace allows such a pod, and exists without the driver too.
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "mfcp-e2e-node", "namespace": "kube-system"}, "spec": spec},
        )

    def run(self, script: str) -> Done:
        """Run a shell script in the host's pid namespace."""
        return self.pod.execute("shell", script)

    def check(self, script: str) -> str:
        """Run a shell script, which must succeed, and return its output."""
        done = self.run(script)
        assert done.code == 0, done.err
        return done.out

    def restart_kubelet(self) -> None:
        """Restart the node's kubelet, as a service of systemd, or by the command in MFCP_E2E_RESTART_KUBELET on this machine."""
        if command := os.environ.get("MFCP_E2E_RESTART_KUBELET"):
            subprocess.run(command, shell=True, check=True, timeout=SOON, stdout=subprocess.DEVNULL)
        else:
            self.check("chroot /proc/1/root systemctl restart kubelet")
        # A kubelet that has just started has not heard of its pods, and answers NotFound.
        wait_until("kubelet has its pods again", lambda: self.run("true").code == 0)

    def files(self, folder: str) -> list[str]:
        """Return the names in a folder of /var/lib/kubelet; none where it is not there."""
        return self.check(f"cd /kubelet && find {folder} -mindepth 1 -maxdepth 1 2>/dev/null || :").split()

    def processes(self, pod: Pod, name: str) -> list[int]:
        """Return the host's pids of a pod's processes with this name."""
        uid = pod.get()["metadata"]["uid"]
        script = f"""
        for folder in /proc/[0-9]*; do
            if [ "$(cat $folder/comm 2>/dev/null)" = {name} ] && grep -qE '{uid}|{uid.replace("-", "_")}' $folder/cgroup; then
                echo ${{folder#/proc/}}
            fi
        done"""
        return [int(pid) for pid in self.check(script).split()]

    def signal(self, pod: Pod, name: str, number: str) -> None:
        """Send a signal to a pod's processes of this name; there must be at least one."""
        pids = wait_until(f"{name} runs in pod {pod.name}", lambda: self.processes(pod, name))
        self.check(f"kill -{number} {' '.join(map(str, pids))}")

    def mounts(self, word: str) -> list[str]:
        """Return the lines of the host's mount table that contain a word."""
        return [line for line in self.check("cat /proc/1/mountinfo").splitlines() if word in line]


def load(path: Path) -> list[Manifest]:
    """Return the manifests of a file."""
    return [manifest for manifest in yaml.safe_load_all(path.read_text()) if manifest]


def wait_until(what: str, condition: Callable[[], Found], limit: float = SOON, explain: Callable[[], str] | None = None) -> Found:
    """Return the first true value of `condition()`."""
    began = time.monotonic()
    while True:
        found = condition()
        if found:
            return found
        waited = time.monotonic() - began
        if waited > limit:
            raise AssertionError(f"waited for {waited:.0f} s: {what}" + (f"\n{explain()}" if explain else ""))
        time.sleep(0.2)


@contextmanager
def existing(*pods: Pod) -> Iterator[None]:
    """Create pods that exist while the block runs."""
    try:
        for pod in pods:
            pod.create()
        yield
    finally:
        for pod in pods:
            pod.end()


def check_cluster() -> None:
    """Fail with one line where there is no cluster to test against."""
    if not os.environ.get("KUBECONFIG"):
        pytest.fail("set KUBECONFIG to the configuration of the cluster to test against", pytrace=False)
    try:
        done = Cluster().run("get", "nodes", timeout=30)
    except FileNotFoundError:
        pytest.fail("kubectl is missing: put it into PATH", pytrace=False)
    if done.code != 0:
        pytest.fail(f"the cluster of KUBECONFIG does not answer: {done.err.strip().splitlines()[-1]}", pytrace=False)
