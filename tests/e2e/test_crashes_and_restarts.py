"""Test what applications see when FUSE programs, their containers and the driver end and start again."""

import re

from cluster import SYSTEM, Cluster, NodeShell, Pod, existing, wait_until
from pods import CONTENT, SERVE_AGAIN_AND_AGAIN, application, mount, pod, sidecar

FILE = "/data/subdir/test.txt"

# This program counts what it reads, and keeps every error.
READ_FOR_EVER = f"""
trap 'exit 0' TERM
while :; do
    if content=$(cat {FILE} 2>&1) && [ "$content" = "{CONTENT.strip()}" ]; then
        echo $((reads += 1)) >/tmp/reads.new && mv /tmp/reads.new /tmp/reads
    else
        echo "$content" >>/tmp/errors
    fi
    sleep 0.01
done
"""


def test_a_program_that_is_killed_comes_back_for_an_application_that_runs(cluster: Cluster, node: NodeShell) -> None:
    user = application("app", None, mount("/data"), mount("/part", subPath="subdir"))
    made = Pod(cluster, pod("killed", user, starter=sidecar(SERVE_AGAIN_AND_AGAIN)))
    with existing(made):
        made.wait_ready()
        for _ in range(10):
            (program,) = wait_until("sshfs runs", lambda: node.processes(made, "sshfs"))
            node.check(f"kill -9 {program}")
            wait_until("another sshfs runs", lambda killed=program: set(node.processes(made, "sshfs")) - {killed})
            for path in (FILE, "/part/test.txt"):
                wait_until(f"the application reads {path} again", lambda path=path: made.execute("app", f"cat {path}").out == CONTENT)
        assert (made.restarts("app"), made.restarts("starter")) == (0, 0)
        # No mounts pile up beneath.
        for place in ("/data", "/part"):
            assert int(made.execute("app", f"grep -c ' {place} ' /proc/self/mountinfo").out) <= 3
        made.delete()


def test_a_container_whose_program_ends_mounts_again(cluster: Cluster, node: NodeShell) -> None:
    made = Pod(cluster, pod("ended", application("app", None, mount("/data"), mount("/part", subPath="subdir"))))
    with existing(made):
        made.wait_ready()
        node.signal(made, "sshfs", "KILL")
        wait_until("kubelet starts the container again", lambda: made.restarts("starter") == 1)
        for path in (FILE, "/part/test.txt"):
            wait_until(f"the application reads {path} again", lambda path=path: made.execute("app", f"cat {path}").out == CONTENT)
        assert made.restarts("app") == 0
        made.delete()


def test_a_driver_that_is_replaced_disturbs_nobody(cluster: Cluster) -> None:
    reader = application("app", ["sh", "-c", READ_FOR_EVER])
    made = Pod(cluster, pod("reading", reader))
    with existing(made):
        made.wait_ready()

        def reads() -> int:
            return int(made.execute("app", "cat /tmp/reads").out or 0)

        wait_until("the application reads", lambda: reads() > 10)
        for how in (["--wait=true"], ["--grace-period=0", "--force"]):
            (old,) = [pod["metadata"]["name"] for pod in cluster.driver_pods()]
            cluster.check("-n", SYSTEM, "delete", "pod", old, *how)
            cluster.wait_for_driver()
            assert old not in [pod["metadata"]["name"] for pod in cluster.driver_pods()]
            seen = reads()
            wait_until("it reads still", lambda before=seen: reads() > before + 10)
        assert made.execute("app", "cat /tmp/errors 2>/dev/null").out == ""
        # The new driver serves the volume as the old one did.
        assert driver_state(cluster, made) == "mounted"
        made.delete()
        wait_until("the driver has forgotten it", lambda: driver_state(cluster, made) == "")


def test_a_driver_is_replaced_while_a_program_never_answers_it(cluster: Cluster, node: NodeShell) -> None:
    """The process that asked the program cannot be killed, and keeps neither the old pod nor its next one."""
    made = Pod(cluster, pod("silent"))
    with existing(made):
        made.wait_ready()
        for name in ("sftp-server", "sshd"):  # sshfs accepts requests, and waits for its server
            node.signal(made, name, "STOP")
        assert "does not answer" in driver_status(cluster)
        (old,) = [pod["metadata"]["name"] for pod in cluster.driver_pods()]
        cluster.check("-n", SYSTEM, "delete", "pod", old, "--wait=false")

        def others() -> list[str]:
            running = [pod for pod in cluster.driver_pods() if pod["status"]["phase"] == "Running"]
            return [pod["metadata"]["name"] for pod in running if pod["metadata"]["name"] != old]

        (new,) = wait_until("the next driver runs", others, 30)
        command = ("-n", SYSTEM, "exec", new, "--", "meta-fuse-csi-plugin", "status", "--output", "wide")
        wait_until("it looks after the volume", lambda: re.search(rf"{made.name} +mounted", cluster.run(*command).out), 30)
        wait_until("the old pod is gone", lambda: old not in [pod["metadata"]["name"] for pod in cluster.driver_pods()])
        for name in ("sftp-server", "sshd"):
            node.signal(made, name, "CONT")
        assert made.execute("app", f"cat {FILE}").out == CONTENT
        made.delete()


def test_a_driver_that_is_killed_while_a_program_never_answers_it_starts_again(cluster: Cluster, node: NodeShell) -> None:
    """It starts in the same pod."""
    made = Pod(cluster, pod("silent-again"))
    with existing(made):
        made.wait_ready()
        for name in ("sftp-server", "sshd"):
            node.signal(made, name, "STOP")
        assert "does not answer" in driver_status(cluster)
        driver = Pod(cluster, cluster.driver_pods()[0])
        before = driver.restarts("meta-fuse-csi-plugin")
        node.signal(driver, "meta-fuse-csi-p", "KILL")  # the kernel keeps this much of its name
        wait_until("kubelet starts it again", lambda: driver.restarts("meta-fuse-csi-plugin") > before and driver.is_ready())
        assert "does not answer" in driver_status(cluster)
        for name in ("sftp-server", "sshd"):
            node.signal(made, name, "CONT")
        assert made.execute("app", f"cat {FILE}").out == CONTENT
        wait_until("it answers", lambda: driver_state(cluster, made) == "mounted" and "does not answer" not in driver_status(cluster))
        made.delete()


def test_a_kubelet_that_is_restarted_finds_everything_as_it_was(cluster: Cluster, node: NodeShell) -> None:
    made = Pod(cluster, pod("kubelet", application("app", ["sh", "-c", READ_FOR_EVER]), starter=sidecar(SERVE_AGAIN_AND_AGAIN)))
    with existing(made):
        made.wait_ready()
        uid = made.get()["metadata"]["uid"]
        driver = cluster.driver_pods()[0]["metadata"]["name"]
        before = len(registrations(cluster))
        node.restart_kubelet()
        wait_until("the driver is registered again", lambda: len(registrations(cluster)) > before)
        wait_until("kubelet publishes again", lambda: made.is_ready() and driver_state(cluster, made) == "mounted")
        # A driver that mounts at each publish would have done so by now.
        assert len([line for line in node.mounts(uid) if " - fuse" in line]) == 1
        assert made.execute("app", "cat /tmp/errors 2>/dev/null").out == ""
        assert [pod["metadata"]["name"] for pod in cluster.driver_pods()] == [driver]
        assert (made.restarts("app"), made.restarts("starter")) == (0, 0)
        made.delete()


def registrations(cluster: Cluster) -> list[str]:
    """Return the lines of the driver's log that say that kubelet has registered it."""
    log = cluster.check("-n", SYSTEM, "logs", "daemonset/meta-fuse-csi-plugin")
    return [line for line in log.splitlines() if "kubelet has registered" in line]


def test_a_program_that_ends_while_no_driver_runs_is_taken_off_by_the_next(cluster: Cluster, node: NodeShell) -> None:
    made = Pod(cluster, pod("orphaned", starter=sidecar(SERVE_AGAIN_AND_AGAIN)))
    with existing(made):
        made.wait_ready()
        selector = '{"spec":{"template":{"spec":{"nodeSelector":{"mfcp-e2e":"nowhere"}}}}}'
        cluster.check("-n", SYSTEM, "patch", "daemonset", "meta-fuse-csi-plugin", "-p", selector)
        try:
            wait_until("no driver runs", lambda: not cluster.driver_pods())
            node.signal(made, "sshfs", "KILL")
            wait_until("the application gets errors", lambda: made.execute("app", f"cat {FILE}").code != 0)
        finally:
            back = '[{"op":"remove","path":"/spec/template/spec/nodeSelector/mfcp-e2e"}]'
            cluster.check("-n", SYSTEM, "patch", "daemonset", "meta-fuse-csi-plugin", "--type=json", "-p", back)
            cluster.wait_for_driver()
        wait_until("the application reads again", lambda: made.execute("app", f"cat {FILE}").out == CONTENT)
        made.delete()


def test_an_application_that_starts_before_the_mount_sees_it_come(cluster: Cluster) -> None:
    starter = sidecar(f"sleep 5; {SERVE_AGAIN_AND_AGAIN}")
    del starter["startupProbe"]
    waits = "until mount | grep /data | grep fuse; do sleep 0.2; done; cat /data/subdir/test.txt >/tmp/seen"
    early = application(
        "app", ["sh", "-c", f"echo x >/data/early; ls -A /data >/tmp/before; {waits}; trap 'exit 0' TERM; sleep 1000 & wait"]
    )
    made = Pod(cluster, pod("early", early, starter=starter))
    with existing(made):
        made.wait_ready()
        wait_until("it sees the mount", lambda: made.execute("app", "cat /tmp/seen").out == CONTENT)
        # What it wrote too early is lost: it is neither beneath the mount nor in it.
        assert made.execute("app", "cat /tmp/before").out == ""
        assert made.kubectl("logs", made.name, "-c", "app").out.count("No space left on device") <= 1
        made.delete()


def test_an_application_with_a_sub_path_waits_for_the_mount(cluster: Cluster) -> None:
    starter = sidecar(f"sleep 5; {SERVE_AGAIN_AND_AGAIN}")
    del starter["startupProbe"]
    made = Pod(cluster, pod("subpath-early", application("app", None, mount("/part", subPath="subdir")), starter=starter))
    with existing(made):
        made.wait_ready()
        assert made.read("app", "/part/test.txt") == CONTENT
        made.delete()


def driver_state(cluster: Cluster, made: Pod) -> str:
    """Return the driver's state of a pod's volume; "" where it does not know the volume."""
    found = re.search(rf" {made.namespace}/{made.name} +(\w+)", driver_status(cluster))
    return found[1] if found else ""


def driver_status(cluster: Cluster) -> str:
    """Return the driver's status."""
    return cluster.check("-n", SYSTEM, "exec", "daemonset/meta-fuse-csi-plugin", "--", "meta-fuse-csi-plugin", "status", "--output", "wide")
