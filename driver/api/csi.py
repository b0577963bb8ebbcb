"""CSI's gRPC services, thin: look at the request, call one method of the volumes. No state here.

Section names are those of the CSI specification v1.12.0. grpcio answers UNIMPLEMENTED for every method that is not here.
"""

from collections.abc import Callable, Mapping

from driver import __version__
from driver.api.answers import Context, answers
from driver.api.rpc import csi_pb2, csi_pb2_grpc
from driver.model import paths
from driver.model.errors import Code, VolumeError
from driver.model.paths import BadPath
from driver.model.policy import OPTIONS_MAX
from driver.model.publication import Publication
from driver.observe.logs import VolumeLog
from driver.volumes import condition
from driver.volumes.condition import Amount
from driver.volumes.volumes import Volumes

NAME = "meta-fuse-csi-plugin.csi.storage.pfn.io"

# Volume attributes, as in manifests for the Go plugin.
EMPTY_DIR = "fdPassingEmptyDirName"
SOCKET = "fdPassingSocketName"
MOUNT_OPTIONS = "mountOptions"

_READ_ONLY_MODES = (
    csi_pb2.VolumeCapability.AccessMode.SINGLE_NODE_READER_ONLY,
    csi_pb2.VolumeCapability.AccessMode.MULTI_NODE_READER_ONLY,
)


class Identity(csi_pb2_grpc.IdentityServicer):
    """Identity Service RPC."""

    def __init__(self, problem: Callable[[], str]) -> None:
        """`problem` says why the driver cannot mount, "" where it can."""
        self._problem = problem

    async def GetPluginInfo(self, request: csi_pb2.GetPluginInfoRequest, context: Context) -> csi_pb2.GetPluginInfoResponse:
        """GetPluginInfo."""
        return csi_pb2.GetPluginInfoResponse(name=NAME, vendor_version=__version__)

    async def GetPluginCapabilities(
        self, request: csi_pb2.GetPluginCapabilitiesRequest, context: Context
    ) -> csi_pb2.GetPluginCapabilitiesResponse:
        """GetPluginCapabilities: none, volumes are made by pods."""
        return csi_pb2.GetPluginCapabilitiesResponse()

    @answers
    async def Probe(self, request: csi_pb2.ProbeRequest, context: Context) -> csi_pb2.ProbeResponse:
        """Probe: FAILED_PRECONDITION with the remedy where this node cannot mount."""
        if problem := self._problem():
            raise VolumeError(Code.FAILED_PRECONDITION, problem)
        response = csi_pb2.ProbeResponse()
        response.ready.value = True
        return response


class Controller(csi_pb2_grpc.ControllerServicer):
    """Controller Service RPC: it can do nothing, and says so to callers that ask it first."""

    async def ControllerGetCapabilities(
        self, request: csi_pb2.ControllerGetCapabilitiesRequest, context: Context
    ) -> csi_pb2.ControllerGetCapabilitiesResponse:
        """ControllerGetCapabilities: none."""
        return csi_pb2.ControllerGetCapabilitiesResponse()


class Node(csi_pb2_grpc.NodeServicer):
    """Node Service RPC."""

    def __init__(self, volumes: Volumes, node_id: str, pods_dir: str, propagation: Callable[[], str]) -> None:
        """`propagation` says why no container would see a mount, "" where they do."""
        self._volumes = volumes
        self._node_id = node_id
        self._pods_dir = pods_dir
        self._propagation = propagation
        self._is_seen = False

    async def NodeGetInfo(self, request: csi_pb2.NodeGetInfoRequest, context: Context) -> csi_pb2.NodeGetInfoResponse:
        """NodeGetInfo."""
        return csi_pb2.NodeGetInfoResponse(node_id=self._node_id)

    async def NodeGetCapabilities(
        self, request: csi_pb2.NodeGetCapabilitiesRequest, context: Context
    ) -> csi_pb2.NodeGetCapabilitiesResponse:
        """NodeGetCapabilities: VOLUME_MOUNT_GROUP, so that kubelet leaves ownership alone instead of a recursive chown."""
        kinds = csi_pb2.NodeServiceCapability.RPC
        able = (kinds.VOLUME_MOUNT_GROUP, kinds.GET_VOLUME_STATS, kinds.VOLUME_CONDITION)
        return csi_pb2.NodeGetCapabilitiesResponse(capabilities=[csi_pb2.NodeServiceCapability(rpc=kinds(type=kind)) for kind in able])

    @answers
    async def NodePublishVolume(self, request: csi_pb2.NodePublishVolumeRequest, context: Context) -> csi_pb2.NodePublishVolumeResponse:
        """NodePublishVolume. kubelet calls it again about every ten seconds (requiresRepublish)."""
        try:
            publication = publication_of(request, self._pods_dir)
            self._check_propagation()
            await self._volumes.publish(publication)
        except VolumeError as error:
            VolumeLog(_pod_of(request.volume_context), request.volume_id).warning(f"publish failed: {error}")
            raise
        return csi_pb2.NodePublishVolumeResponse()

    def _check_propagation(self) -> None:
        """Everything else that a node lacks fails by itself, and says so; here a pod would wait for ever, without a word."""
        if self._is_seen:
            return  # It does not get worse by itself, and the mount table of a busy node is long.
        if problem := self._propagation():
            raise VolumeError(Code.FAILED_PRECONDITION, problem)
        self._is_seen = True

    @answers
    async def NodeUnpublishVolume(
        self, request: csi_pb2.NodeUnpublishVolumeRequest, context: Context
    ) -> csi_pb2.NodeUnpublishVolumeResponse:
        """NodeUnpublishVolume. When it answers, the target is gone; of a volume that is not there it is no error."""
        _check_volume_id(request.volume_id)
        volume = self._volumes.at(request.target_path.rstrip("/"))
        try:
            await self._volumes.unpublish(_pod_paths(request.target_path, "-", self._pods_dir).target_path)
        except VolumeError as error:
            (volume.log if volume else VolumeLog("", request.volume_id)).warning(f"unpublish failed: {error}")
            raise
        return csi_pb2.NodeUnpublishVolumeResponse()

    @answers
    async def NodeGetVolumeStats(self, request: csi_pb2.NodeGetVolumeStatsRequest, context: Context) -> csi_pb2.NodeGetVolumeStatsResponse:
        """NodeGetVolumeStats, with the volume's condition.

        kubelet drops the condition of an answer without usage. So where there is none, because the FUSE program does not
        answer or has gone, it is all zeros.
        """
        _check_volume_id(request.volume_id)
        if not request.volume_path:
            raise VolumeError(Code.INVALID_ARGUMENT, "volume_path is missing")
        volume = self._volumes.at(request.volume_path.rstrip("/"))
        if volume is None or volume.publication.volume_id != request.volume_id:
            raise VolumeError(Code.NOT_FOUND, f"no volume {request.volume_id} is published at {request.volume_path}")
        how, usage = await condition.examine(volume)
        usage = usage or condition.NOTHING_KNOWN
        return csi_pb2.NodeGetVolumeStatsResponse(
            usage=[_usage(usage.size, csi_pb2.VolumeUsage.BYTES), _usage(usage.inodes, csi_pb2.VolumeUsage.INODES)],
            volume_condition=csi_pb2.VolumeCondition(abnormal=how.is_abnormal, message=how.text),
        )


def _usage(amount: Amount, unit: csi_pb2.VolumeUsage.Unit) -> csi_pb2.VolumeUsage:
    return csi_pb2.VolumeUsage(total=amount.total, available=amount.available, used=amount.used, unit=unit)


def publication_of(request: csi_pb2.NodePublishVolumeRequest, pods_dir: str) -> Publication:
    """What a NodePublishVolumeRequest asks for. Raises VolumeError with INVALID_ARGUMENT."""
    _check_volume_id(request.volume_id)
    if not request.HasField("volume_capability"):
        raise VolumeError(Code.INVALID_ARGUMENT, "volume_capability is missing")
    if not request.volume_capability.HasField("mount"):
        raise VolumeError(Code.INVALID_ARGUMENT, "volume_capability: only mount is supported, block volumes are not")
    context = request.volume_context
    socket_name, empty_dir = _attribute(context, SOCKET), _attribute(context, EMPTY_DIR)
    for attribute, check, value in ((SOCKET, paths.check_socket_name, socket_name), (EMPTY_DIR, paths.check_empty_dir, empty_dir)):
        try:
            check(value)
        except BadPath as error:
            raise VolumeError(Code.INVALID_ARGUMENT, f"volume attribute {attribute}: {error}") from None
    # Each is looked at in the event loop, which other volumes wait for: an attribute may have a megabyte.
    if sum(map(len, (*request.volume_capability.mount.mount_flags, context.get(MOUNT_OPTIONS, "")))) > OPTIONS_MAX:
        raise VolumeError(Code.INVALID_ARGUMENT, f"{MOUNT_OPTIONS} and mount flags are longer than {OPTIONS_MAX} characters together")
    return Publication(
        volume_id=request.volume_id,
        paths=_pod_paths(request.target_path, empty_dir, pods_dir),
        socket_name=socket_name,
        read_only=request.readonly or request.volume_capability.access_mode.mode in _READ_ONLY_MODES,
        # volume_mount_group changes nothing: a FUSE program decides who owns its files.
        mount_flags=tuple(request.volume_capability.mount.mount_flags),
        mount_options=context.get(MOUNT_OPTIONS, ""),
        pod=_pod_of(context),
    )


def _pod_of(context: Mapping[str, str]) -> str:
    pod = context.get("csi.storage.k8s.io/pod.name", "")
    return f"{context.get('csi.storage.k8s.io/pod.namespace', '')}/{pod}" if pod else ""


def _check_volume_id(volume_id: str) -> None:
    if not volume_id:
        raise VolumeError(Code.INVALID_ARGUMENT, "volume_id is missing")


def _attribute(context: Mapping[str, str], name: str) -> str:
    value = context.get(name, "")
    if not value:
        raise VolumeError(
            Code.INVALID_ARGUMENT, f"volume attribute {name} is missing or empty: set it in volumeAttributes of the pod's csi volume"
        )
    return value


def _pod_paths(target_path: str, empty_dir: str, pods_dir: str) -> paths.VolumePaths:
    if not target_path:
        raise VolumeError(Code.INVALID_ARGUMENT, "target_path is missing")
    try:
        return paths.of_pod(target_path, empty_dir, pods_dir)
    except BadPath as error:
        raise VolumeError(Code.INVALID_ARGUMENT, str(error)) from None
