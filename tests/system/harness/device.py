"""Give containers a fuse device, as kubelet and container engines do."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from harness import mounts
from harness.container import Bind, Container
from harness.events import wait_until
from harness.mounts import Mount
from harness.pod import HELPERS, PLACE, TREE, Node, Pod

FOLDER = "/m"  # a mountpoint that every test container has, a folder of USER's
USER = "setpriv --reuid 1234 --regid 1234 --clear-groups"
OTHER = "setpriv --reuid 1235 --regid 1235 --clear-groups"
BINDFS = "bindfs --no-allow-other"
# The mount alone does not say that the program serves it: it may not have its fd yet.
SERVES = f"{USER} test -e {FOLDER}/file"
FIRST = 100000  # the node's uid that is root in a container with a user namespace of its own
USER_NAMESPACE = (f"--uidmap=0:{FIRST}:65536", f"--gidmap=0:{FIRST}:65536")


class Device:
    """Represents a fuse device of one node, with a name of its own, and the containers that have it."""

    def __init__(self, node: Node, pod: Pod, name: str) -> None:
        self.node = node
        self.name = name
        self._pod = pod
        self.folder = node.driver.fuse_dir / "sockets" / name

    def binds(self) -> list[Bind]:
        """Return what the container gets besides /dev/fuse."""
        return [
            Bind(TREE, PLACE, read_only=True),
            Bind(self.folder, f"{PLACE}/socket", read_only=True),
            *(Bind(TREE / "fusermount3", helper, read_only=True) for helper in HELPERS),
        ]

    def container(self, binds: Sequence[Bind] = (), options: Sequence[str] = ("--device=/dev/fuse",), **more: object) -> Container:
        """Start a container with the device; takes the arguments of Engine.start()."""
        return self._pod.container([*self.binds(), *binds], options=options, **more)

    def container_of(self, binds: Sequence[Bind], options: Sequence[str]) -> Container:
        """Start a container with exactly these binds."""
        return self._pod.container(binds, options=options)

    def container_with_user_namespace(self, binds: Sequence[Bind] = (), options: Sequence[str] = ()) -> Container:
        """Start a container with the device in a user namespace of its own, on a root file system that is its own."""
        root = root_of_namespace(self.node.folder / f"root-{self.name}")
        usr = Bind(Path("/usr"), "/usr", read_only=True)
        return self.container([usr, *binds], ["--device=/dev/fuse", *USER_NAMESPACE, *options], rootfs=root)

    def stop(self, container: Container) -> None:
        """End one container."""
        self._pod.stop(container)

    def records(self) -> list[dict[str, object]]:
        """Return the driver's records of mounts of this device."""
        found = [json.loads(path.read_text()) for path in (self.node.driver.run_dir / "device-mounts").glob("*.json")]
        return [record for record in found if record["allocation"] == self.name]


def root_of_namespace(folder: Path) -> Path:
    """Make a root file system whose folders belong to the root of a container with USER_NAMESPACE."""
    for name in ("dev", "etc", "opt", "proc", "run", "srv", "sys", "tmp", "usr", "m"):
        (folder / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (folder / name).symlink_to(f"usr/{name}")
    for path in [folder, *folder.iterdir()]:
        os.chown(path, FIRST, FIRST, follow_symlinks=False)
    os.chown(folder / "m", FIRST + 1234, FIRST + 1234)
    return folder


def fuse_mounts(container: Container) -> list[Mount]:
    """Return the FUSE mounts in a container, as its first process sees them."""
    return [mount for mount in mounts.parse(container.check("cat /proc/self/mountinfo")) if mount.is_fuse]


def wait_until_unmounted(container: Container) -> None:
    """Wait until a container has no FUSE mount any more."""
    wait_until("nothing is mounted", lambda: not fuse_mounts(container))


def source(node: Node) -> Path:
    """Make a folder with a file, for bindfs."""
    folder = node.folder / "source"
    folder.mkdir(exist_ok=True)
    (folder / "file").write_text("content\n")
    return folder
