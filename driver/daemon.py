"""Starts the driver's parts, serves until a signal, and stops so that all volumes and their mounts stay as they are.

The start, in serve(), before there is an event loop, a thread or anything of a pod's:

    1. Make standard streams, umask and the limit of fds what the driver needs.
    2. Open the metrics' listening socket and the inotify instance, and read the options of cgroup2. For these the driver needs
       privileges that it drops next.
    3. Drop the privileges that it does not need any more.
    4. Fork the starter, which forks all later processes, and move it out of the control groups of the driver's container.

The start goes on in _serve(), in the event loop:

    5. Make sure that no other driver serves the CSI socket, and handle signals.
    6. Make the run folder, wait until a former driver has left it and the records, and open the workspace.
    7. Restore the volumes from their records. From now on pods' requests are answered.
    8. Serve the metrics.
    9. Wait until the requests that had queued meanwhile are answered, for half a second at most.
   10. Repair the volumes without Kubernetes from time to time, and serve kubelet and the commands, until a signal or an error
       sets `stopped`.

The stop:

   11. Stop the gRPC servers (services.serve() does this before it returns).
   12. Stop repairing and watching, without unmounting anything, and wait for those that are being detached.
   13. Close the metrics, the file watch and the workspace, in this order. If a mount is still being detached, leave them: its
       thread uses the workspace, and the next driver finishes the work.
   14. The caller ends the process at once (cli.py).
"""

import asyncio
import gc
import os
import resource
import signal
import socket
from contextlib import ExitStack
from errno import EACCES, EPERM
from functools import partial

from driver import nodecheck
from driver.api.endpoint import AlreadyServed, find_listener, refuse_if_served
from driver.blocking.calls import Bounds
from driver.blocking.processes import Starter
from driver.blocking.threads import NUDGE
from driver.devices.devices import Devices
from driver.linux import controlgroups, features, privileges, syscalls
from driver.linux.filewatch import FileWatch
from driver.model.errors import StartError
from driver.model.settings import Settings
from driver.mounts.workspace import Workspace
from driver.observe import metrics, metricspage
from driver.observe.internalerror import handle_loop_exception
from driver.observe.logs import log
from driver.rundir import RunDirLock
from driver.volumes.records import Records
from driver.volumes.standalone import Standalone
from driver.volumes.volumes import Volumes

_QUIET_WAIT = 0.5  # seconds at most until pods' requests that had queued are answered
_FORMER_WAIT = 15.0  # seconds; a driver that is being stopped ends within services.GRACE twice
_FORMER_RETRY = 0.05  # seconds


def serve(settings: Settings) -> None:
    """Run the driver until SIGTERM or SIGINT. Raises StartError if it cannot start, or cannot go on."""
    # 1. The process itself. All objects of the start stay, so the garbage collector looks at none of them until step 10.
    gc.disable()
    _open_standard_streams()
    os.umask(0o077)
    _raise_fd_limit()
    # 2. Listening at a port below 1024 and changing the uid need privileges.
    metrics_listener = _listen_for_metrics(settings.metrics_address)
    inotify = _open_inotify()
    cgroup2 = controlgroups.options_of_version_2()
    # 3. Capabilities belong to threads, so they are dropped before there are any. The processes that enter the namespaces of containers
    # need some that the driver itself does not need, so their starter is forked before that.
    device_problem = nodecheck.device_problem()
    namespaces = Starter(privileges.keep_for_namespaces) if settings.fuse_devices else None
    try:
        privileges.drop_unused()
    except OSError as error:
        raise StartError(f"cannot drop privileges: {error}") from None
    # 4. A process that was forked later could hold fds of a pod's.
    starter = Starter()
    for each in (starter, namespaces):
        if each is not None:
            _leave_control_groups(each.pid, cgroup2)
    # asyncio.run() would cancel all tasks at the end and close pods' connections in this thread, which a pod could block for ever
    # with what it has queued in them. The caller ends the process instead.
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.set_exception_handler(handle_loop_exception)
    loop.run_until_complete(_serve(settings, metrics_listener, inotify, starter, namespaces, device_problem))


async def _serve(
    settings: Settings,
    metrics_listener: socket.socket | None,
    inotify: int,
    starter: Starter,
    namespaces: Starter | None,
    device_problem: str,
) -> None:
    # 5. Another driver, and signals.
    await refuse_if_served(settings.csi_socket, "--endpoint")
    starter.keep_spare()
    stopped = _stop_at_signals()
    with ExitStack() as stack:
        try:
            # 6. The run folder is made first: the records are usually in it, and an error must name --run-dir then.
            os.makedirs(settings.run_dir, mode=0o700, exist_ok=True)
            records = _open_records(settings.state_dir)
            is_alone = await _wait_for_former_driver(settings, RunDirLock(settings.run_dir), records, stopped)
            if stopped.is_set():
                return
            workspace = Workspace(settings.run_dir, is_alone)
            stack.callback(workspace.close)
            files = FileWatch(inotify)
            stack.callback(files.close)
            # 7. The volumes.
            volumes = Volumes(workspace, files, records, Bounds(starter))
            stack.callback(volumes.release)
            standalone = Standalone(volumes, f"{settings.run_dir}/volumes")
            standalone.prepare()
            devices = None if namespaces is None else Devices(settings, workspace, files, namespaces, device_problem)
            await volumes.restore(settings.pods_dir, standalone.root, () if devices is None else devices.recorded_devices)
            stack.callback(standalone.close)
        except OSError as error:
            raise _cannot_prepare(settings, error) from None
        if devices is not None:
            devices.restore()
            stack.callback(devices.release)
        # 8. The metrics.
        metrics_server = metricspage.MetricsServer()
        stack.callback(metrics_server.stop)
        if metrics_listener is not None:
            metrics.start(volumes.by_state, volumes.troubled, volumes.detached, lambda: 0 if devices is None else devices.mounts())
            await metrics_server.start(metrics_listener)
            log.info(f"metrics are at {metricspage.url(metrics_listener)}")
        # 9. Pods have waited since the former driver ended. kubelet has waited as well, but it asks again.
        await volumes.quiet(_QUIET_WAIT)
        # 10. Importing gRPC comes last: it takes as long as answering hundreds of pods.
        from driver.api import services

        gc.collect()
        gc.freeze()  # else each full collection would walk through all modules, and hold the event loop for 20 ms
        gc.enable()
        repairing = asyncio.get_running_loop().create_task(standalone.repair_periodically())
        if not features.sees_host_pids():
            log.warning(nodecheck.NO_HOST_PIDS)
        node_problem = partial(nodecheck.first_problem, settings.pods_dir, settings.run_dir)
        propagation_problem = partial(nodecheck.propagation_problem, settings.pods_dir)
        try:
            # 11. This stops the gRPC servers before it returns.
            starters = [starter] if namespaces is None else [starter, namespaces]
            await services.serve(settings, volumes, standalone, devices, files, starters, node_problem, propagation_problem, stopped)
        finally:
            # 12. The mounts stay as they are.
            repairing.cancel()
            volumes.release()
            if devices is not None:
                devices.release()
            # 13. Leaving the `with` block closes the rest.
            if not await volumes.settle(services.GRACE) or (devices is not None and devices.is_busy):
                stack.pop_all()


def _stop_at_signals() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    # Without a handler the kernel would ignore this signal, and it would interrupt no system call.
    loop.add_signal_handler(NUDGE, lambda: None)
    return stopped


def _open_records(folder: str) -> Records:
    try:
        return Records(folder)
    except OSError as error:
        raise StartError(f"cannot prepare {folder} (--state-dir): {error.strerror}; give a folder on a tmpfs of the node") from None


def _cannot_prepare(settings: Settings, error: OSError) -> StartError:
    reason = nodecheck.first_problem(settings.pods_dir, settings.run_dir)
    if not reason and error.errno in (EPERM, EACCES):
        reason = "the driver needs root with CAP_SYS_ADMIN"
    return StartError(f"cannot prepare {settings.run_dir} (--run-dir): {error}{'; ' if reason else ''}{reason}")


async def _wait_for_former_driver(settings: Settings, run_dir_lock: RunDirLock, records: Records, stopped: asyncio.Event) -> bool:
    """Wait until a driver that does not serve any more has left the run folder and the records. Returns whether it has.

    A driver that is being stopped finishes its work, and the next one may be started meanwhile, as by a pod that was deleted by
    force. One that hangs in the kernel may never end, and must not keep this one from serving, so the wait is limited. Raises
    AlreadyServed if a driver serves from the run folder.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + _FORMER_WAIT
    is_logged = False
    while True:
        listener = await find_listener(settings.own_socket)
        if listener is not None and listener.answers:
            text = f"another driver ({listener}) serves from {settings.run_dir} (--run-dir)"
            raise AlreadyServed(f"{text}: stop it first, or give each driver a --run-dir and an --endpoint of its own")
        is_stuck = listener is not None  # a driver that is being stopped has removed its sockets
        has_folder, has_records = run_dir_lock.acquire(), records.own()
        if (has_folder and has_records) or stopped.is_set():
            return has_folder and has_records
        folder = settings.run_dir if has_records else settings.state_dir
        if is_stuck or loop.time() >= end:
            break
        if not is_logged:
            is_logged = True
            log.info(f"another driver uses {folder}: waiting for its end")
        await asyncio.sleep(_FORMER_RETRY)
    if has_records:
        log.warning(f"another driver uses {folder} and does not serve: this driver does not change what is there")
    else:
        log.warning(
            f"another driver uses {folder}: this driver learns of volumes only when kubelet publishes them, and cannot record them "
            "until the other one has ended (give each driver a --state-dir of its own)"
        )
    return False


def _listen_for_metrics(address: str | None) -> socket.socket | None:
    if address is None:
        return None
    try:
        return metricspage.listen(address)
    except metricspage.BadAddress as error:
        raise StartError(f"--metrics-address: {error}") from None


def _leave_control_groups(pid: int, cgroup2: list[str] | None) -> None:
    try:
        controlgroups.move_to_groups_of_init(pid, cgroup2)
    except OSError as error:
        text = "the processes that ask FUSE programs stay in the control groups of the driver's container"
        log.warning(f"{text}: while a FUSE program does not answer, the driver may not be started again: {error}")


def _open_inotify() -> int:
    # The kernel allows each user 128 instances. A pod that runs as root could use up all of root's, and keep the driver from
    # starting.
    try:
        return privileges.run_as_unused_uid(syscalls.inotify_init)
    except OSError as error:
        raise StartError(f"cannot create an inotify instance ({error.strerror}): raise fs.inotify.max_user_instances") from None


def _open_standard_streams() -> None:
    # If a standard stream were closed, the next socket would get its number, and the log would be written to it.
    while (fd := os.open("/dev/null", os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def _raise_fd_limit() -> None:
    # The driver has two fds for each volume, and some for each call.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except ValueError:
        pass  # fs.nr_open was lowered below the hard limit, and the kernel lets no process set the limit to that any more
