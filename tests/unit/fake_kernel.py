"""Plays a kernel of one target path in memory (driver/mounts/kernel.py), for tests of the mount core without root.

It does what was seen of Linux: mounts lie on each other, a dead connection answers ENOTCONN, the last close of a device tells
the watch, and what a hung program is asked is answered by nothing but its limit. Each coroutine waits `pace` turns of the event
loop before it works, so that a test can put any other event in between.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from errno import EBUSY, ECONNABORTED, EINTR, EINVAL, ENOENT, ENOTDIR, ENOTEMPTY

from driver.model.fusemount import FuseMount
from driver.model.limits import DETACH_WAIT, MOUNT_WAIT
from driver.model.policy import MountArguments
from driver.model.state import Detach
from driver.mounts.connections import Connection
from driver.mounts.device import OpenDevice
from fusermount3_proxy.wire.mountinfo import PLACEHOLDER_SOURCE, Mount

SLOW = 3.0  # seconds that late work takes beyond its limit

TARGET = "/pods/uid/volumes/kubernetes.io~csi/data/mount"


@dataclass
class FileSystem:
    """Represents one file system in the stack at the target."""

    number: str
    fstype: str
    source: str
    device: str | None = None
    is_connected: bool = True  # FUSE: its program lives, and nobody has aborted the connection
    is_silent: bool = False  # FUSE: its program lives and answers nothing
    is_busy: bool = False

    @property
    def is_fuse(self) -> bool:
        return self.fstype.startswith("fuse")

    def line(self, mount_id: int) -> Mount:
        return Mount(
            mount_id, mount_id - 1, self.number, b"/", TARGET.encode(), "rw,nosuid,nodev", True, self.fstype, self.source.encode(), "rw"
        )


class FakeConnection(Connection):
    """Represents the connection of one file system."""

    def __init__(self, kernel: "FakeKernel", served: FileSystem) -> None:
        self.identity = served.number
        self._kernel = kernel
        self.served = served

    def abort(self) -> None:
        """Let its program end."""
        self.served.is_connected = False
        if self.served.device is not None:
            self._kernel.die(self.served.device)

    def close(self) -> None:
        pass


@dataclass
class FakeKernel:
    """Keeps what is at the target, and which device nodes there are."""

    pace: int = 0
    stack: list[FileSystem] = field(default_factory=list)
    lazy: list[FileSystem] = field(default_factory=list)  # unmounted lazily, and in use
    devices: dict[str, bool] = field(default_factory=dict)  # whether some process holds the fd
    watches: dict[int, tuple[str, Callable[[], None]]] = field(default_factory=dict)
    has_directory: bool = True
    holds_files: bool = False  # beneath everything that is mounted
    detaching: int = 0
    attaching: int = 0
    is_slow: bool = False  # what is detached or removed takes longer than its limit, and is done later all the same
    is_stubborn: bool = False  # a process that mounts is killed, and ends much later
    is_stuck: bool = False  # mount(2) returns after its limit alone
    fails: dict[str, OSError] = field(default_factory=dict)  # by the name of the method that raises it, once
    made: int = 0

    # ---- what a test does

    def push(self, fstype: str, source: str) -> FileSystem:
        """Mount something on top."""
        self.made += 1
        self.stack.append(FileSystem(f"0:{100 + self.made}", fstype, source))
        return self.stack[-1]

    def die(self, device: str) -> None:
        """End the program that has this device's fd: every process has closed it. Its own copy counts no more, as the test's."""
        if self.devices.get(device):
            self.devices[device] = False
            for each in (*self.stack, *self.lazy):
                if each.device == device:
                    each.is_connected = False
            for name, callback in list(self.watches.values()):
                if name == device:
                    asyncio.get_running_loop().call_soon(callback)

    def unmount_on_node(self) -> None:
        """Do what `umount -l` on the node does."""
        if self.stack:
            self._disconnect(self.stack.pop())

    def close_files(self) -> None:
        """Let the last users of all that was unmounted lazily go; its programs end."""
        gone, self.lazy = self.lazy, []
        for each in gone:
            if each.device is not None:
                self.die(each.device)

    def _disconnect(self, gone: FileSystem) -> None:
        gone.is_connected = False

    def _fail(self, method: str) -> None:
        if method in self.fails:
            raise self.fails.pop(method)

    async def _work(self, method: str) -> None:
        for _ in range(self.pace):
            await asyncio.sleep(0)
        self._fail(method)

    # ---- DeviceKernel

    def has_device(self, name: str) -> bool:
        return name in self.devices

    def is_device_held(self, name: str) -> bool:
        return self.devices.get(name, False)

    def remove_device(self, name: str) -> None:
        self.devices.pop(name, None)

    def watch_device(self, name: str, callback: Callable[[], None]) -> int:
        self._fail("watch_device")
        self.made += 1
        self.watches[self.made] = (name, callback)
        return self.made

    def unwatch(self, watch: int) -> None:
        self.watches.pop(watch, None)

    def connection(self, device_number: str) -> Connection:
        self._fail("connection")
        for each in self.stack:
            if each.number == device_number:
                return FakeConnection(self, each)
        raise FileNotFoundError(ENOENT, os.strerror(ENOENT), TARGET)

    def find_connection(self, device_number: str, identity: str) -> Connection | None:
        for each in self.lazy:
            if each.number == device_number:
                return FakeConnection(self, each) if each.number == identity else None
        raise FileNotFoundError(ENOENT, os.strerror(ENOENT))

    def is_connection_used(self, device_number: str, connection: Connection | None) -> bool:
        return any(each.number == device_number for each in (*self.stack, *self.lazy))

    # ---- TargetKernel

    @property
    def is_busy(self) -> bool:
        return self.detaching > 0 or self.attaching > 0

    def open_device(self) -> OpenDevice:
        self._fail("open_device")
        self.made += 1
        name = f"{self.made:016x}"
        self.devices[name] = True
        return OpenDevice(name, os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))

    def discard_device(self, opened: OpenDevice) -> None:
        os.close(opened.fd)
        self.remove_device(opened.name)

    def device_number(self) -> str:
        if not self.has_directory:
            raise FileNotFoundError(ENOENT, os.strerror(ENOENT), TARGET)
        return self.stack[-1].number if self.stack else "0:1"

    def identity(self) -> str:
        return self.device_number()

    def mounts(self) -> list[Mount]:
        return [each.line(10 + i) for i, each in enumerate(self.stack)]

    def make_directory(self) -> bool:
        was_there, self.has_directory = self.has_directory, True
        return not was_there

    def mount_placeholder(self) -> str:
        self._fail("mount_placeholder")
        if not self.has_directory:
            raise NotADirectoryError(ENOTDIR, os.strerror(ENOTDIR), TARGET)
        return self.push("tmpfs", PLACEHOLDER_SOURCE).number

    def is_untouched(self, placeholder: str) -> bool:
        return self.device_number() == placeholder

    async def restore_access(self) -> None:
        await self._work("restore_access")

    async def remount_placeholder(self) -> str:
        """Do it in the thread that mounts: what takes too long is done later all the same."""
        await self._work("remount_placeholder")
        if self.is_stuck:
            self.attaching += 1
            asyncio.get_running_loop().call_later(MOUNT_WAIT + SLOW, self._remount_late)
            await asyncio.sleep(MOUNT_WAIT)
            raise TimeoutError
        return self.mount_placeholder()

    def _remount_late(self) -> None:
        self.attaching -= 1
        with contextlib.suppress(OSError):
            self.mount_placeholder()

    def attach(self, opened: OpenDevice, arguments: MountArguments) -> None:
        """Do what mount(2) does."""
        self.push(arguments.fstype.decode(), arguments.source.decode()).device = opened.name

    def begin_mount(
        self, opened: OpenDevice, arguments: MountArguments, waits_for_init: bool, on_end: Callable[[int], int]
    ) -> "FakeAttempt":
        return FakeAttempt(self, opened, arguments, waits_for_init, on_end)

    def unmount(self) -> None:
        self._disconnect(self.stack.pop())

    async def usage(self) -> tuple[int, ...]:
        await self._work("usage")
        return (1,) * 7

    def placeholder_usage(self, identity: str) -> tuple[int, ...] | None:
        return (0,) * 7 if self.identity() == identity else None

    def mounted(self, opened: OpenDevice, before: str, mountpoint: bytes, arguments: MountArguments) -> FuseMount:
        self._fail("mounted")
        number = self.device_number()
        if number == before:
            raise OSError(ECONNABORTED, "it was unmounted on the node", TARGET)
        return FuseMount(mountpoint, number, arguments.source.decode(), arguments.fstype.decode(), opened.name)

    async def is_gone(self, device_number: str, had_lock: bool) -> bool:
        await self._work("is_gone")
        for each in self.stack:
            if each.number == device_number:
                if each.is_connected and each.is_silent:
                    raise TimeoutError
                return not each.is_connected
        return True

    async def detach(self, mount: FuseMount, how: Detach) -> None:
        await self._in_thread("detach", lambda: self._detach(mount, how))

    async def remove(self, mount: FuseMount | None) -> None:
        await self._in_thread("remove", self._remove)

    async def _in_thread(self, method: str, work: Callable[[], None]) -> None:
        """Work in the target's one thread: who finds it busy waits; who waits too long goes without, and the work is done later."""
        end = asyncio.get_running_loop().time() + DETACH_WAIT
        while self.detaching:
            await asyncio.sleep(0.1)
            if asyncio.get_running_loop().time() >= end:
                raise TimeoutError
        self.detaching += 1
        if self.is_slow:
            asyncio.get_running_loop().call_later(DETACH_WAIT + SLOW, self._late, work)
            await asyncio.sleep(DETACH_WAIT)
            raise TimeoutError
        try:
            await self._work(method)
            work()
        finally:
            self.detaching -= 1

    def _late(self, work: Callable[[], None]) -> None:
        self.detaching -= 1
        with contextlib.suppress(OSError):
            work()

    def _detach(self, mount: FuseMount, how: Detach) -> None:
        if not any(each.number == mount.device_number for each in self.stack):
            return
        top = self.stack[-1]
        if top.number != mount.device_number or (how is Detach.PLAIN and top.is_busy):
            raise OSError(EBUSY, os.strerror(EBUSY), TARGET)
        if how is Detach.LAZY and top.is_busy and top.is_connected:
            self.lazy.append(self.stack.pop())
        else:
            self._disconnect(self.stack.pop())

    def remove_at_once(self) -> None:
        self._fail("remove_at_once")
        self._remove()

    async def remove_placeholder(self) -> None:
        await self._in_thread("remove_placeholder", self._remove)

    def _remove(self) -> None:
        while self.stack:
            self._disconnect(self.stack.pop())
        if self.holds_files:
            raise OSError(ENOTEMPTY, os.strerror(ENOTEMPTY), TARGET)
        self.has_directory = False

    def has_sub_paths(self) -> bool:
        return False

    async def rebind_sub_paths(self, device_number: str) -> int:
        await self._work("rebind_sub_paths")
        return 0


class FakeAttempt:
    """Represents a mount(2) that returns after some turns of the event loop; one in a process can be killed before that."""

    def __init__(
        self, kernel: FakeKernel, opened: OpenDevice, arguments: MountArguments, is_process: bool, on_end: Callable[[int], int]
    ) -> None:
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.is_given_up = False
        self._kernel = kernel
        self._opened = opened
        self._arguments = arguments
        self._is_process = is_process
        self._on_end = on_end
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            await self._kernel._work("mount")
            while self._kernel.attaching and not self._is_process:  # the thread is busy
                await asyncio.sleep(0.1)
            if self.is_given_up and not self._is_process:
                raise InterruptedError(EINTR, os.strerror(EINTR))
            if self._kernel.is_stuck:  # a lock that an application holds
                await asyncio.sleep(MOUNT_WAIT + SLOW)
        except OSError as error:
            self._end(error.errno or EINVAL)
            return
        if self.ended.done():
            return
        if self._kernel.has_directory:
            self._kernel.attach(self._opened, self._arguments)
        self._end(0 if self._kernel.has_directory else ENOENT)

    def give_up(self) -> None:
        if not self.ended.done() and not self.is_given_up:
            self.is_given_up = True
            if self._is_process:
                asyncio.get_running_loop().call_later(SLOW if self._kernel.is_stubborn else 0, self._end, EINTR)

    def _end(self, errno: int) -> None:
        if not self.ended.done():
            self.ended.set_result(self._on_end(errno))
            if self.is_given_up and not self._is_process:
                self._kernel.die(self._opened.name)  # who began it has closed its fd meanwhile
