"""Keeps a device plugin served at its socket in kubelet's device-plugins folder, and registered with kubelet.

One method looks at what is there, does what is missing, and says when to look again. It is called at the start, when kubelet's
socket was removed, when kubelet has stopped reading the list of devices, and from time to time.
"""

import asyncio
import logging
import os
from collections.abc import Callable

import grpc
import grpc.aio

from driver.api.deviceplugin import DevicePlugin
from driver.api.endpoint import PlacedSocket, check_length, refuse_if_served
from driver.api.kubeletsocket import KubeletSocket
from driver.api.rpc import deviceplugin_pb2, deviceplugin_pb2_grpc
from driver.model.errors import StartError
from driver.model.kit import ContainerKit
from driver.observe.internalerror import report_internal_error
from driver.observe.logs import log, shown

_VERSION = "v1beta1"
_OPTION = "--device-plugins-dir"

# Times are in seconds.
_LOOK_INTERVAL = 10.0  # while all is well
_ABSENT_RETRY = 0.2  # while there is no socket of kubelet's; it refuses pods that have a device until the plugin is registered
_AWAY_RETRY = 1.0  # while kubelet does not serve its socket
_REFUSED_RETRY = 30.0  # after kubelet or the folder has refused something
_REGISTER_WAIT = 15.0  # kubelet tries for 10 s to connect to the plugin before it answers
_STREAM_WAIT = 10.0  # from the registration until kubelet has called ListAndWatch
_DISCONNECT_WAIT = 1.0  # from the end of ListAndWatch until kubelet has noted that the plugin is away; it would note it of a new one
_GRACE = 2.0  # for calls that run when the plugin stops


class RegisteredPlugin:
    """Serves and registers the plugin of one resource name, from the call of run() to stop()."""

    def __init__(
        self,
        resource: str,
        count: int,
        folder: str,
        kubelet: KubeletSocket,
        allocate: Callable[[str, str], ContainerKit],
        on_registered: Callable[[], None],
    ) -> None:
        """Take what the plugin offers, and where.

        `resource`, `count` and `allocate` are DevicePlugin's. `folder` is kubelet's device-plugins folder, and `kubelet` watches
        kubelet's socket in there; its owner has to call wake(). `on_registered` is called each time kubelet has registered it.
        """
        self.plugin = DevicePlugin(resource, count, allocate, self._stream_has_ended)
        self._count = count
        self._folder = folder
        self._kubelet = kubelet
        self._on_registered = on_registered
        self._socket: PlacedSocket | None = None
        self._server: grpc.aio.Server | None = None
        self._registered_with: tuple[int, int] | None = None  # the identity of the socket of the kubelet that knows the plugin
        self._opened_before = 0  # streams that were opened before the registration
        self._stream_due = 0.0  # when kubelet should have called ListAndWatch, in the event loop's time
        self._woken = asyncio.Event()
        self._complaint = ""

    async def run(self) -> None:
        """Serve and register the plugin until the task is cancelled."""
        while True:
            self._woken.clear()
            try:
                wait = await self._do_what_is_missing()
            except Exception:
                report_internal_error(f"registering {self.plugin.resource} with kubelet")
                wait = _REFUSED_RETRY
            try:
                async with asyncio.timeout(wait):
                    await self._woken.wait()
            except TimeoutError:
                pass

    def wake(self) -> None:
        """Look at once at what is missing."""
        self._woken.set()

    async def stop(self) -> None:
        """Remove the socket, and stop serving. Call it when the task of run() has ended."""
        if self._socket is not None:
            self._socket.remove()
        self.plugin.end_streams()
        await self._stop_server(_GRACE)

    async def _do_what_is_missing(self) -> float:
        """Serve and register the plugin if it is not. Returns after how many seconds to look again."""
        identity = self._kubelet.identity()
        if identity is None:
            # A kubelet that starts removes the plugins' sockets before it makes its own, so a socket made now might not stay.
            self._complain(f"{self._kubelet.path} does not exist: waiting for kubelet", logging.INFO)
            return _ABSENT_RETRY
        if self._socket is None or not self._socket.is_there():
            self._registered_with = None
            try:
                await self._serve()
            except FileNotFoundError:
                return _ABSENT_RETRY  # a kubelet that starts has removed the socket again
            except (StartError, OSError, RuntimeError) as error:
                self._complain(f"cannot serve: {error}")
                return _REFUSED_RETRY
        has_stream = self.plugin.streams > 0 or asyncio.get_running_loop().time() < self._stream_due
        if identity == self._registered_with and has_stream:
            return _LOOK_INTERVAL
        return await self._register(identity)

    async def _serve(self) -> None:
        """Serve at a new socket. Raises StartError, OSError and RuntimeError."""
        await self._stop_server(None)
        self._socket = None
        placed = PlacedSocket(self._folder, socket_name(self.plugin.resource))
        check_length(placed.path, _OPTION)
        # Two drivers would replace each other's socket for ever.
        await refuse_if_served(placed.path, _OPTION)
        self._server = server = grpc.aio.server()
        server.add_insecure_port(f"unix:{placed.hidden_path}")
        os.chmod(placed.hidden_path, 0o600)
        deviceplugin_pb2_grpc.add_DevicePluginServicer_to_server(self.plugin, server)
        await server.start()
        placed.show()
        self._socket = placed

    async def _stop_server(self, grace: float | None) -> None:
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(grace)

    async def _register(self, identity: tuple[int, int]) -> float:
        """Register the plugin with the kubelet whose socket has this identity. Returns after how many seconds to look again."""
        request = deviceplugin_pb2.RegisterRequest(
            version=_VERSION,
            endpoint=socket_name(self.plugin.resource),
            resource_name=self.plugin.resource,
            options=deviceplugin_pb2.DevicePluginOptions(),
        )
        opened_before = self.plugin.streams_opened
        # A pool of its own, because the common one would wait longer and longer before it connects to a kubelet that was away.
        options = [("grpc.use_local_subchannel_pool", 1)]
        try:
            async with grpc.aio.insecure_channel(f"unix:{self._kubelet.path}", options) as channel:
                await deviceplugin_pb2_grpc.RegistrationStub(channel).Register(request, timeout=_REGISTER_WAIT)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                self._complain(f"kubelet does not serve {self._kubelet.path}: waiting for it", logging.INFO)
                return _AWAY_RETRY
            self._complain(f"kubelet does not register it: {shown(error.details() or error.code().name)}; trying again later")
            return _REFUSED_RETRY
        self._complaint = ""
        self._registered_with = identity
        self._opened_before = opened_before
        self._stream_due = asyncio.get_running_loop().time() + _STREAM_WAIT
        log.info(f"kubelet has registered {self.plugin.resource} with {self._count} devices")
        self._on_registered()
        return _STREAM_WAIT

    def _stream_has_ended(self) -> None:
        loop = asyncio.get_running_loop()
        if self.plugin.streams_opened > self._opened_before:
            self._stream_due = loop.time() + _DISCONNECT_WAIT
        # Else it is the stream of a former kubelet, and that of the one that knows the plugin is still due.
        loop.call_later(_DISCONNECT_WAIT, self.wake)

    def _complain(self, text: str, level: int = logging.WARNING) -> None:
        """Log why the plugin is not registered, once until it is or the reason changes."""
        if text != self._complaint:
            self._complaint = text
            log.log(level, f"no pod gets {self.plugin.resource}: {text}")


def socket_name(resource: str) -> str:
    """Return the file name of the socket that serves a resource."""
    return f"meta-fuse-csi-plugin_{resource.replace('/', '_')}.sock"
