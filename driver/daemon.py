"""The driver's process: puts the parts together, serves until a signal, and leaves the volumes as they are."""

import asyncio
import os
import resource
import signal
import socket
from contextlib import ExitStack
from errno import EACCES, EPERM
from functools import partial

from driver import nodecheck
from driver.api.endpoint import Served, listener_at, refuse_if_served
from driver.blocking.calls import Bounds
from driver.blocking.processes import Starter
from driver.blocking.threads import NUDGE
from driver.linux import features, privileges, syscalls
from driver.linux.filewatch import FileWatch
from driver.model.errors import StartError
from driver.model.settings import Settings
from driver.mounts.workspace import Workspace
from driver.observe import metrics, metricspage
from driver.observe.internalerror import handle_loop_exception
from driver.observe.logs import log
from driver.rundir import Claim
from driver.volumes.records import Records
from driver.volumes.standalone import Standalone
from driver.volumes.volumes import Volumes

_QUIET_WAIT = 0.5  # seconds, where pods do not stop asking
_FORMER_WAIT = 15.0  # seconds; a driver that is told to stop ends within services.GRACE twice
_FORMER_RETRY = 0.05


def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT. Raises StartError."""
    _open_standard_streams()
    os.umask(0o077)
    _raise_fd_limit()
    # Before the privileges go: a port below 1024 needs one, another user's limits need another.
    scraped = _listen_for_scrapes(settings.metrics_address)
    instance = _open_inotify()
    try:
        privileges.drop_unused()
    except OSError as error:
        raise StartError(f"cannot drop privileges: {error}") from None
    starter = Starter()
    # Not asyncio.run(): it would cancel what waits for pods and close their connections right here, where what is queued
    # in one may block for as long as the pod likes. The caller ends the process instead, with all that there is.
    _loop = asyncio.new_event_loop()
    asyncio.set_event_loop(_loop)
    _loop.set_exception_handler(handle_loop_exception)
    _loop.run_until_complete(_serve(settings, scraped, instance, starter))


async def _serve(settings: Settings, scraped: socket.socket | None, instance: int, starter: Starter) -> None:
    await refuse_if_served(settings.csi_socket, "--endpoint")
    starter.keep_spare()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    asyncio.get_running_loop().add_signal_handler(NUDGE, lambda: None)  # else it would be ignored, and interrupt nothing
    with ExitStack() as stack:
        try:
            # First of all: the records are usually in it, and where it cannot be made that is said of --run-dir.
            os.makedirs(settings.run_dir, mode=0o700, exist_ok=True)
            records = _open_records(settings.state_dir)
            is_alone = await _former_driver_ends(settings, Claim(settings.run_dir), records, stopped)
            if stopped.is_set():
                return
            workspace = Workspace(settings.run_dir, is_alone)
            stack.callback(workspace.close)
            files = FileWatch(instance)
            stack.callback(files.close)
            volumes = Volumes(workspace, files, records, Bounds(starter))
            stack.callback(volumes.release)
            standalone = Standalone(volumes, f"{settings.run_dir}/volumes")
            standalone.prepare()
            volumes.restore(settings.pods_dir, standalone.root)
        except OSError as error:
            reason = nodecheck.problem(settings.pods_dir, settings.run_dir)
            if not reason and error.errno in (EPERM, EACCES):
                reason = "the driver needs root with CAP_SYS_ADMIN"
            raise StartError(f"cannot prepare {settings.run_dir} (--run-dir): {error}{'; ' if reason else ''}{reason}") from None
        scrapes = metricspage.MetricsServer()
        stack.callback(scrapes.stop)
        if scraped is not None:
            metrics.start(volumes.by_state, volumes.troubled)
            await scrapes.start(scraped)
            log.info(f"metrics are at {metricspage.url(scraped)}")
        # Pods have waited since the former driver ended. kubelet waits for this one as well, but asks again.
        await volumes.quiet(_QUIET_WAIT)
        from driver.api import services

        if not features.sees_host_pids():
            log.warning(nodecheck.NO_HOST_PIDS)
        node_problem = partial(nodecheck.problem, settings.pods_dir, settings.run_dir)
        propagation_problem = partial(nodecheck.propagation, settings.pods_dir)
        try:
            await services.serve(settings, volumes, standalone, files, starter, node_problem, propagation_problem, stopped)
        finally:
            volumes.release()
            if not await volumes.settle(services.GRACE):
                stack.pop_all()  # what is under way on the private tmpfs is finished by the next driver


def _open_records(folder: str) -> Records:
    try:
        return Records(folder)
    except OSError as error:
        raise StartError(f"cannot prepare {folder} (--state-dir): {error.strerror}; give a folder on a tmpfs of the node") from None


async def _former_driver_ends(settings: Settings, claim: Claim, records: Records, stopped: asyncio.Event) -> bool:
    """Wait for a driver that does not serve any more and still has the run folder or the records. Raises Served where one serves.

    It finishes what is under way when it is stopped, and whoever deletes its pod by force has the next one started meanwhile.
    Returns whether it has ended; it may hang in the kernel for ever, which must not keep this one from serving.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + _FORMER_WAIT
    is_told = False
    while True:
        listener = await listener_at(settings.own_socket)
        if listener is not None and listener.answers:
            text = f"another driver ({listener}) serves from {settings.run_dir} (--run-dir)"
            raise Served(f"{text}: stop it first, or give each driver a --run-dir of its own")
        is_stuck = listener is not None  # one that is stopping has removed its sockets
        has_folder, has_records = claim.own(), records.own()
        if (has_folder and has_records) or stopped.is_set():
            return has_folder and has_records
        folder = settings.run_dir if has_records else settings.state_dir
        if is_stuck or loop.time() >= end:
            break
        if not is_told:
            is_told = True
            log.info(f"another driver has {folder}: waiting for its end")
        await asyncio.sleep(_FORMER_RETRY)
    if has_records:
        log.warning(f"another driver has {folder} and does not serve: this one leaves what is there as it is")
    else:
        log.warning(
            f"another driver has {folder}: its volumes are known here when kubelet publishes them, and until it has ended a "
            "restart of this one will not know any (give each driver a --state-dir of its own)"
        )
    return False


def _listen_for_scrapes(address: str | None) -> socket.socket | None:
    if address is None:
        return None
    try:
        return metricspage.listen(address)
    except metricspage.BadAddress as error:
        raise StartError(f"--metrics-address: {error}") from None


def _open_inotify() -> int:
    # inotify instances are counted by user, 128 for each: a pod that runs as root, in a user namespace too, could take all
    # of root's and keep the driver from starting.
    try:
        return privileges.run_as_unused_uid(syscalls.inotify_init)
    except OSError as error:
        raise StartError(f"no inotify instance is to be had ({error.strerror}); raise fs.inotify.max_user_instances") from None


def _open_standard_streams() -> None:
    # Where one is closed, the next socket would get its number, and be written to.
    while (fd := os.open("/dev/null", os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def _raise_fd_limit() -> None:
    # Two fds a volume, and some for each call at work.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except ValueError:
        pass  # the hard limit is above fs.nr_open, as where that was lowered later: no process may set it any more
