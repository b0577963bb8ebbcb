"""The driver makes itself known to kubelet, as node-driver-registrar would do beside it.

kubelet watches its plugins_registry folder, asks the service on each socket there what it is, and tells it the outcome. A
kubelet that starts later, or again, finds the socket and asks anew.
"""

from collections.abc import Callable

from driver.csi import NAME
from driver.logs import log, shown
from driver.rpc import pluginregistration_pb2, pluginregistration_pb2_grpc
from driver.status import Context

_CSI_VERSION = "1.0.0"  # of the interface: kubelet takes every 1.x for the same


class Registration(pluginregistration_pb2_grpc.RegistrationServicer):
    """The service of pluginregistration.proto."""

    def __init__(self, endpoint: str, on_refusal: Callable[[str], None]) -> None:
        """`endpoint` is the CSI socket's path as kubelet sees it."""
        self._endpoint = endpoint
        self._on_refusal = on_refusal

    async def GetInfo(self, request: pluginregistration_pb2.InfoRequest, context: Context) -> pluginregistration_pb2.PluginInfo:
        """GetInfo."""
        return pluginregistration_pb2.PluginInfo(type="CSIPlugin", name=NAME, endpoint=self._endpoint, supported_versions=[_CSI_VERSION])

    async def NotifyRegistrationStatus(
        self, request: pluginregistration_pb2.RegistrationStatus, context: Context
    ) -> pluginregistration_pb2.RegistrationStatusResponse:
        """NotifyRegistrationStatus."""
        if request.plugin_registered:
            log.info(f"kubelet has registered {NAME}")
        else:
            self._on_refusal(shown(request.error) or "it gives no reason")
        return pluginregistration_pb2.RegistrationStatusResponse()


def socket_path(folder: str) -> str:
    """Where the service listens in kubelet's plugins_registry folder; any name would do, and this one is usual."""
    return f"{folder}/{NAME}-reg.sock"
