"""Stand between csi-sanity and the driver, so that csi-sanity's node tests can publish volumes.

csi-sanity first makes a volume with CreateVolume, which a driver of volumes that pods declare themselves does not have. And
it wants the volume at FOLDER/target, where kubelet's target paths end with /mount. Every call except CreateVolume and
DeleteVolume is forwarded to the driver, and its answer back, with only that name changed, and one capability added.
"""

from collections.abc import Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager
from functools import partial
from typing import Any

import grpc

from driver.api.rpc import csi_pb2


@contextmanager
def serving(endpoint: str, driver: str, attributes: Mapping[str, str]) -> Iterator[None]:
    """Serve at `endpoint` in front of the driver at `driver`; the volumes that it makes have `attributes`."""
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    server.add_insecure_port(endpoint)
    with grpc.insecure_channel(driver) as channel:
        server.add_generic_rpc_handlers((_Provisioner(channel, attributes),))
        server.start()
        try:
            yield
        finally:
            server.stop(None).wait()


class _Provisioner(grpc.GenericRpcHandler):
    def __init__(self, driver: grpc.Channel, attributes: Mapping[str, str]) -> None:
        self._driver = driver
        self._attributes = attributes

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        method = handler_call_details.method
        answers = {
            "/csi.v1.Identity/GetPluginCapabilities": self._get_plugin_capabilities,
            "/csi.v1.Controller/CreateVolume": self._create_volume,
            "/csi.v1.Controller/DeleteVolume": self._delete_volume,
            "/csi.v1.Node/NodePublishVolume": partial(self._with_path, csi_pb2.NodePublishVolumeRequest, "target_path", method),
            "/csi.v1.Node/NodeUnpublishVolume": partial(self._with_path, csi_pb2.NodeUnpublishVolumeRequest, "target_path", method),
            "/csi.v1.Node/NodeGetVolumeStats": partial(self._with_path, csi_pb2.NodeGetVolumeStatsRequest, "volume_path", method),
        }
        return grpc.unary_unary_rpc_method_handler(answers.get(method, partial(self._forward, method)))

    def _forward(self, method: str, request: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return self._driver.unary_unary(method)(request, timeout=30)
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())

    def _with_path(self, kind: Any, field: str, method: str, request: bytes, context: grpc.ServicerContext) -> bytes:
        message = kind.FromString(request)
        folder, slash, name = getattr(message, field).rpartition("/")
        if name == "target":
            setattr(message, field, f"{folder}{slash}mount")
        return self._forward(method, message.SerializeToString(), context)

    def _get_plugin_capabilities(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        answer = csi_pb2.GetPluginCapabilitiesResponse.FromString(self._forward("/csi.v1.Identity/GetPluginCapabilities", request, context))
        answer.capabilities.add().service.type = csi_pb2.PluginCapability.Service.CONTROLLER_SERVICE
        return answer.SerializeToString()

    def _create_volume(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        name = csi_pb2.CreateVolumeRequest.FromString(request).name
        volume = csi_pb2.Volume(volume_id=name, volume_context=self._attributes)
        return csi_pb2.CreateVolumeResponse(volume=volume).SerializeToString()

    def _delete_volume(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        return csi_pb2.DeleteVolumeResponse().SerializeToString()
