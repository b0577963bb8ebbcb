"""Play kubelet: its folders, and its calls of the driver in its order."""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from driver.api.rpc import csi_pb2, csi_pb2_grpc
from harness import mounts
from harness.container import Background, Container
from harness.events import wait_until
from harness.mounts import Mount

EMPTY_DIR = "fuse-fd-passing"
VOLUME = "fuse-csi-ephemeral"
SOCKET = "fuse-csi-ephemeral.sock"
BINDFS = "bindfs -f /srv /data"

_TIMEOUT = 60.0  # seconds; kubelet's is two minutes


@dataclass
class Refusal:
    """Holds the status of a call that failed."""

    code: grpc.StatusCode = grpc.StatusCode.OK
    text: str = ""


@contextmanager
def refused(code: grpc.StatusCode) -> Iterator[Refusal]:
    """Assert that the block ends with a call that is refused with `code` and one line of text."""
    refusal = Refusal()
    try:
        yield refusal
    except grpc.RpcError as error:
        refusal.code, refusal.text = error.code(), error.details()
    assert refusal.code is code, f"{refusal.code}: {refusal.text}"
    assert refusal.text.strip() and "\n" not in refusal.text


class Kubelet:
    """Calls the driver at one CSI socket."""

    def __init__(self, csi_socket: Path, pods_dir: Path) -> None:
        self._csi_socket = csi_socket
        self.pods_dir = pods_dir

    def pod(self) -> "PodFolder":
        """Make the folder of a new pod."""
        uid = str(uuid.uuid4())
        folder = self.pods_dir / uid
        (folder / "volumes" / "kubernetes.io~empty-dir").mkdir(parents=True)
        return PodFolder(self, uid, folder)

    def node(self) -> "csi_pb2_grpc.NodeStub":
        """Return the raw service, for one call after another."""
        return _OneCallEach(self._csi_socket)  # type: ignore[return-value]


class _OneCallEach:
    """Makes a connection for each call, so that none is open when the driver's fds are counted."""

    def __init__(self, csi_socket: Path) -> None:
        self._csi_socket = csi_socket

    def __getattr__(self, method: str) -> "object":
        def call(request: "object") -> "object":
            with grpc.insecure_channel(f"unix:{self._csi_socket}") as channel:
                return getattr(csi_pb2_grpc.NodeStub(channel), method)(request, timeout=_TIMEOUT)

        return call


@dataclass
class PodFolder:
    """Represents PODS/UID."""

    kubelet: Kubelet
    uid: str
    folder: Path
    published: list["Published"] = field(default_factory=list)

    def empty_dir(self, name: str = EMPTY_DIR) -> Path:
        """Return an emptyDir volume, which is made where it is missing."""
        path = self.folder / "volumes" / "kubernetes.io~empty-dir" / name
        if not path.exists():
            path.mkdir()
            path.chmod(0o777)
        return path

    def target(self, volume: str = VOLUME) -> Path:
        """Return the target path of a CSI volume. kubelet owns the folder above it, which exists."""
        folder = self.folder / "volumes" / "kubernetes.io~csi" / volume
        folder.mkdir(parents=True, exist_ok=True)
        return folder / "mount"

    def request(
        self,
        volume: str = VOLUME,
        empty_dir: str = EMPTY_DIR,
        socket: str = SOCKET,
        read_only: bool = False,
        mount_flags: tuple[str, ...] = (),
        attributes: Mapping[str, str | None] | None = None,
    ) -> csi_pb2.NodePublishVolumeRequest:
        """Return kubelet's request for an inline volume; an attribute of None is left out."""
        context: dict[str, str | None] = {
            "csi.storage.k8s.io/ephemeral": "true",
            "csi.storage.k8s.io/pod.name": f"pod-{self.uid[:8]}",
            "csi.storage.k8s.io/pod.namespace": "default",
            "csi.storage.k8s.io/pod.uid": self.uid,
            "csi.storage.k8s.io/serviceAccount.name": "default",
            "fdPassingEmptyDirName": empty_dir,
            "fdPassingSocketName": socket,
        }
        context.update(attributes or {})
        capability = csi_pb2.VolumeCapability(
            mount=csi_pb2.VolumeCapability.MountVolume(mount_flags=mount_flags),
            access_mode=csi_pb2.VolumeCapability.AccessMode(mode=csi_pb2.VolumeCapability.AccessMode.SINGLE_NODE_WRITER),
        )
        return csi_pb2.NodePublishVolumeRequest(
            volume_id=f"csi-{hashlib.sha256(f'{self.uid}/{volume}'.encode()).hexdigest()}",
            target_path=str(self.target(volume)),
            volume_capability=capability,
            readonly=read_only,
            volume_context={key: value for key, value in context.items() if value is not None},
        )

    def publish(self, request: csi_pb2.NodePublishVolumeRequest | None = None) -> "Published":
        """Call NodePublishVolume. Raises grpc.RpcError."""
        request = request or self.request()
        self.kubelet.node().NodePublishVolume(request)
        published = Published(self, request)
        self.published.append(published)
        return published

    def bind_sub_path(self, published: "Published", container: str, sub_path: str) -> Path:
        """Make a subPath as kubelet does: bind what is mounted now; the container binds that in turn."""
        path = self.folder / "volume-subpaths" / published.target.parent.name / container / "0"
        path.mkdir(parents=True)
        mounts.mount("--bind", published.target / sub_path, path)
        return path

    def _remove_sub_paths(self) -> None:
        # kubelet unmounts each of them once, and comes back for those that could not be removed then.
        paths = sorted((self.folder / "volume-subpaths").glob("*/*/*"))
        for _ in range(3):
            for path in paths:
                if mounts.stack(path):
                    mounts.unmount(path)
                if not mounts.stack(path) and os.path.lexists(path):
                    path.rmdir()
        left = [path for path in paths if mounts.stack(path) or os.path.lexists(path)]
        assert not left, f"kubelet cannot remove {left} in three tries"

    def delete(self) -> None:
        """Do what kubelet does with a deleted pod: unpublish, and remove its folders, in which nothing may be mounted."""
        self._remove_sub_paths()
        for published in list(self.published):
            published.unpublish()
        left = mounts.below(self.folder)
        assert not left, f"mounts are left in the folder of a deleted pod: {left}"
        for empty_dir in (self.folder / "volumes" / "kubernetes.io~empty-dir").iterdir():
            shutil.rmtree(empty_dir)
        # Only directories may be left now. rmdir fails where the driver left something in one.
        for path, _, _ in os.walk(self.folder, topdown=False):
            os.rmdir(path)


@dataclass
class Published:
    """Represents a published volume."""

    pod: PodFolder
    request: csi_pb2.NodePublishVolumeRequest

    @property
    def target(self) -> Path:
        return Path(self.request.target_path)

    @property
    def socket(self) -> Path:
        """Return the path of the original protocol's socket."""
        context = self.request.volume_context
        return self.pod.empty_dir(context["fdPassingEmptyDirName"]) / context["fdPassingSocketName"]

    def republish(self) -> None:
        self.pod.kubelet.node().NodePublishVolume(self.request)

    def unpublish(self) -> None:
        """Call NodeUnpublishVolume. The target must be gone when it answers."""
        request = csi_pb2.NodeUnpublishVolumeRequest(volume_id=self.request.volume_id, target_path=self.request.target_path)
        self.pod.kubelet.node().NodeUnpublishVolume(request)
        assert not os.path.lexists(self.target)
        if self in self.pod.published:
            self.pod.published.remove(self)

    @property
    def mounts(self) -> list[Mount]:
        """Return what is mounted at the target, topmost last."""
        return mounts.stack(self.target)

    @property
    def fuse(self) -> Mount | None:
        """Return the FUSE mount at the target, None where there is none."""
        here = self.mounts
        return here[-1] if here and here[-1].is_fuse else None

    def wait_mounted(self, program: Background, timeout: float = 15.0) -> Mount:
        """Wait until `program` has mounted."""

        def mounted() -> Mount | None:
            here = self.fuse
            if here is None and not program.is_running and (code := program.wait()) != 0:
                raise AssertionError(f"{program.command} ended with {code}: {program.out}{program.err}")
            return here

        return wait_until(f"{program.command} has mounted at {self.target}", mounted, timeout)

    def wait_served(self, program: Background) -> None:
        """Wait until `program` has mounted and answers.

        A mount is in the mount table before its program has the fd. Where the driver is killed in between, the mount ends with it.
        """
        self.wait_mounted(program)
        wait_until(f"{program.command} answers", lambda: _is_answered(self.target))

    def mounted_by(self, container: Container, command: str = BINDFS) -> Background:
        """Start a FUSE program in a container, and wait until it has mounted."""
        program = container.start(command)
        self.wait_mounted(program)
        return program

    def served_by(self, container: Container, command: str = BINDFS) -> Background:
        """Start a FUSE program in a container, and wait until it has mounted and answers."""
        program = container.start(command)
        self.wait_served(program)
        return program

    def wait_waiting(self, timeout: float = 5.0) -> None:
        """Wait until only the placeholder is there, also for containers that started after the mount."""
        wait_until("the placeholder alone is at the target", lambda: [m.fstype for m in self.mounts] == ["tmpfs"], timeout)
        # Those containers see it a few system calls later, and the driver reports it after that.
        wait_until("the driver calls it waiting", lambda: self.condition.startswith("waiting since"), timeout)

    def stats(self) -> csi_pb2.NodeGetVolumeStatsResponse:
        """Call NodeGetVolumeStats."""
        request = csi_pb2.NodeGetVolumeStatsRequest(volume_id=self.request.volume_id, volume_path=self.request.target_path)
        return self.pod.kubelet.node().NodeGetVolumeStats(request)

    @property
    def condition(self) -> str:
        """Return the sentence of NodeGetVolumeStats' condition."""
        return self.stats().volume_condition.message


def _is_answered(target: Path) -> bool:
    try:
        os.statvfs(target)
    except OSError:
        return False
    return True
