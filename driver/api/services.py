"""Serves CSI, the admin service and kubelet's registration over gRPC, until the driver is told to stop.

The driver imports this module only when its volumes serve: importing gRPC takes as long as answering hundreds of pods'
requests.
"""

import asyncio
import os
import signal
from collections.abc import Callable

import grpc.aio

from driver import __version__
from driver.api import registration
from driver.api.admin import Admin
from driver.api.csi import Controller, Identity, Node
from driver.api.endpoint import Served, refuse_if_served, removed
from driver.api.rpc import admin_pb2_grpc, csi_pb2_grpc, pluginregistration_pb2_grpc
from driver.blocking.processes import Starter
from driver.linux.filewatch import FileWatch
from driver.model.errors import StartError
from driver.model.settings import Settings
from driver.observe.logs import log
from driver.volumes.standalone import Standalone
from driver.volumes.volumes import Volumes

GRACE = 5.0  # seconds for calls that run when the driver stops
_END = 12  # seconds after which SIGALRM ends the process; the driver waits for GRACE twice before that


async def serve(
    settings: Settings,
    volumes: Volumes,
    standalone: Standalone,
    files: FileWatch,
    starter: Starter,
    node_problem: Callable[[], str],
    propagation_problem: Callable[[], str],
    stopped: asyncio.Event,
) -> None:
    """Serve until `stopped` is set. Raises StartError.

    `node_problem` says why mounts would not work on this node, and `propagation_problem` why no container would see them; ""
    where they do.
    """
    sockets: list[str] = []  # the paths by which kubelet reaches the driver

    def problem() -> str:
        return node_problem() or removed(sockets)

    if text := problem():
        log.warning(f"not ready: {text}")
    csi = grpc.aio.server()
    await _bind(csi, settings.csi_socket, "--endpoint")
    csi_pb2_grpc.add_IdentityServicer_to_server(Identity(problem), csi)
    csi_pb2_grpc.add_ControllerServicer_to_server(Controller(), csi)
    csi_pb2_grpc.add_NodeServicer_to_server(Node(volumes, settings.node_id, settings.pods_dir, propagation_problem), csi)
    await csi.start()
    sockets.append(settings.csi_socket)
    servers = [csi]
    admin = grpc.aio.server()
    admin_pb2_grpc.add_AdminServicer_to_server(Admin(volumes, standalone, problem), admin)
    if await _bind_admin(admin, settings):
        await admin.start()
        servers.append(admin)
    where = f"CSI on {settings.csi_socket}, admin on {settings.admin_socket}"
    log.info(f"meta-fuse-csi-plugin {__version__}, node {settings.node_id}, serves {where}")
    reasons: list[str] = []

    def give_up(text: str) -> None:
        reasons.append(text)
        stopped.set()

    def starter_has_ended() -> None:
        asyncio.get_running_loop().remove_reader(starter.pidfd)
        starter.report_end()
        give_up("the process that starts the driver's other processes has ended: the driver has to be restarted")

    asyncio.get_running_loop().add_reader(starter.pidfd, starter_has_ended)

    place = registration.Place(settings.plugin_registration_path)
    if settings.kubelet_registration_path is not None:
        servers.append(await _register(settings.kubelet_registration_path, place, give_up))
        sockets.append(place.path)

        def check_sockets() -> None:
            if not stopped.is_set() and (text := removed(sockets)):
                give_up(text)

        # Somebody may clear kubelet's folders. Where the driver does not register itself, `ready` and `status` report it.
        for path in sockets:
            try:
                files.on_unlink(path, check_sockets)
            except OSError as error:
                log.warning(f"cannot watch {path}: {error}; if somebody removes it, restart the driver")
        check_sockets()
    await stopped.wait()
    # The kernel ends this process if it hangs: gRPC never stops where it could not make threads at the start, and writing to
    # a log that nobody reads blocks.
    signal.alarm(_END)
    if not reasons:
        log.info("stopping; volumes and their mounts stay as they are")
    place.remove()
    await asyncio.gather(*(server.stop(GRACE) for server in servers))
    if reasons:
        # kubelet or systemd starts the driver again; the new one has a starter, and kubelet registers it.
        raise StartError(reasons[0])


async def _register(endpoint: str, place: registration.Place, give_up: Callable[[str], None]) -> grpc.aio.Server:
    """Register the driver with kubelet, which calls CSI at once: it is served by now. Raises StartError."""
    await refuse_if_served(place.path, "--plugin-registration-path")

    def refused(text: str) -> None:
        # kubelet asks again only when the socket is made again.
        give_up(f"kubelet does not register the driver: {text}")

    server = grpc.aio.server()
    await _bind(server, place.bound, "--plugin-registration-path")
    pluginregistration_pb2_grpc.add_RegistrationServicer_to_server(registration.Registration(endpoint, refused), server)
    await server.start()
    try:
        place.show()
    except OSError as error:
        raise StartError(f"--plugin-registration-path: cannot listen at {place.path}: {error.strerror}") from None
    return server


async def _bind_admin(admin: grpc.aio.Server, settings: Settings) -> bool:
    """Bind the admin service to its sockets. Returns whether there is one. Raises Served where another driver has the run folder."""
    is_bound = False
    for path, option in {settings.own_socket: "--run-dir", settings.admin_socket: "--admin-socket"}.items():
        try:
            await _bind(admin, path, option)
            is_bound = True
        except StartError as error:
            if isinstance(error, Served) and path == settings.own_socket:
                raise
            # CSI does not need it, and another driver on the same node may have the socket that --admin-socket names.
            log.warning(f"the commands cannot call this driver: {error}")
    return is_bound


async def _bind(server: grpc.aio.Server, path: str, option: str) -> None:
    """Bind a server that is not started to a socket, mode 0600. Raises StartError, Served where another process serves there."""
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
