"""Calls the driver at its admin socket, for the commands. All public functions raise click.ClickException with one line of text."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import click
import grpc

from driver.api.rpc import admin_pb2, admin_pb2_grpc

_TIMEOUT = 30.0  # seconds; longer than the driver's own limits
# The size of an answer is not limited: the driver is trusted, and thousands of volumes may not fit into gRPC's default of 4 MiB.
_OPTIONS = (("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1))


def add(socket: str, name: str, read_only: bool, options: str) -> admin_pb2.Volume:
    """Add a volume without Kubernetes, and return it."""
    request = admin_pb2.AddVolumeRequest(name=name, read_only=read_only, options=options)
    added: admin_pb2.Volume = _call(socket, lambda stub: stub.AddVolume(request, timeout=_TIMEOUT))
    return added


def remove(socket: str, name: str) -> None:
    """Remove a volume without Kubernetes."""
    _call(socket, lambda stub: stub.RemoveVolume(admin_pb2.RemoveVolumeRequest(name=name), timeout=_TIMEOUT))


def abort(socket: str, volume: str) -> None:
    """End the FUSE file system of a volume, which is given by its name, id or path."""
    _call(socket, lambda stub: stub.AbortVolume(admin_pb2.AbortVolumeRequest(volume=volume), timeout=_TIMEOUT))


def volumes(socket: str) -> Sequence[admin_pb2.Volume]:
    """Return the volumes without Kubernetes."""
    answer: admin_pb2.ListVolumesResponse = _call(socket, lambda stub: stub.ListVolumes(admin_pb2.ListVolumesRequest(), timeout=_TIMEOUT))
    return answer.volumes


def status(socket: str) -> admin_pb2.GetStatusResponse:
    """Return the state of the driver and of every volume."""
    answer: admin_pb2.GetStatusResponse = _call(socket, lambda stub: stub.GetStatus(admin_pb2.GetStatusRequest(), timeout=_TIMEOUT))
    return answer


def readiness(socket: str) -> str:
    """Return why the driver cannot mount, and "" if it can."""
    answer: admin_pb2.GetReadinessResponse = _call(
        socket, lambda stub: stub.GetReadiness(admin_pb2.GetReadinessRequest(), timeout=_TIMEOUT)
    )
    return answer.problem


def add_device(socket: str, name: str, user: str) -> admin_pb2.Device:
    """Add a fuse device, for containers of root, or of `user` if that is not empty. Return it."""
    request = admin_pb2.AddDeviceRequest(name=name, user=user)
    added: admin_pb2.Device = _call(socket, lambda stub: stub.AddDevice(request, timeout=_TIMEOUT))
    return added


def remove_device(socket: str, name: str) -> None:
    """Remove a fuse device."""
    _call(socket, lambda stub: stub.RemoveDevice(admin_pb2.RemoveDeviceRequest(name=name), timeout=_TIMEOUT))


def abort_device(socket: str, name: str) -> None:
    """End the FUSE file systems that were mounted through a fuse device."""
    _call(socket, lambda stub: stub.AbortDevice(admin_pb2.AbortDeviceRequest(name=name), timeout=_TIMEOUT))


def devices(socket: str) -> Sequence[admin_pb2.Device]:
    """Return the fuse devices, and what is mounted through each."""
    answer: admin_pb2.ListDevicesResponse = _call(socket, lambda stub: stub.ListDevices(admin_pb2.ListDevicesRequest(), timeout=_TIMEOUT))
    return answer.devices


def _call(socket: str, call: Callable[[admin_pb2_grpc.AdminStub], Any]) -> Any:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC would print lines on standard error that do not help users
    with grpc.insecure_channel(f"unix:{socket}", options=_OPTIONS) as channel:
        try:
            return call(admin_pb2_grpc.AdminStub(channel))
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                text = f"no driver answers at {socket} (--admin-socket): does it run, and are you root?"
                raise click.ClickException(text) from None
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                text = f"the driver at {socket} is older than this program and does not have this command: restart the driver"
                raise click.ClickException(text) from None
            raise click.ClickException(error.details() or "the driver gave no reason") from None
