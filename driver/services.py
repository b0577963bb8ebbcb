"""The gRPC services that the driver offers, until it is told to stop.

Imported when the volumes are taken up: gRPC takes as long to import as hundreds of pods' requests take to be answered.
"""

import asyncio
import os
import signal
from collections.abc import Callable
from functools import partial

import grpc.aio

from driver import __version__, node, registration
from driver.admin import Admin
from driver.csi import Controller, Identity, Node
from driver.endpoint import refuse_if_served, removed
from driver.errors import StartError
from driver.filewatch import FileWatch
from driver.logs import log
from driver.processes import Starter
from driver.rpc import admin_pb2_grpc, csi_pb2_grpc, pluginregistration_pb2_grpc
from driver.settings import Settings
from driver.standalone import Standalone
from driver.volumes import Volumes

GRACE = 5.0  # seconds for calls at work when the driver stops
_END = 12  # seconds, after which the process ends, with SIGALRM; GRACE comes twice before it


async def serve(
    settings: Settings, volumes: Volumes, standalone: Standalone, files: FileWatch, starter: Starter, stopped: asyncio.Event
) -> None:
    """Serve until `stopped` is set. Raises StartError."""
    sockets: list[str] = []  # by which kubelet reaches the driver

    def problem() -> str:
        return node.problem(settings.pods_dir, settings.run_dir) or removed(sockets)

    if text := problem():
        log.warning(f"not ready: {text}")
    if os.getpid() == 1:
        log.warning("FUSE programs will see 0 as the process id of every request, which some refuse: give the driver's pod hostPID: true")
    csi = _bound(settings.csi_socket, "--endpoint")
    csi_pb2_grpc.add_IdentityServicer_to_server(Identity(problem), csi)
    csi_pb2_grpc.add_ControllerServicer_to_server(Controller(), csi)
    propagation = partial(node.propagation, settings.pods_dir)
    csi_pb2_grpc.add_NodeServicer_to_server(Node(volumes, settings.node_id, settings.pods_dir, propagation), csi)
    await csi.start()
    sockets.append(settings.csi_socket)
    servers = [csi]
    try:
        admin = _bound(settings.admin_socket, "--admin-socket")
        admin_pb2_grpc.add_AdminServicer_to_server(Admin(volumes, standalone, problem), admin)
        await admin.start()
        servers.append(admin)
    except StartError as error:
        # CSI does not need it, and another driver on the same node may have it.
        log.warning(f"no admin service: {error}")
    where = f"CSI on {settings.csi_socket}, admin on {settings.admin_socket}"
    log.info(f"meta-fuse-csi-plugin {__version__}, node {settings.node_id}, serves {where}")
    reasons: list[str] = []

    def give_up(text: str) -> None:
        reasons.append(text)
        stopped.set()

    def starter_has_ended() -> None:
        asyncio.get_running_loop().remove_reader(starter.pidfd)
        starter.report_mistake()
        give_up("the process that starts others has ended")

    asyncio.get_running_loop().add_reader(starter.pidfd, starter_has_ended)

    place = registration.Place(settings.plugin_registration_path)
    if settings.kubelet_registration_path is not None:
        servers.append(await _register(settings.kubelet_registration_path, place, give_up))
        sockets.append(place.path)

        def look() -> None:
            if not stopped.is_set() and (text := removed(sockets)):
                give_up(text)

        # Somebody may clear kubelet's folders. Without kubelet nobody may want the socket, and `status` tells it.
        for path in sockets:
            try:
                files.on_unlink(path, look)
            except OSError as error:
                log.warning(f"nobody would be told that {path} is removed: {error}")
        look()
    await stopped.wait()
    # The kernel ends this process where nothing in it goes on: gRPC that got no threads at the start never stops, nor does a
    # log that nobody takes.
    signal.alarm(_END)
    if not reasons:
        log.info("stopping; volumes and their mounts stay as they are")
    place.remove()
    await asyncio.gather(*(server.stop(GRACE) for server in servers))
    if reasons:
        # Whoever started this process starts it again, and then it has another starter, and kubelet asks again.
        raise StartError(reasons[0])


async def _register(endpoint: str, place: registration.Place, give_up: Callable[[str], None]) -> grpc.aio.Server:
    """Let kubelet know the driver, which serves CSI by now: kubelet calls it at once. Raises StartError."""
    refuse_if_served(place.path, "--plugin-registration-path")

    def refused(text: str) -> None:
        # kubelet does not ask again until the socket is made anew.
        give_up(f"kubelet does not register the driver: {text}")

    server = _bound(place.bound, "--plugin-registration-path")
    pluginregistration_pb2_grpc.add_RegistrationServicer_to_server(registration.Registration(endpoint, refused), server)
    await server.start()
    try:
        place.show()
    except OSError as error:
        raise StartError(f"--plugin-registration-path: cannot listen at {place.path}: {error.strerror}") from None
    return server


def _bound(path: str, option: str) -> grpc.aio.Server:
    """A server that is bound to a socket, mode 0600, and not started. Raises StartError where another process listens there."""
    folder = os.path.dirname(path) or "."
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        refuse_if_served(path, option)
        if os.path.lexists(path):
            os.unlink(path)
        server = grpc.aio.server()
        server.add_insecure_port(f"unix:{path}")
        os.chmod(path, 0o600)
        return server
    except (OSError, RuntimeError) as error:
        raise StartError(f"{option}: cannot listen at {path}: {error}") from None
