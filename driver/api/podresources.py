"""Asks kubelet which container has which device."""

import os
from collections.abc import Collection

import grpc
import grpc.aio

from driver.api.rpc import podresources_pb2, podresources_pb2_grpc
from driver.observe.logs import log, shown

_ANSWER_WAIT = 5.0  # seconds
_ANSWER_MAX = 16 << 20  # bytes; the limit of kubelet's own client (podresources/constants.go)


class PodResources:
    """Asks the service PodResourcesLister of podresources.proto."""

    def __init__(self, path: str, resources: Collection[str]) -> None:
        """`path` is that of kubelet's pod-resources socket, and `resources` are the names of the resources to ask for."""
        self._path = path
        self._resources = frozenset(resources)
        self._complaint = ""

    async def owners(self) -> dict[tuple[str, str], str] | None:
        """Return NAMESPACE/POD/CONTAINER for each device that a container has, by its resource and id; None if kubelet does not tell.

        It takes 5 s at most. A kubelet that has just started tells too little until it knows its pods. Why it does not tell is
        logged once.
        """
        if not os.path.lexists(self._path):
            self._complain("missing", f"{self._path} (--pod-resources-socket) does not exist")
            return None
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", _ANSWER_MAX)]
        try:
            async with grpc.aio.insecure_channel(f"unix:{self._path}", options) as channel:
                lister = podresources_pb2_grpc.PodResourcesListerStub(channel)
                answer = await lister.List(podresources_pb2.ListPodResourcesRequest(), timeout=_ANSWER_WAIT)
        except grpc.aio.AioRpcError as error:
            code = error.code().name
            self._complain(code, f"kubelet does not answer at {self._path}: {code}, {shown(error.details() or '')}")
            return None
        self._complaint = ""
        return {
            (devices.resource_name, device_id): f"{pod.namespace}/{pod.name}/{container.name}"
            for pod in answer.pod_resources
            for container in pod.containers
            for devices in container.devices
            if devices.resource_name in self._resources
            for device_id in devices.device_ids
        }

    def _complain(self, kind: str, text: str) -> None:
        """Log why kubelet does not tell, once until it does or there is another kind of reason."""
        if kind != self._complaint:
            self._complaint = kind
            log.warning(f"the driver cannot tell which pods have a fuse device: {text}")
