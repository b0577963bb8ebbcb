"""Tests that the messages to kubelet are those of Kubernetes: the names of the services and the numbers of the fields."""

from typing import Any

import pytest

from driver.api.rpc import deviceplugin_pb2, podresources_pb2

# As in staging/src/k8s.io/kubelet/pkg/apis/{deviceplugin/v1beta1,podresources/v1}/api.proto.
MESSAGES = {
    "v1beta1.Empty": {},
    "v1beta1.DevicePluginOptions": {"pre_start_required": 1, "get_preferred_allocation_available": 2},
    "v1beta1.RegisterRequest": {"version": 1, "endpoint": 2, "resource_name": 3, "options": 4},
    "v1beta1.ListAndWatchResponse": {"devices": 1},
    "v1beta1.Device": {"ID": 1, "health": 2},
    "v1beta1.AllocateRequest": {"container_requests": 1},
    "v1beta1.ContainerAllocateRequest": {"devices_ids": 1},
    "v1beta1.AllocateResponse": {"container_responses": 1},
    "v1beta1.ContainerAllocateResponse": {"mounts": 2, "devices": 3},
    "v1beta1.Mount": {"container_path": 1, "host_path": 2, "read_only": 3},
    "v1beta1.DeviceSpec": {"container_path": 1, "host_path": 2, "permissions": 3},
    "v1.ListPodResourcesRequest": {},
    "v1.ListPodResourcesResponse": {"pod_resources": 1},
    "v1.PodResources": {"name": 1, "namespace": 2, "containers": 3},
    "v1.ContainerResources": {"name": 1, "devices": 2},
    "v1.ContainerDevices": {"resource_name": 1, "device_ids": 2},
}
METHODS = {
    "v1beta1.Registration": {"Register"},
    "v1beta1.DevicePlugin": {"GetDevicePluginOptions", "ListAndWatch", "Allocate"},
    "v1.PodResourcesLister": {"List"},
}
FILES: list[Any] = [deviceplugin_pb2.DESCRIPTOR, podresources_pb2.DESCRIPTOR]


def test_the_services_are_kubelets() -> None:
    found = {s.full_name: {m.name for m in s.methods} for file in FILES for s in file.services_by_name.values()}
    assert found == METHODS


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.package)
def test_the_fields_are_kubelets(file: Any) -> None:
    found = {m.full_name: {f.name: f.number for f in m.fields} for m in file.message_types_by_name.values()}
    assert found == {name: fields for name, fields in MESSAGES.items() if name.startswith(f"{file.package}.")}
