"""meta-fuse-csi-plugin: the driver, and the commands that talk to it."""

import gc
import json
import os
import sys
import time
from typing import TYPE_CHECKING

import click

from driver import __version__, rundir
from driver.endpoint import socket_path
from driver.errors import StartError
from driver.logs import FORMATS, configure, log, shown
from driver.settings import Settings

if TYPE_CHECKING:
    from driver.rpc import admin_pb2

# What klog's users put on the command line, all of it: accepted, and without a meaning here.
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


# Texts for --help are given as arguments: the frozen driver has no docstrings.
@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="The CSI driver that mounts FUSE file systems for unprivileged containers. Without a command it runs the driver.",
)
@click.option("--endpoint", default="unix:/tmp/csi.sock", show_default=True, help="CSI endpoint, unix:PATH.")
@click.option("--nodeid", help="Name of this node; must not be empty.")
@click.option("--v", "verbosity", type=int, default=1, show_default=True, help="How much to log: 0 errors, 1 to 5 volumes, 6 and more all.")
@click.option("--pods-dir", default="/var/lib/kubelet/pods", show_default=True, help="kubelet's folder of pods.")
@click.option("--run-dir", help=f"The driver's own folder.  [default: {rundir.DEFAULT}; where that is read-only, beside --endpoint]")
@click.option("--state-dir", help="Folder of the volumes' records.  [default: state in --run-dir]")
@click.option("--admin-socket", help="Socket of the commands below.  [default: admin.sock in --run-dir]")
@click.option("--kubelet-registration-path", help="Register with kubelet, which finds the --endpoint socket at this path on the node.")
@click.option("--plugin-registration-path", default="/registration", show_default=True, help="kubelet's plugins_registry folder.")
@click.option("--metrics-address", metavar="HOST:PORT", help="Serve metrics for Prometheus here.  [default: nowhere]")
@click.option("--log-format", type=click.Choice(list(FORMATS)), default="text", show_default=True, help="What a line of the log is.")
@click.version_option(__version__, "-V", "--version", prog_name="meta-fuse-csi-plugin")
@click.pass_context
def main(
    context: click.Context,
    /,
    endpoint: str,
    nodeid: str | None,
    verbosity: int,
    pods_dir: str,
    run_dir: str | None,
    state_dir: str | None,
    admin_socket: str | None,
    kubelet_registration_path: str | None,
    plugin_registration_path: str,
    metrics_address: str | None,
    log_format: str,
    **klog: str,
) -> None:
    """Run the driver, or one of its commands."""
    if context.invoked_subcommand is not None:
        context.obj = admin_socket or _admin_socket(run_dir, endpoint)
        return
    if not nodeid:
        raise click.UsageError("--nodeid is missing or empty: give the name of this node")
    # What gRPC does in a process that was forked is for one that goes on using it: it starts threads there. Ours has nothing
    # to do with it (starter.py). Read when gRPC is imported.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    if log_format == "json":
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own lines are no JSON
    # What is made until the volumes are taken up stays: to look for garbage in it would be a tenth of a start.
    gc.disable()
    from driver import daemon  # slow to import, and --help does not need it

    gc.freeze()
    configure(verbosity, log_format)
    _check_absolute(
        {
            "--pods-dir": pods_dir,
            "--run-dir": run_dir,
            "--state-dir": state_dir,
            "--admin-socket": admin_socket,
            "--kubelet-registration-path": kubelet_registration_path,
            "--plugin-registration-path": plugin_registration_path,
        }
    )
    try:
        csi_socket = socket_path(endpoint)
        run_dir = os.path.normpath(run_dir) if run_dir else rundir.default(csi_socket)
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
            )
        )
    except StartError as error:
        if log_format == "json":
            log.error(str(error))  # whoever collects the log sees why it ends there
        else:
            click.ClickException(str(error)).show()
        os._exit(1)
    except BaseException:  # a mistake of ours: what pods have queued must not keep the process from ending, and starting anew
        log.error("the driver failed", exc_info=True)
        os._exit(1)
    os._exit(0)  # neither threads that hang in a pod's file system nor what pods have queued can be waited for


def _check_absolute(paths: dict[str, str | None]) -> None:
    for option, path in paths.items():
        if path is not None and not os.path.isabs(path):
            raise click.UsageError(f"{option} {path!r} is not an absolute path")


for _name in _KLOG:
    main = click.option(f"--{_name}", hidden=True, is_flag=False, flag_value="true")(main)


@main.group(
    context_settings={"help_option_names": ["-h", "--help"]}, help="Volumes without Kubernetes, for Docker, Podman and plain hosts."
)
def volume() -> None:
    """Run one of the commands for them."""


@volume.command("add", help="Publish a volume, and print how to give it to containers.")
@click.argument("name")
@click.option("--read-only", is_flag=True, help="Mount it read-only, whatever the program asks.")
@click.option("-o", "options", default="", metavar="OPTIONS", help="Mount options, comma-separated.")
@click.pass_obj
def volume_add(admin_socket: str, name: str, read_only: bool, options: str) -> None:
    """volume add."""
    from driver import client
    from driver.paths import DEV_FUSE

    added = client.add(admin_socket, name, read_only, options)
    folder = os.path.dirname(added.socket_path)
    for warning in added.warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"volume {name} is there; run containers with")
    click.echo(f"  applications:      -v {added.target_path}:/data:rslave")
    click.echo(f"  the FUSE program:  -v {added.target_path}:/data:rslave -v {folder}:/fusermount3-proxy -v {folder}/{DEV_FUSE}:/dev/fuse")


@volume.command("remove", help="Unmount a volume and remove it.")
@click.argument("name")
@click.pass_obj
def volume_remove(admin_socket: str, name: str) -> None:
    """volume remove."""
    from driver import client

    client.remove(admin_socket, name)


@volume.command("list", help="List the volumes that 'volume add' made.")
@click.pass_obj
def volume_list(admin_socket: str) -> None:
    """volume list."""
    from driver import client

    _table([[v.name, v.state, v.fs_type, v.source, v.target_path] for v in client.volumes(admin_socket)], "NAME STATE TYPE SOURCE PATH")


@main.command(help="Say how the driver is, and show every volume of this node.")
@click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="What to print.")
@click.pass_obj
def status(admin_socket: str, output: str) -> None:
    """status."""
    from driver import client

    answer = client.status(admin_socket)
    if output == "json":
        click.echo(json.dumps(_status_object(answer), indent=2))
    else:
        click.echo(f"meta-fuse-csi-plugin {answer.version}: {'not ready: ' + answer.problem if answer.problem else 'ready'}")
        rows = [
            [v.name, v.pod, v.state, _utc(v.since), str(v.mounts), _mode(v), v.fs_type, v.source, v.target_path, v.condition]
            for v in answer.volumes
        ]
        _table(rows, "VOLUME POD STATE SINCE MOUNTS MODE TYPE SOURCE PATH CONDITION")
    if answer.problem:
        sys.exit(1)


def _admin_socket(run_dir: str | None, endpoint: str) -> str:
    """Where the driver listens for the commands."""
    if run_dir:
        return f"{os.path.normpath(run_dir)}/admin.sock"
    return f"{rundir.in_use(_path_of(endpoint)) or rundir.DEFAULT}/admin.sock"


def _path_of(endpoint: str) -> str:
    return endpoint.removeprefix("unix:")


def _status_object(answer: "admin_pb2.GetStatusResponse") -> dict[str, object]:
    return {
        "version": answer.version,
        "problem": answer.problem,
        "volumes": [
            {
                "volume": v.name,
                "pod": v.pod,
                "state": v.state,
                "since": _utc(v.since),
                "mounts": v.mounts,
                "readOnly": v.read_only,
                "type": v.fs_type,
                "source": v.source,
                "path": v.target_path,
                "abnormal": v.abnormal,
                "condition": v.condition,
            }
            for v in answer.volumes
        ],
    }


def _utc(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _mode(volume: "admin_pb2.Volume") -> str:
    return "ro" if volume.read_only else "rw"


@main.command(help="Say what this node lacks for the driver, and what to do about it. Needs no running driver.")
@click.pass_context
def check(context: click.Context, /) -> None:
    """check."""
    from driver import node

    assert context.parent is not None
    given = context.parent.params
    # Where a driver runs, its folder: in its container's shell nobody says its --endpoint again.
    run_dir = given["run_dir"] or rundir.in_use(_path_of(given["endpoint"])) or rundir.default(_path_of(given["endpoint"]))
    pods_dir, run_dir = os.path.normpath(given["pods_dir"]), os.path.normpath(run_dir)
    _check_absolute({"--pods-dir": pods_dir, "--run-dir": run_dir})
    failed = False
    for found in node.checks(pods_dir, run_dir):
        click.echo(f"{'FAILED' if found.problem else 'ok':6}  {found.name}{': ' + found.problem if found.problem else ''}")
        failed = failed or bool(found.problem)
    for note in node.notes(run_dir):
        click.echo(f"note    {note.name}: {'yes' if note.is_there else 'no; ' + note.text}")
    if failed:
        sys.exit(1)


def _table(rows: list[list[str]], header: str) -> None:
    table = [header.split(), *([shown(cell) or "-" for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _go_style(arguments: list[str]) -> list[str]:
    """Go's flag package takes `-endpoint=X` as well as `--endpoint=X`; what users of the Go plugin wrote goes on working."""
    known = {f"-{parameter.opts[0].lstrip('-')}" for parameter in main.params if parameter.opts[0].startswith("--")}
    return [f"-{a}" if a.split("=")[0] in known and not a.startswith("--") else a for a in arguments]


def run() -> None:
    """The program's entry."""
    main.main(args=_go_style(sys.argv[1:]), prog_name="meta-fuse-csi-plugin")


if __name__ == "__main__":
    run()
