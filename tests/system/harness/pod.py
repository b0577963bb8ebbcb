"""Make pods on a node, with a FUSE container and application containers as in a pod's manifest."""

import os
import re
import shlex
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness import mounts
from harness.container import Bind, Container, Engine
from harness.driver import Driver
from harness.events import wait_until
from harness.kubelet import EMPTY_DIR, Kubelet, PodFolder, Published
from harness.mounts import Mount
from harness.programs import REPOSITORY, SOURCES, missing

TREE = REPOSITORY / "dist" / "mfcp"
SINGLE_FILE = REPOSITORY / "dist" / "fusermount3"

PLACE = "/opt/mfcp"
SOCKETS = "/fusermount3-proxy"
DATA = "/data"
_SPARE_WAIT = 0.2  # seconds
VARIABLE = "FUSERMOUNT3PROXY_FDPASSING_SOCKPATH"
STARTER = f"{PLACE}/fuse-starter --fd-passing-socket-path ${VARIABLE} --"  # in the container of Pod.fuse(), before its program
_PRIVATE = re.compile(r"-[0-9a-f]{16}$")  # the driver's private tmpfs, which has another name in each driver process

TEST_PROGRAMS = Bind(SOURCES, "/programs", read_only=True)  # those of tests/system/programs
HELPERS = ("/usr/bin/fusermount3", "/usr/bin/fusermount")  # libfuse 3 and libfuse 2


def tree() -> list[Bind]:
    """Bind the tree in its place, and its fusermount3 where FUSE libraries look for one."""
    _need(TREE)
    return [Bind(TREE, PLACE, read_only=True), *(Bind(TREE / "fusermount3", helper, read_only=True) for helper in HELPERS)]


def single_file() -> list[Bind]:
    """Bind the single file where FUSE libraries look for fusermount3."""
    _need(SINGLE_FILE)
    return [Bind(SINGLE_FILE, helper, read_only=True) for helper in HELPERS]


def _need(path: Path) -> None:
    if not path.exists():
        missing(f"{path} is missing; run packaging/build")


class Pod:
    """Represents one pod."""

    def __init__(self, node: "Node", folder: PodFolder) -> None:
        self.folder = folder
        self._node = node
        self._containers: list[Container] = []

    def publish(self, **request: object) -> Published:
        """Publish a volume; takes the arguments of PodFolder.request()."""
        self.folder.empty_dir(str(request.get("empty_dir", EMPTY_DIR)))
        return self.folder.publish(self.folder.request(**request))  # type: ignore[arg-type]

    def container(self, binds: Sequence[Bind] = (), **options: object) -> Container:
        """Start a container; takes the arguments of Engine.start()."""
        container = self._node.engine.start(binds, **options)  # type: ignore[arg-type]
        self._containers.append(container)
        return container

    def fuse(
        self,
        volume: Published | None,
        helper: Sequence[Bind] | None = None,
        data: str = DATA,
        dev_fuse: bool = True,
        environment: dict[str, str] | None = None,
        binds: Sequence[Bind] = (),
        **options: object,
    ) -> Container:
        """Start the container of the FUSE program with the emptyDir, the volume at `data`, our fusermount3, and a /dev/fuse.

        `dev_fuse` is the file of the emptyDir for /dev/fuse; without it the container has none.
        """
        empty_dir = volume.socket.parent if volume else self.folder.empty_dir()
        placed = [Bind(empty_dir, SOCKETS), *(tree() if helper is None else helper), *binds]
        if volume is not None:
            placed.append(Bind(volume.target, data, "rslave"))
        if dev_fuse:
            placed.append(Bind(empty_dir / "dev-fuse", "/dev/fuse"))
        if environment is None:
            environment = {VARIABLE: f"{SOCKETS}/{volume.socket.name}"} if volume else {}
        return self.container(placed, environment=environment, **options)

    def application(self, volume: Published, data: str = DATA, **options: object) -> Container:
        """Start a container that uses the volume with propagation HostToContainer."""
        return self.container([Bind(volume.target, data, "rslave")], **options)

    def stop(self, container: Container) -> None:
        """End one container."""
        self._containers.remove(container)
        self._node.engine.stop([container])

    def stop_containers(self) -> None:
        self._node.engine.stop(self._containers)
        self._containers.clear()

    def delete(self) -> None:
        """Do what kubelet does: end the containers, then unpublish the volumes, then remove the folders."""
        self.stop_containers()
        self.folder.delete()


@dataclass(frozen=True)
class Snapshot:
    """Holds what there is on a node that a test may leave behind.

    It leaves out the mounts outside the tests' mount namespace: other programs make them, and they are propagated into it.
    """

    mounts: Counter[str]
    processes: frozenset[str]
    fds: Counter[str]
    state: frozenset[str]
    files: frozenset[str]


@dataclass
class Node:
    """Represents a driver, a kubelet and a container engine in a folder of their own."""

    folder: Path
    driver: Driver
    kubelet: Kubelet
    engine: Engine
    pods: list[Pod] = field(default_factory=list)

    def pod(self) -> Pod:
        pod = Pod(self, self.kubelet.pod())
        self.pods.append(pod)
        return pod

    def delete_pods(self, kept: Sequence[Pod] = ()) -> None:
        for pod in [pod for pod in self.pods if pod not in kept]:
            self.pods.remove(pod)
            pod.delete()

    def snapshot(self) -> Snapshot:
        # The driver makes another spare process a moment after it has used one; older versions have none.
        deadline = time.monotonic() + _SPARE_WAIT
        while not ((spares := self.driver.spares()) and self.driver.has_fds_of_spares(len(spares))) and time.monotonic() < deadline:
            time.sleep(0.01)
        return Snapshot(
            mounts=_names(mount for mount in mounts.own() if not self.engine.owns(mount.path)),
            processes=frozenset(_processes(self.driver.own_processes() | spares)),
            fds=self.driver.fds(),
            state=self.driver.state(),
            files=frozenset(_files(self.driver.pods_dir)),
        )

    def expect(self, before: Snapshot, timeout: float = 10.0) -> None:
        """Fail where something is left that was not there before."""

        def left() -> str:
            now = self.snapshot()
            return "; ".join(
                f"{what}: {', '.join(sorted(map(str, found)))}"
                for what, found in (
                    ("mounts", (now.mounts - before.mounts).elements()),
                    ("processes", now.processes - before.processes),
                    ("fds of the driver", (now.fds - before.fds).elements()),
                    ("state of the driver", now.state - before.state),
                    ("files of pods", now.files - before.files),
                    ("children of the driver", self.driver.children()),
                )
                for found in [list(found)]
                if found
            )

        try:
            wait_until("nothing is left", lambda: not left(), timeout)
        except AssertionError:
            raise AssertionError(f"the test left behind: {left()}") from None


def _names(table: Iterable[Mount]) -> Counter[str]:
    return Counter(f"{mount.fstype} at {_PRIVATE.sub('', mount.path)}" for mount in table)


def _processes(driver: set[int]) -> list[str]:
    """Return every process but the driver in this mount namespace, which only these tests use."""
    own = os.readlink("/proc/self/ns/mnt")
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if int(pid) not in driver and os.readlink(f"/proc/{pid}/ns/mnt") == own:
                found.append(f"{pid} {shlex.join(Path(f'/proc/{pid}/cmdline').read_text().split(chr(0)))[:120]}")
        except (OSError, UnicodeDecodeError):
            continue
    return found


def _files(folder: Path) -> list[str]:
    return [os.path.join(path, name) for path, folders, files in os.walk(folder) for name in [*folders, *files]]
