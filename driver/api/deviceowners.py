"""Keeps track of which container has which device, by asking kubelet from time to time."""

import asyncio
from collections.abc import Callable, Mapping

from driver.api.podresources import PodResources
from driver.observe.internalerror import report_internal_error

# Times are in seconds.
_INTERVAL = 10.0  # while a container has a device
_IDLE_INTERVAL = 60.0  # while none has one; kubelet can give a container a device that it had before without asking the driver
_BUSY = 120.0  # how long a container may take to come after a start, a registration or an allocation
_SOON = 1.0  # until a device is asked for that was just allocated; kubelet lists it when it has taken the driver's answer
_GONE = 30.0  # from the first answer without a device until it is gone; a kubelet that starts does not know all its pods at first


class DeviceOwners:
    """Reports which container has which device after each answer of kubelet's."""

    def __init__(self, pod_resources: PodResources, report: Callable[[Mapping[tuple[str, str], str]], None]) -> None:
        """`report` is called with NAMESPACE/POD/CONTAINER by resource and device id.

        A device that was reported is left out only when no answer has named it for 30 s, and nothing is reported in the first
        30 s as long as no answer names a device.
        """
        self._pod_resources = pod_resources
        self._report = report
        self._owners: dict[tuple[str, str], str] = {}
        self._missing_since: dict[tuple[str, str], float] = {}
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._busy_until = self._began + _BUSY
        self._woken = asyncio.Event()

    def ask_soon(self) -> None:
        """Ask in a second, because a device was allocated or kubelet has started. An answer that is on its way is not used."""
        self._busy_until = self._loop.time() + _BUSY
        self._woken.set()

    async def run(self) -> None:
        """Ask and report until the task is cancelled."""
        while True:
            self._woken.clear()
            try:
                found = await self._pod_resources.owners()
                if found is not None and not self._woken.is_set():
                    self._take(found)
            except Exception:
                report_internal_error("asking kubelet for the owners of devices")
            is_busy = bool(self._owners) or self._loop.time() < self._busy_until
            try:
                async with asyncio.timeout(_INTERVAL if is_busy else _IDLE_INTERVAL):
                    await self._woken.wait()
                await asyncio.sleep(_SOON)
            except TimeoutError:
                pass

    def _take(self, found: Mapping[tuple[str, str], str]) -> None:
        now = self._loop.time()
        self._missing_since = {key: self._missing_since.get(key, now) for key in self._owners if key not in found}
        still = {key: self._owners[key] for key, since in self._missing_since.items() if now - since < _GONE}
        self._owners = {**still, **found}
        if self._owners or now - self._began >= _GONE:
            self._report(self._owners)
