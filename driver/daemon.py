"""The driver's process: puts the parts together, serves until a signal, and leaves the volumes as they are."""

import asyncio
import os
import resource
import signal
import socket
import stat
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import grpc.aio

from driver import __version__, apart, metrics, node, privileges, registration, scrape
from driver.admin import Admin
from driver.bounded import NUDGE
from driver.closewatch import CloseWatch
from driver.csi import Controller, Identity, Node
from driver.fusemount import Workspace
from driver.logs import log
from driver.records import Records
from driver.rpc import admin_pb2_grpc, csi_pb2_grpc, pluginregistration_pb2_grpc
from driver.standalone import Standalone
from driver.volumes import Volumes

_GRACE = 5.0  # seconds for calls at work when the driver stops


class StartError(Exception):
    """The driver cannot start; the text is one line for the user."""


@dataclass(frozen=True)
class Settings:
    """What the command line says."""

    csi_socket: str
    node_id: str
    pods_dir: str
    run_dir: str
    state_dir: str
    admin_socket: str
    kubelet_registration_path: str | None  # None: something else registers the driver, or there is no kubelet
    plugin_registration_path: str
    metrics_address: str | None


def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT. Raises StartError."""
    _open_standard_streams()
    os.umask(0o077)
    _raise_fd_limit()
    # Before the privileges go, which a port below 1024 needs.
    scraped = _listen_for_scrapes(settings.metrics_address)
    try:
        privileges.drop()
    except OSError as error:
        raise StartError(f"cannot drop privileges: {error}") from None
    starter = apart.begin()
    # Not asyncio.run(): it would cancel what waits for pods and close their connections right here, where what is queued
    # in one may block for as long as the pod likes. The caller ends the process instead, with all that there is.
    _loop = asyncio.new_event_loop()
    asyncio.set_event_loop(_loop)
    _loop.run_until_complete(_serve(settings, scraped, starter))


def socket_path(endpoint: str) -> str:
    """The path of a CSI endpoint, unix:PATH or unix://PATH. Raises StartError."""
    scheme, colon, rest = endpoint.partition(":")
    path = rest[2:] if rest.startswith("//") else rest
    if scheme != "unix" or not colon or not path.strip("/"):
        raise StartError(f"--endpoint {endpoint!r} is not unix:PATH")
    if len(os.fsencode(path)) > 107:
        raise StartError(f"--endpoint {endpoint!r}: the path is longer than the 107 bytes that a Unix socket's may have")
    return path


async def _serve(settings: Settings, scraped: socket.socket | None, starter: int) -> None:
    _refuse_if_served(settings.csi_socket, "--endpoint")
    with ExitStack() as stack:
        try:
            workspace = Workspace(settings.run_dir)
            stack.callback(workspace.close)
            watch = CloseWatch()
            stack.callback(watch.close)
            volumes = Volumes(workspace, watch, Records(settings.state_dir))
            stack.callback(volumes.release)
            standalone = Standalone(volumes, f"{settings.run_dir}/volumes")
            standalone.prepare()
            volumes.restore()
        except OSError as error:
            reason = node.problem(settings.pods_dir, settings.run_dir) or "the driver needs root with CAP_SYS_ADMIN"
            raise StartError(f"cannot prepare {settings.run_dir} (--run-dir): {error}; {reason}") from None
        scrapes = scrape.Scrapes()
        stack.callback(scrapes.stop)
        if scraped is not None:
            metrics.start(volumes.by_state, volumes.troubled)
            await scrapes.start(scraped)
            log.info(f"metrics are at {scrape.url(scraped)}")
        await _serve_volumes(settings, volumes, standalone, starter)
        volumes.release()
        if not await volumes.settle(_GRACE):
            stack.pop_all()  # what is under way on the private tmpfs is finished by the next driver


async def _serve_volumes(settings: Settings, volumes: Volumes, standalone: Standalone, starter: int) -> None:
    problem = partial(node.problem, settings.pods_dir, settings.run_dir)
    if text := problem():
        log.warning(f"not ready: {text}")
    if os.getpid() == 1:
        log.warning("FUSE programs will see 0 as the process id of every request, which some refuse: give the driver's pod hostPID: true")
    csi = grpc.aio.server()
    csi_pb2_grpc.add_IdentityServicer_to_server(Identity(problem), csi)
    csi_pb2_grpc.add_ControllerServicer_to_server(Controller(), csi)
    csi_pb2_grpc.add_NodeServicer_to_server(
        Node(volumes, settings.node_id, settings.pods_dir, partial(node.propagation, settings.pods_dir)), csi
    )
    admin = grpc.aio.server()
    admin_pb2_grpc.add_AdminServicer_to_server(Admin(volumes, standalone, problem), admin)

    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    asyncio.get_running_loop().add_signal_handler(NUDGE, lambda: None)  # else it would be ignored, and interrupt nothing
    _listen(csi, settings.csi_socket, "--endpoint")
    await csi.start()
    servers = [csi]
    try:
        _listen(admin, settings.admin_socket, "--admin-socket")
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
        asyncio.get_running_loop().remove_reader(starter)
        give_up("the process that starts others has ended")

    asyncio.get_running_loop().add_reader(starter, starter_has_ended)

    place = registration.Place(settings.plugin_registration_path)
    if settings.kubelet_registration_path is not None:
        servers.append(await _register(settings.kubelet_registration_path, place, give_up))
    await stopped.wait()
    if not reasons:
        log.info("stopping; volumes and their mounts stay as they are")
    place.remove()
    await asyncio.gather(*(server.stop(_GRACE) for server in servers))
    if reasons:
        # Whoever started this process starts it again, and then it has another starter, and kubelet asks again.
        raise StartError(reasons[0])


async def _register(endpoint: str, place: registration.Place, give_up: Callable[[str], None]) -> grpc.aio.Server:
    """Let kubelet know the driver, which serves CSI by now: kubelet calls it at once. Raises StartError."""
    _refuse_if_served(place.path, "--plugin-registration-path")

    def refused(text: str) -> None:
        # kubelet does not ask again until the socket is made anew.
        give_up(f"kubelet does not register the driver: {text}")

    server = grpc.aio.server()
    pluginregistration_pb2_grpc.add_RegistrationServicer_to_server(registration.Registration(endpoint, refused), server)
    _listen(server, place.bound, "--plugin-registration-path")
    await server.start()
    try:
        place.show()
    except OSError as error:
        raise StartError(f"--plugin-registration-path: cannot listen at {place.path}: {error.strerror}") from None
    return server


def _listen_for_scrapes(address: str | None) -> socket.socket | None:
    if address is None:
        return None
    try:
        return scrape.listen(address)
    except scrape.BadAddress as error:
        raise StartError(f"--metrics-address: {error}") from None


def _listen(server: grpc.aio.Server, path: str, option: str) -> None:
    """Bind a server's socket, mode 0600. Raises StartError where another process listens there."""
    folder = os.path.dirname(path) or "."
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        _refuse_if_served(path, option)
        if os.path.lexists(path):
            os.unlink(path)
        server.add_insecure_port(f"unix:{path}")
        os.chmod(path, 0o600)
    except (OSError, RuntimeError) as error:
        raise StartError(f"{option}: cannot listen at {path}: {error}") from None


def _refuse_if_served(path: str, option: str) -> None:
    if not os.path.lexists(path):
        return
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise StartError(f"{option}: {path} exists and is no socket; remove it or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except OSError:
            return
    raise StartError(f"{option}: another process serves {path}; stop it first")


def _open_standard_streams() -> None:
    # Where one is closed, the next socket would get its number, and be written to.
    while (fd := os.open("/dev/null", os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def _raise_fd_limit() -> None:
    # Two fds a volume, and some for each call at work.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
