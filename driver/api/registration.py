"""Registers the driver with kubelet, so that no node-driver-registrar is needed beside it.

kubelet watches its plugins_registry folder, asks the service at each socket there what it is (GetInfo), and reports the outcome
to it (NotifyRegistrationStatus). A kubelet that starts later finds the socket and asks again.
"""

from collections.abc import Callable

from driver.api.answers import Context
from driver.api.csi import NAME
from driver.api.rpc import pluginregistration_pb2, pluginregistration_pb2_grpc
from driver.observe.logs import log, shown

SOCKET_NAME = f"{NAME}-reg.sock"  # the name that node-driver-registrar uses; kubelet accepts any
_CSI_VERSION = "1.0.0"  # the version of the interface; kubelet treats all versions 1.x alike


class Registration(pluginregistration_pb2_grpc.RegistrationServicer):
    """Implements the service of pluginregistration.proto."""

    def __init__(self, endpoint: str, on_refusal: Callable[[str], None]) -> None:
        """`endpoint` is the CSI socket's path as kubelet sees it; `on_refusal` is called with kubelet's reason if it refuses."""
        self._endpoint = endpoint
        self._on_refusal = on_refusal

    async def GetInfo(self, request: pluginregistration_pb2.InfoRequest, context: Context) -> pluginregistration_pb2.PluginInfo:
        """Return what kubelet has to know to call the driver."""
        return pluginregistration_pb2.PluginInfo(type="CSIPlugin", name=NAME, endpoint=self._endpoint, supported_versions=[_CSI_VERSION])

    async def NotifyRegistrationStatus(
        self, request: pluginregistration_pb2.RegistrationStatus, context: Context
    ) -> pluginregistration_pb2.RegistrationStatusResponse:
        """Note whether kubelet has registered the driver."""
        if request.plugin_registered:
            log.info(f"kubelet has registered {NAME}")
        else:
            self._on_refusal(shown(request.error) or "it gives no reason")
        return pluginregistration_pb2.RegistrationStatusResponse()
