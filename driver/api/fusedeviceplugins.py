"""Gives fuse devices to pods: a device plugin for each resource name, their health, and which pod has which device."""

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol

from driver.api.deviceowners import DeviceOwners
from driver.api.kubeletsocket import KubeletSocket
from driver.api.podresources import PodResources
from driver.api.registeredplugin import RegisteredPlugin
from driver.linux.filewatch import FileWatch
from driver.model.kit import ContainerKit
from driver.observe.internalerror import report_internal_error
from driver.observe.logs import log

_HEALTH_INTERVAL = 30.0  # seconds


class Allocations(Protocol):
    """Makes what a container gets, and learns which container has it."""

    def allocate(self, resource: str, device_id: str) -> ContainerKit:
        """Prepare a device for a new container, and return what the container gets.

        All paths must be functions of the resource and the id alone, and exist as long as the node: kubelet keeps the answer, and
        gives it to the engine again after a restart of the container and after a reboot. A device can be allocated again for
        another container of the same pod while the first one runs: kubelet gives the devices of init containers to others.
        Raises VolumeError and OSError, which fail the pod with their text.
        """

    def owners(self, found: Mapping[tuple[str, str], str]) -> None:
        """Learn from kubelet which containers have a device: NAMESPACE/POD/CONTAINER by resource and device id.

        Among the first calls after the start or after an allocation, a device that a container has may be missing for 30 s. A
        container that asked for more devices than one is named for each of them, also for those that were not allocated here.
        """


class FuseDevicePlugins:
    """Serves the fuse devices of a node to kubelet, from start() to stop()."""

    def __init__(
        self,
        resources: Sequence[str],
        count: int,
        folder: str,
        pod_resources_socket: str,
        allocations: Allocations,
        problem: Callable[[], str],
        files: FileWatch,
    ) -> None:
        """Take what to serve, and where.

        `resources` are the names of the resources (--fuse-resource), and `count` is how many devices each has (--fuse-devices);
        0 turns them off. `folder` is kubelet's device-plugins folder, and `pod_resources_socket` the socket at which kubelet
        says which pod has which device. `problem` returns why no container could mount, and "" if there is no reason.
        """
        self._resources = tuple(dict.fromkeys(resources))
        self._count = count
        self._folder = folder
        self._pod_resources_socket = pod_resources_socket
        self._allocations = allocations
        self._problem = problem
        self._kubelet = KubeletSocket(folder, files, self._kubelet_may_have_restarted)
        self._plugins: list[RegisteredPlugin] = []
        self._owners: DeviceOwners | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._known_problem = ""

    async def start(self) -> None:
        """Begin to serve. Registering goes on in the background, whether kubelet is there or not."""
        if not self._count or not self._resources:
            return
        if not os.path.isdir(self._folder):
            log.warning(f"no pod gets a fuse device: {self._folder} (--device-plugins-dir) is not a folder; mount it from the node")
            return
        self._owners = DeviceOwners(PodResources(self._pod_resources_socket, self._resources), self._allocations.owners)
        for resource in self._resources:
            arguments = (resource, self._count, self._folder, self._kubelet, self._allocate, self._owners.ask_soon)
            self._plugins.append(RegisteredPlugin(*arguments))
        self._check_health()
        self._run(self._owners.run(), self._check_health_periodically(), *(plugin.run() for plugin in self._plugins))

    async def stop(self) -> None:
        """Stop serving. Pods keep the devices that they have, and get no others until the next driver has registered."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(plugin.stop() for plugin in self._plugins))
        self._kubelet.close()

    def _run(self, *coroutines: Coroutine[Any, Any, None]) -> None:
        loop = asyncio.get_running_loop()
        self._tasks += [loop.create_task(coroutine) for coroutine in coroutines]

    def _allocate(self, resource: str, device_id: str) -> ContainerKit:
        kit = self._allocations.allocate(resource, device_id)
        log.debug(f"kubelet allocates {device_id} of {resource}")
        if self._owners is not None:
            self._owners.ask_soon()
        return kit

    def _kubelet_may_have_restarted(self) -> None:
        for plugin in self._plugins:
            plugin.wake()

    async def _check_health_periodically(self) -> None:
        while True:
            await asyncio.sleep(_HEALTH_INTERVAL)
            self._check_health()

    def _check_health(self) -> None:
        try:
            text = self._problem()
        except Exception:
            report_internal_error("checking the node for its fuse devices")
            return
        if text != self._known_problem:
            self._known_problem = text
            if text:
                log.warning(f"no pod gets a fuse device, because no container could mount: {text}")
            else:
                log.info("pods get fuse devices again")
        for plugin in self._plugins:
            plugin.plugin.set_health(not text)
