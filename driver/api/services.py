"""Serves CSI, the admin service and kubelet's registration over gRPC, until the driver is stopped.

The driver imports this module only after its volumes serve, because importing gRPC takes as long as answering hundreds of pods'
requests.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Sequence

import grpc.aio

from driver import __version__
from driver.api import registration
from driver.api.admin import Admin
from driver.api.csi import Controller, Identity, Node
from driver.api.endpoint import AlreadyServed, PlacedSocket, refuse_if_served, removal_problem
from driver.api.fusedeviceplugins import FuseDevicePlugins
from driver.api.rpc import admin_pb2_grpc, csi_pb2_grpc, pluginregistration_pb2_grpc
from driver.blocking.processes import Starter
from driver.devices.devices import Devices
from driver.linux.filewatch import FileWatch
from driver.model.errors import StartError
from driver.model.settings import Settings
from driver.observe.logs import log
from driver.volumes.standalone import Standalone
from driver.volumes.volumes import Volumes

GRACE = 5.0  # seconds for calls that run when the driver stops
_ALARM = 12  # seconds until SIGALRM kills a driver that does not stop; longer than GRACE for calls and GRACE for volumes


async def serve(
    settings: Settings,
    volumes: Volumes,
    standalone: Standalone,
    devices: Devices | None,
    files: FileWatch,
    starters: Sequence[Starter],
    node_problem: Callable[[], str],
    propagation_problem: Callable[[], str],
    stopped: asyncio.Event,
) -> None:
    """Serve until `stopped` is set. Raises StartError.

    `node_problem` returns why mounts would fail on this node, and `propagation_problem` why no container would see them. Both
    return "" if there is no problem.
    """
    sockets: list[str] = []  # the paths by which kubelet reaches the driver
    fatal: list[str] = []  # why the driver cannot go on

    def problem() -> str:
        return node_problem() or removal_problem(sockets)

    def give_up(reason: str) -> None:
        fatal.append(reason)
        stopped.set()

    if text := problem():
        log.warning(f"not ready: {text}")

    csi = grpc.aio.server()
    await _bind(csi, settings.csi_socket, "--endpoint")
    csi_pb2_grpc.add_IdentityServicer_to_server(Identity(problem), csi)
    csi_pb2_grpc.add_ControllerServicer_to_server(Controller(), csi)
    csi_pb2_grpc.add_NodeServicer_to_server(Node(volumes, settings.node_id, settings.pods_dir, propagation_problem), csi)
    await csi.start()
    servers = [csi]
    sockets.append(settings.csi_socket)

    admin = grpc.aio.server()
    admin_pb2_grpc.add_AdminServicer_to_server(Admin(volumes, standalone, problem, devices), admin)
    if await _bind_admin(admin, settings):
        await admin.start()
        servers.append(admin)
    where = f"CSI on {settings.csi_socket}, admin on {settings.admin_socket}"
    log.info(f"meta-fuse-csi-plugin {__version__}, node {settings.node_id}, serves {where}")

    for starter in starters:
        _watch_starter(starter, give_up)

    plugins = await _start_fuse_devices(settings, devices, problem, files)

    # kubelet calls CSI as soon as it has found the registration socket, so the driver registers when everything else serves.
    registration_socket = PlacedSocket(settings.plugin_registration_path, registration.SOCKET_NAME)
    if settings.kubelet_registration_path is not None:
        servers.append(await _register(settings.kubelet_registration_path, registration_socket, give_up))
        sockets.append(registration_socket.path)
        _watch_sockets(sockets, files, give_up, stopped)

    await stopped.wait()
    # SIGALRM ends this process if it hangs. gRPC does not stop if it could not start threads before, and writing to a log blocks
    # if nobody reads it.
    signal.alarm(_ALARM)
    if not fatal:
        log.info("stopping; volumes and their mounts stay as they are")
    registration_socket.remove()
    if plugins is not None:
        await plugins.stop()
    await asyncio.gather(*(server.stop(GRACE) for server in servers))
    if fatal:
        # kubelet or systemd starts a new driver, which has a new starter and registers itself.
        raise StartError(fatal[0])


async def _start_fuse_devices(
    settings: Settings, devices: Devices | None, problem: Callable[[], str], files: FileWatch
) -> FuseDevicePlugins | None:
    """Install what containers with a fuse device bind, and offer the devices to kubelet where there is one."""
    if devices is None:
        return None
    await devices.install()
    has_kubelet = settings.kubelet_registration_path is not None or os.path.isdir(settings.device_plugins_dir)
    if devices.problem or not has_kubelet:
        return None
    plugins = FuseDevicePlugins(
        settings.fuse_resources,
        settings.fuse_devices,
        settings.device_plugins_dir,
        settings.pod_resources_socket,
        devices,
        problem,
        files,
    )
    await plugins.start()
    return plugins


def _watch_starter(starter: Starter, give_up: Callable[[str], None]) -> None:
    """Give up when the starter ends."""
    loop = asyncio.get_running_loop()

    def starter_has_ended() -> None:
        loop.remove_reader(starter.pidfd)
        starter.report_end()
        give_up("the process that starts the driver's other processes has ended: the driver has to be restarted")

    loop.add_reader(starter.pidfd, starter_has_ended)


def _watch_sockets(sockets: list[str], files: FileWatch, give_up: Callable[[str], None], stopped: asyncio.Event) -> None:
    """Give up when one of the sockets by which kubelet reaches the driver is removed, as by somebody who clears kubelet's folders.

    A driver that does not register itself is not restarted by this: `ready` and `status` report the problem there.
    """

    def check_sockets() -> None:
        if not stopped.is_set() and (text := removal_problem(sockets)):
            give_up(text)

    for path in sockets:
        try:
            files.on_unlink(path, check_sockets)
        except OSError as error:
            log.warning(f"cannot watch {path}: {error}; if somebody removes it, restart the driver")
    check_sockets()  # one may have been removed before it was watched


async def _register(endpoint: str, registration_socket: PlacedSocket, give_up: Callable[[str], None]) -> grpc.aio.Server:
    """Register the driver with kubelet. Returns the server that kubelet asks. Raises StartError."""
    await refuse_if_served(registration_socket.path, "--plugin-registration-path")

    def refused(text: str) -> None:
        # kubelet does not ask again until the socket is made again.
        give_up(f"kubelet does not register the driver: {text}")

    server = grpc.aio.server()
    await _bind(server, registration_socket.hidden_path, "--plugin-registration-path")
    pluginregistration_pb2_grpc.add_RegistrationServicer_to_server(registration.Registration(endpoint, refused), server)
    await server.start()
    try:
        registration_socket.show()
    except OSError as error:
        raise StartError(f"--plugin-registration-path: cannot listen at {registration_socket.path}: {error.strerror}") from None
    return server


async def _bind_admin(admin: grpc.aio.Server, settings: Settings) -> bool:
    """Bind the admin service to its sockets. Returns whether there is one. Raises AlreadyServed if the run folder is in use."""
    is_bound = False
    for path, option in {settings.own_socket: "--run-dir", settings.admin_socket: "--admin-socket"}.items():
        try:
            await _bind(admin, path, option)
            is_bound = True
        except StartError as error:
            if isinstance(error, AlreadyServed) and path == settings.own_socket:
                raise
            # CSI works without the admin service, and --admin-socket may name a socket of another driver on this node.
            log.warning(f"the commands cannot call this driver: {error}")
    return is_bound


async def _bind(server: grpc.aio.Server, path: str, option: str) -> None:
    """Bind a server that is not started to a socket with mode 0600. Raises StartError, AlreadyServed if another process serves it."""
    folder = os.path.dirname(path) or "."
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        await refuse_if_served(path, option)
        if os.path.lexists(path):
            os.unlink(path)
        server.add_insecure_port(f"unix:{path}")
        os.chmod(path, 0o600)
    except (OSError, RuntimeError) as error:
        raise StartError(f"{option}: cannot listen at {path}: {error}") from None
