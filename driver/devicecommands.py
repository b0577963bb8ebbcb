"""Implements the commands for fuse devices, by which containers without Kubernetes mount at mountpoints of their own.

As in cli.py, each command imports what it needs only when it runs.
"""

import json
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from driver.output import output_option, print_table

if TYPE_CHECKING:
    from driver.api.rpc import admin_pb2

_ANY = "any"  # the device of a driver that has a --cdi-dir
_KIND = "mfcp.storage.pfn.io/fuse"  # driver/devices/cdi.py
# The shell splits what `device flags` prints at white space and replaces patterns in it. Engines split the arguments at colons.
_NOT_IN_FLAGS = re.compile(r"[\s:*?\[\\]")
_APPARMOR = "AppArmor is on: with Podman, the container also needs --security-opt apparmor=unconfined"


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Add, remove and list fuse devices, with which containers of Docker, Podman and others mount at any mountpoint. The device "
    f"'{_ANY}' is there if the driver has a --cdi-dir.",
    short_help="Add, remove and list fuse devices, for Docker and Podman.",
)
def device() -> None:
    """Group the commands for fuse devices."""


@device.command(
    "add",
    help="Add a fuse device with a socket of its own, and print how to give it to containers.",
    short_help="Add a fuse device with a socket of its own.",
)
@click.argument("name")
@click.option("--user", default="", help="Who runs the containers without root: a user's name or uid.")
@click.pass_obj
def add(admin_socket: str, name: str, user: str) -> None:
    """Run the command `device add`."""
    from driver import adminclient
    from driver.linux import features

    added = adminclient.add_device(admin_socket, name, user)
    click.echo(f"device {name} is there; run containers with")
    click.echo(f"  engines that read the driver's --cdi-dir:  --device {_KIND}={name}")
    try:
        click.echo(f"  other engines:                             {' '.join(_flags(added))}")
    except click.ClickException as error:
        click.echo(f"warning: there are no options for other engines: {error.message}", err=True)
    if features.has_apparmor():  # libfuse asks fusermount3 only after EPERM, and the profile for containers answers EACCES
        click.echo(_APPARMOR)


@device.command("remove", help="Remove a fuse device that 'device add' made.")
@click.argument("name")
@click.pass_obj
def remove(admin_socket: str, name: str) -> None:
    """Run the command `device remove`."""
    from driver import adminclient

    adminclient.remove_device(admin_socket, name)


@device.command(
    "abort",
    help="End the FUSE file systems that containers have mounted with a fuse device. Use it where a FUSE program hangs, or where a "
    "container cannot end: calls that wait for the program fail. Open files are lost.",
    short_help="End the FUSE file systems of a fuse device.",
)
@click.argument("name")
@click.pass_obj
def abort(admin_socket: str, name: str) -> None:
    """Run the command `device abort`."""
    from driver import adminclient

    adminclient.abort_device(admin_socket, name)


@device.command("list", help="List the fuse devices, and what containers have mounted with each.")
@output_option("text", "json")
@click.pass_obj
def list_(admin_socket: str, output: str) -> None:
    """Run the command `device list`."""
    from driver import adminclient

    devices = adminclient.devices(admin_socket)
    if output == "json":
        click.echo(json.dumps([as_json(each) for each in devices], indent=2))
        return
    print_devices(devices)


@device.command(
    "flags",
    help=f"Print the options that give a container a fuse device, '{_ANY}' without NAME, for engines without CDI: "
    "podman run $(meta-fuse-csi-plugin device flags) IMAGE.",
    short_help="Print the options that give a container a fuse device.",
)
@click.argument("name", default=_ANY)
@click.option("--engine", type=click.Choice(["podman", "docker"]), default="podman", show_default=True, help="Whose options.")
@click.pass_obj
def flags(admin_socket: str, name: str, engine: str) -> None:
    """Run the command `device flags`."""
    from driver import adminclient
    from driver.linux import features

    found = next((each for each in adminclient.devices(admin_socket) if each.name == name), None)
    if found is None:
        remedy = "start the driver with --cdi-dir, or make another device with 'device add'" if name == _ANY else "'device add' makes one"
        raise click.ClickException(f"there is no device {name!r}; {remedy}, and 'device list' shows all")
    click.echo(" ".join(_flags(found)))
    if engine == "podman" and features.has_apparmor():
        click.echo(_APPARMOR, err=True)  # not among the options: whoever takes a protection away should know


def _flags(device: "admin_pb2.Device") -> list[str]:
    """Return the options of both engines. Raises click.ClickException where a path cannot be in one."""
    options = []
    for bind in device.binds:
        options += ["-v", f"{_path(bind.source)}:{_path(bind.target)}:{'ro' if bind.read_only else 'rw'}"]
    for node in device.devices:
        options += ["--device", f"{_path(node.source)}:{_path(node.target)}:{node.permissions}"]
    return options


def _path(path: str) -> str:
    if _NOT_IN_FLAGS.search(path):
        raise click.ClickException(
            f"{path!r} has a space, a colon or a wildcard, which options cannot hold: give the driver another --fuse-dir"
        )
    return path


def as_json(device: "admin_pb2.Device") -> dict[str, object]:
    """Return a device as an object of the JSON output of `device list`. Do not change these keys, because other programs read them."""
    return {
        "name": device.name,
        "owner": device.owner,
        "socketFolder": device.socket_folder,
        "mounts": [
            {
                "container": mount.container,
                "mountpoint": mount.mountpoint,
                "type": mount.fs_type,
                "source": mount.source,
                "since": _time(mount.since),
                "uid": mount.uid if mount.HasField("uid") else None,
            }
            for mount in device.mounts
        ],
    }


def _time(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def print_devices(devices: "Sequence[admin_pb2.Device]") -> None:
    """Print a table of fuse devices and of what is mounted with them."""
    rows = []
    for each in devices:
        for mount in each.mounts:
            uid = str(mount.uid) if mount.HasField("uid") else ""
            rows.append([each.name, each.owner, mount.container, mount.mountpoint, mount.fs_type, mount.source, _time(mount.since), uid])
        if not each.mounts:
            rows.append([each.name, each.owner, *[""] * 6])
    print_table(rows, ("device", "owner", "container", "mountpoint", "type", "source", "since", "uid"))
