"""The driver makes itself known to kubelet, as node-driver-registrar would do beside it.

kubelet watches its plugins_registry folder, asks the service on each socket there what it is, and tells it the outcome. A
kubelet that starts later, or again, finds the socket and asks anew.
"""

import os
import secrets
from collections.abc import Callable

from driver.api.answers import Context
from driver.api.csi import NAME
from driver.api.rpc import pluginregistration_pb2, pluginregistration_pb2_grpc
from driver.observe.logs import log, shown

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


class Place:
    """The socket's place in kubelet's plugins_registry folder.

    gRPC removes by name what it has bound. Where something else has put its own there meanwhile (node-driver-registrar, in
    a pod that takes this one's place), kubelet would forget the driver for ever. So gRPC binds a name that kubelet does not
    look at, and the socket is moved.
    """

    def __init__(self, folder: str) -> None:
        self.path = f"{folder}/{NAME}-reg.sock"  # any name would do; this one is usual
        self.bound = f"{folder}/.{secrets.token_hex(8)}"
        self._inode = 0

    def show(self) -> None:
        """Let kubelet see it. Raises OSError."""
        self._inode = os.lstat(self.bound).st_ino
        os.rename(self.bound, self.path)

    def remove(self) -> None:
        """Remove it, if it is this one still: kubelet forgets the driver, and pods are told that it is not there."""
        try:
            if os.lstat(self.path).st_ino == self._inode:
                os.unlink(self.path)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                log.warning(f"cannot remove {self.path}: {error.strerror}")
