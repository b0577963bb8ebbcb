"""Parses the command line of meta-fuse-csi-plugin, and runs the driver or one of the commands that call it.

Each command imports what it needs only when it runs. If gRPC and the driver were imported here, `--help` would take twice as long.
"""

import json
import os
import sys
import time
from typing import TYPE_CHECKING

import click

from driver import __version__, devicecommands, rundir
from driver.api.endpoint import check_length, socket_path
from driver.model import limits, volumeid
from driver.model.errors import StartError
from driver.model.settings import Settings
from driver.observe.internalerror import report_internal_error
from driver.observe.logs import FORMATS, configure, log
from driver.output import output_option, print_table

if TYPE_CHECKING:
    from driver.api.rpc import admin_pb2

FUSE_RESOURCE = "mfcp.storage.pfn.io/fuse"

# Options of klog, which manifests for the Go plugin have. They are accepted and ignored.
_KLOG = (
    "logtostderr",
    "alsologtostderr",
    "stderrthreshold",
    "vmodule",
    "log_backtrace_at",
    "log_dir",
    "log_file",
    "log_file_max_size",
    "one_output",
    "add_dir_header",
    "skip_headers",
    "skip_log_headers",
)


# The texts of --help are given as arguments, because docstrings are stripped from the packaged driver.
@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="The CSI driver that mounts FUSE file systems for unprivileged containers. Without a command it runs the driver.",
)
@click.option("--endpoint", default=f"unix:{rundir.DEFAULT}/csi.sock", show_default=True, help="CSI endpoint, unix:PATH.")
@click.option("--nodeid", default=lambda: os.uname().nodename, show_default="the hostname", help="Name of this node.")
@click.option(
    "--v",
    "verbosity",
    type=int,
    default=1,
    show_default=True,
    help="How much to log: 0 warnings and errors, 1 to 5 also what happens to volumes, 6 and more everything.",
)
@click.option("--pods-dir", default="/var/lib/kubelet/pods", show_default=True, help="kubelet's folder of pods.")
@click.option("--run-dir", help=f"The driver's own folder.  [default: {rundir.DEFAULT}, or beside --endpoint if that is read-only]")
@click.option("--state-dir", help="Folder for the records of volumes.  [default: state in --run-dir]")
@click.option("--admin-socket", help="Socket at which the driver serves the commands below.  [default: admin.sock in --run-dir]")
@click.option("--kubelet-registration-path", help="Register with kubelet, which finds the --endpoint socket at this path on the node.")
@click.option("--plugin-registration-path", default="/registration", show_default=True, help="kubelet's plugins_registry folder.")
@click.option("--metrics-address", metavar="HOST:PORT", help="Serve metrics for Prometheus at this address.  [default: nowhere]")
@click.option("--fuse-devices", type=click.IntRange(0), default=256, show_default=True, help="Fuse devices of this node for pods; 0: none.")
@click.option(
    "--fuse-resource",
    "fuse_resources",
    multiple=True,
    default=[FUSE_RESOURCE],
    show_default=True,
    help="Name of the resource by which pods ask for a fuse device; may be repeated.",
)
@click.option(
    "--fuse-mounts-max", type=click.IntRange(1), default=limits.DEVICE_MOUNTS, show_default=True, help="FUSE mounts of one fuse device."
)
@click.option("--fuse-allow-other/--no-fuse-allow-other", default=True, show_default=True, help="Allow -o allow_other at fuse devices.")
@click.option("--fuse-dir", help="Folder of what containers with a fuse device bind.  [default: fuse beside --endpoint, or /var/lib/mfcp]")
@click.option("--client-tree", help="The client's programs, which these containers get.  [default: mfcp beside the driver, or /opt/mfcp]")
@click.option("--cdi-dir", help="Describe the fuse devices for container engines in this folder, such as /etc/cdi.  [default: nowhere]")
@click.option("--device-plugins-dir", default="/var/lib/kubelet/device-plugins", show_default=True, help="kubelet's folder.")
@click.option("--pod-resources-socket", default="/var/lib/kubelet/pod-resources/kubelet.sock", show_default=True, help="kubelet's socket.")
@click.option("--log-format", type=click.Choice(list(FORMATS)), default="text", show_default=True, help="The format of the log's lines.")
@click.version_option(__version__, "-V", "--version", prog_name="meta-fuse-csi-plugin")
@click.pass_context
def main(
    context: click.Context,
    /,
    endpoint: str,
    nodeid: str,
    verbosity: int,
    pods_dir: str,
    run_dir: str | None,
    state_dir: str | None,
    admin_socket: str | None,
    kubelet_registration_path: str | None,
    plugin_registration_path: str,
    metrics_address: str | None,
    fuse_devices: int,
    fuse_resources: tuple[str, ...],
    fuse_mounts_max: int,
    fuse_allow_other: bool,
    fuse_dir: str | None,
    client_tree: str | None,
    cdi_dir: str | None,
    device_plugins_dir: str,
    pod_resources_socket: str,
    log_format: str,
    **klog: str,
) -> None:
    """Run the driver, or if a command is given, pass the admin socket's path to it."""
    if context.invoked_subcommand is not None:
        context.obj = admin_socket or _find_admin_socket(run_dir, endpoint)
        return
    if not nodeid:
        raise click.UsageError("--nodeid is empty: give the name of this node")
    # Without this gRPC would start threads in the processes that the driver forks, which do not use gRPC. gRPC reads the variable
    # when it is imported.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    if log_format == "json":
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC would log lines that are not JSON
    from driver import daemon
    from driver.devices.kit import own_tree

    configure(verbosity, log_format)
    _check_absolute(
        {
            "--pods-dir": pods_dir,
            "--run-dir": run_dir,
            "--state-dir": state_dir,
            "--admin-socket": admin_socket,
            "--kubelet-registration-path": kubelet_registration_path,
            "--plugin-registration-path": plugin_registration_path,
            "--fuse-dir": fuse_dir,
            "--client-tree": client_tree,
            "--cdi-dir": cdi_dir,
            "--device-plugins-dir": device_plugins_dir,
            "--pod-resources-socket": pod_resources_socket,
        }
    )
    try:
        csi_socket = socket_path(endpoint)
        run_dir = os.path.normpath(run_dir) if run_dir else rundir.default(csi_socket)
        option = f"--admin-socket {admin_socket!r}" if admin_socket else f"admin.sock in --run-dir {run_dir!r}"
        check_length(admin_socket or f"{run_dir}/admin.sock", option)
        fuse_dir, fuse_dir_on_node = rundir.fuse_dir(fuse_dir, csi_socket, kubelet_registration_path)
        daemon.serve(
            Settings(
                csi_socket=csi_socket,
                node_id=nodeid,
                pods_dir=os.path.normpath(pods_dir),
                run_dir=run_dir,
                state_dir=state_dir or f"{run_dir}/state",
                admin_socket=admin_socket or f"{run_dir}/admin.sock",
                kubelet_registration_path=kubelet_registration_path,
                plugin_registration_path=plugin_registration_path,
                metrics_address=metrics_address,
                fuse_dir=fuse_dir,
                fuse_dir_on_node=fuse_dir_on_node,
                fuse_devices=fuse_devices,
                fuse_resources=tuple(fuse_resources),
                fuse_mounts_max=fuse_mounts_max,
                fuse_allow_other=fuse_allow_other,
                client_tree=client_tree or own_tree(),
                cdi_dir=cdi_dir,
                device_plugins_dir=device_plugins_dir,
                pod_resources_socket=pod_resources_socket,
            )
        )
    except StartError as error:
        if log_format == "json":
            log.error(str(error))
        else:
            click.ClickException(str(error)).show()
        os._exit(1)
    except BaseException:
        report_internal_error("running the driver")
        os._exit(1)
    # A normal exit of the interpreter would wait for threads that hang in a pod's file system. It would also close connections,
    # which can block because of the fds that pods have queued in them.
    os._exit(0)


def _check_absolute(paths: dict[str, str | None]) -> None:
    for option, path in paths.items():
        if path is not None and not os.path.isabs(path):
            raise click.UsageError(f"{option} {path!r} is not an absolute path")


for _name in _KLOG:
    main = click.option(f"--{_name}", hidden=True, is_flag=False, flag_value="true")(main)
main.add_command(devicecommands.device)


@main.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Add, remove and list volumes without Kubernetes, for Docker, Podman and plain hosts.",
    short_help="Add, remove and list volumes without Kubernetes.",
)
def volume() -> None:
    """Group the commands for volumes without Kubernetes."""


@volume.command("add", help="Publish a volume, and print how to give it to containers.")
@click.argument("name")
@click.option("--read-only", is_flag=True, help="Mount the volume read-only, even if the FUSE program asks for read-write.")
@click.option("-o", "options", default="", metavar="OPTIONS", help="Mount options, separated by commas.")
@click.pass_obj
def volume_add(admin_socket: str, name: str, read_only: bool, options: str) -> None:
    """Run the command `volume add`."""
    from driver import adminclient
    from driver.linux import features
    from driver.model.paths import DEV_FUSE

    added = adminclient.add(admin_socket, name, read_only, options)
    folder = os.path.dirname(added.socket_path)
    for warning in added.warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"volume {name} is published; run containers with")
    click.echo(f"  applications:      -v {added.target_path}:/data:rslave")
    click.echo(f"  the FUSE program:  -v {added.target_path}:/data:rslave -v {folder}:/fusermount3-proxy -v {folder}/{DEV_FUSE}:/dev/fuse")
    if features.has_apparmor():  # libfuse asks fusermount3 only after EPERM, and the profile for containers answers EACCES
        click.echo("AppArmor is on: with Podman, the FUSE program also needs --security-opt apparmor=unconfined")


@volume.command("remove", help="Unmount a volume and remove it.")
@click.argument("name")
@click.pass_obj
def volume_remove(admin_socket: str, name: str) -> None:
    """Run the command `volume remove`."""
    from driver import adminclient

    adminclient.remove(admin_socket, name)


@volume.command("list", help="List the volumes that 'volume add' made.")
@output_option("text", "json")
@click.pass_obj
def volume_list(admin_socket: str, output: str) -> None:
    """Run the command `volume list`."""
    from driver import adminclient

    columns = ("name", "state", "type", "source", "path")
    rows = [(v.name, v.state, v.fs_type, v.source, v.target_path) for v in adminclient.volumes(admin_socket)]
    if output == "json":
        click.echo(json.dumps([dict(zip(columns, row, strict=True)) for row in rows], indent=2))
    else:
        print_table([list(row) for row in rows], columns)


@main.command(
    help="Show whether the driver can mount, and the condition of every volume of this node, or of those that are named.",
    short_help="Show whether the driver can mount, and the volumes.",
)
@click.argument("volumes", nargs=-1, metavar="[VOLUME]...")
@output_option("text", "wide", "json")
@click.pass_obj
def status(admin_socket: str, volumes: tuple[str, ...], output: str) -> None:
    """Run the command `status`."""
    from driver import adminclient

    answer = adminclient.status(admin_socket)
    listed = list(answer.volumes)
    for name in volumes:
        if not any(_is_meant(name, volume) for volume in listed):
            raise click.ClickException(f"there is no volume {name!r}; status without a name lists all volumes")
    meant = [_status_of(volume) for volume in listed if not volumes or any(_is_meant(name, volume) for name in volumes)]
    if output == "json":
        found: dict[str, object] = {"version": answer.version, "problem": answer.problem, "volumes": meant}
        if not volumes:
            found["devices"] = [devicecommands.as_json(each) for each in answer.devices]
        click.echo(json.dumps(found, indent=2))
    else:
        columns = _WIDE if output == "wide" else _COLUMNS
        click.echo(f"meta-fuse-csi-plugin {answer.version}: {_readiness(answer.problem)}")
        print_table([[_cell(volume, key, output == "wide") for key in columns] for volume in meant], columns)
        if answer.devices and not volumes:
            devicecommands.print_devices(answer.devices)
    if answer.problem:
        sys.exit(1)


# The keys of _status_of() that are columns of the text, with "mode" for readOnly. The condition shows what is abnormal.
_COLUMNS = ("volume", "pod", "source", "condition")
_WIDE = ("volume", "pod", "state", "since", "mounts", "mode", "type", "source", "path", "condition")


def _is_meant(name: str, volume: "admin_pb2.Volume") -> bool:
    return name == volume.target_path or volumeid.is_named(name, volume.name)


def _status_of(volume: "admin_pb2.Volume") -> dict[str, object]:
    """Return a volume as an object of the JSON output of `status`. Do not change these keys, because other programs read them."""
    return {
        "volume": volume.name,
        "pod": volume.pod,
        "state": volume.state,
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(volume.since)),
        "mounts": volume.mounts,
        "readOnly": volume.read_only,
        "type": volume.fs_type,
        "source": volume.source,
        "path": volume.target_path,
        "abnormal": volume.abnormal,
        "condition": volume.condition,
        "detached": volume.detached,
    }


@main.command(
    help="End the FUSE file system of a volume, by the name that status lists or by its path. Use it where a FUSE program hangs: calls "
    "that wait for it fail, and another program can mount. Open files are lost.",
    short_help="End the FUSE file system of a volume.",
)
@click.argument("volume")
@click.pass_obj
def abort(admin_socket: str, volume: str) -> None:
    """Run the command `abort`."""
    from driver import adminclient

    adminclient.abort(admin_socket, volume)


@main.command(
    help="Report whether the driver can mount, for probes: exit code 0, or 1 and the reason. Asks no FUSE program.",
    short_help="Report whether the driver can mount, for probes.",
)
@click.pass_obj
def ready(admin_socket: str) -> None:
    """Run the command `ready`."""
    from driver import adminclient

    problem = adminclient.readiness(admin_socket)
    click.echo(_readiness(problem))
    if problem:
        sys.exit(1)


def _readiness(problem: str) -> str:
    return f"not ready: {problem}" if problem else "ready"


def _cell(volume: dict[str, object], key: str, is_wide: bool) -> str:
    if key == "volume" and not is_wide:
        return volumeid.short(str(volume[key]))
    if key == "mode":
        return "ro" if volume["readOnly"] else "rw"
    return str(volume[key])


def _find_admin_socket(run_dir: str | None, endpoint: str) -> str:
    """Return the path of the socket at which the driver serves the commands."""
    if run_dir:
        return f"{os.path.normpath(run_dir)}/admin.sock"
    return f"{rundir.of_running_driver(endpoint.removeprefix('unix:')) or rundir.DEFAULT}/admin.sock"


@main.command(
    help="Check whether this node has what the driver needs, and say what to do about what it lacks. No driver has to run.",
    short_help="Check whether this node has what the driver needs.",
)
@click.pass_context
def check(context: click.Context, /) -> None:
    """Run the command `check`."""
    from driver import nodecheck

    assert context.parent is not None
    given = context.parent.params
    # The folder of a running driver is preferred, because users do not repeat its --endpoint in its container's shell.
    csi_socket = given["endpoint"].removeprefix("unix:")
    run_dir = given["run_dir"] or rundir.of_running_driver(csi_socket) or rundir.default(csi_socket)
    pods_dir, run_dir = os.path.normpath(given["pods_dir"]), os.path.normpath(run_dir)
    _check_absolute({"--pods-dir": pods_dir, "--run-dir": run_dir})
    failed = False
    for found in nodecheck.checks(pods_dir, run_dir):
        click.echo(f"{'FAILED' if found.problem else 'ok':6}  {found.name}{': ' + found.problem if found.problem else ''}")
        failed = failed or bool(found.problem)
    for note in nodecheck.notes(run_dir):
        click.echo(f"note    {note.name}: {'yes' if note.is_there else 'no; ' + note.text}")
    if failed:
        sys.exit(1)


def _double_dashes(arguments: list[str]) -> list[str]:
    """Return the arguments with two dashes before each long option that has one: manifests for the Go plugin may have one."""
    known = {f"-{parameter.opts[0].lstrip('-')}" for parameter in main.params if parameter.opts[0].startswith("--")}
    return [f"-{argument}" if argument.split("=")[0] in known else argument for argument in arguments]


def run() -> None:
    """Run the program."""
    main.main(args=_double_dashes(sys.argv[1:]), prog_name="meta-fuse-csi-plugin")


if __name__ == "__main__":
    run()
