"""Test that the driver keeps no fd that a pod sends, and that an fd which blocks the thread that drops it blocks no other pod."""

import array
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from errno import EINVAL

import pytest
from harness.events import wait_until, within
from harness.hostile import MOUNT, attacked, connect, mount_and_end, numbers, receive, recovers, request, serves_again
from harness.kubelet import Published
from harness.pod import TEST_PROGRAMS, Node, Pod

pytestmark = pytest.mark.alone

_MOST = 253  # fds in one message, SCM_MAX_FD of <net/scm.h>
_LINGER = 3600  # seconds


def send(connection: socket.socket, packet: bytes, fds: list[int]) -> None:
    try:
        connection.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
    except (BrokenPipeError, ConnectionResetError):
        pass  # it was disconnected already


def of_every_kind(stack: ExitStack, volume: Published) -> dict[str, int]:
    """Open all kinds of files that a container can get without privileges, and some that it cannot get."""
    opened = {
        "memfd": os.memfd_create("x"),
        "directory": os.open("/", os.O_RDONLY | os.O_DIRECTORY),
        "O_PATH": os.open("/proc", os.O_PATH),
        "null": os.open("/dev/null", os.O_RDWR),
        "zero": os.open("/dev/zero", os.O_RDWR),
        "fuse": os.open("/dev/fuse", os.O_RDWR),
        "eventfd": os.eventfd(1),
        "pidfd": os.pidfd_open(os.getpid()),
        "proc": os.open("/proc/self/mem", os.O_RDONLY),
        "namespace": os.open("/proc/self/ns/mnt", os.O_RDONLY),
    }
    opened["read"], opened["write"] = os.pipe()
    epoll = stack.enter_context(select.epoll())
    epoll.register(opened["read"])
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in pair:
        stack.enter_context(end)
    # This one is full of data and has itself in its queue: only the kernel's garbage collector for sockets can find it.
    send(pair[0], bytes(65536), [pair[0].fileno(), pair[1].fileno()])
    for fd in opened.values():
        stack.callback(os.close, fd)
    own = stack.enter_context(connect(volume))
    return {**opened, "epoll": epoll.fileno(), "cycle": pair[1].fileno(), "the driver's own": own.fileno()}


def test_fds_of_every_kind_before_with_and_after_the_request(node: Node, pod: Pod) -> None:
    volume = pod.publish()
    mount_and_end(volume)
    before = numbers(node)
    with ExitStack() as stack:
        kinds = of_every_kind(stack, volume)
        assert len(kinds) == 15
        for fds in [*([fd] for fd in kinds.values()), list(kinds.values()), list(kinds.values()) * (_MOST // len(kinds))]:
            with connect(volume) as connection:
                send(connection, b"not JSON", fds)
                answer, came = receive(connection)
                assert str(answer["error"]).startswith("bad request: ")
                assert came == []
            with connect(volume) as connection:
                send(connection, b'{"op":"unmount","mountpoint":"/elsewhere"}', fds)
                send(connection, MOUNT, fds)  # a connection carries one request, so this stays in its queue
                assert receive(connection)[0].get("errno", EINVAL) == EINVAL  # or a reset, because of what was not read
            with connect(volume) as connection:
                send(connection, b"", fds)
                assert receive(connection) == ({}, [])
            with connect(volume, "") as connection:
                send(connection, b"x", fds)
                for fd in receive(connection)[1]:
                    os.close(fd)
            volume.wait_waiting()
    mount_and_end(volume)
    recovers(node, before)


class Lingering:
    """Represents a TCP socket whose other end never reads: the thread that drops the last copy of it waits for that."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.sock = socket.create_connection(listener.getsockname())
            self._other, _ = listener.accept()
        self.sock.setblocking(False)
        try:
            while True:
                self.sock.send(bytes(65536))
        except BlockingIOError:
            pass
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, _LINGER))

    def close(self) -> None:
        self._other.close()
        self.sock.close()


@pytest.fixture
def linger(node: Node) -> Iterator[Callable[[Published, str, int], None]]:
    """Yield a function that sends `number` of them, each with a request; their last copies are those in the sockets' queues."""
    with ExitStack() as stack:

        def sends(volume: Published, suffix: str, number: int) -> None:
            # The test keeps a copy: otherwise the test itself would wait where the driver was faster.
            with node.driver.paused():
                for _ in range(number):
                    lingering = Lingering()
                    stack.callback(lingering.close)
                    with connect(volume, suffix) as connection:
                        connection.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [lingering.sock.fileno()]))])
                    lingering.sock.close()

        yield sends


@pytest.mark.parametrize("suffix", ["", ".v1"])
def test_lingering_tcp_sockets_block_neither_the_driver_nor_the_volume(
    node: Node, pod: Pod, linger: Callable[[Published, str, int], None], suffix: str
) -> None:
    """More of them are sent than there are threads to drop them."""
    volume = pod.publish()
    serves_again(volume)
    before = numbers(node)
    linger(volume, suffix, 24)
    with attacked(node, before=before):
        pass
    # The driver's threads are interrupted long before the sockets' own time.
    recovers(node, before)
    serves_again(volume)


def test_lingering_tcp_sockets_do_not_delay_unpublish(node: Node, pod: Pod, linger: Callable[[Published, str, int], None]) -> None:
    before = numbers(node)
    volume = pod.publish()
    linger(volume, "", 24)
    with attacked(node, before=before), within(5, "unpublish"):
        volume.unpublish()  # the listening socket drops what is in its queue, too
    recovers(node, before)


def test_lingering_tcp_sockets_do_not_delay_the_drivers_end(node: Node, pod: Pod, linger: Callable[[Published, str, int], None]) -> None:
    """An upgrade waits for the end of the driver, and so do the clients of every other pod."""
    volume = pod.publish()
    linger(volume, ".v1", 40)
    with within(5, "the driver's end"):
        assert node.driver.stop(signal.SIGTERM) == 0
    node.driver.start()
    serves_again(volume)


def test_a_pod_that_removes_its_sockets_again_and_again_gets_no_more_threads(
    node: Node, pod: Pod, linger: Callable[[Published, str, int], None]
) -> None:
    volume = pod.publish()
    before = numbers(node)
    with attacked(node) as cost:
        for _ in range(4):
            if volume.socket.exists():
                linger(volume, "", 10)
                volume.socket.unlink()
            volume.republish()
    assert cost.threads > 0

    def are_made_again() -> bool:
        volume.republish()
        return volume.socket.exists()

    wait_until("the former sockets are closed, and a republish makes new ones", are_made_again)
    recovers(node, before)
    serves_again(volume)


class Unwritten:
    """Represents a file of a FUSE file system whose program takes no data: a thread that drops it waits until the data is written.

    The program is the pod's own, at its own volume. The test closes the copies that it sends before anything is written, and
    keeps one: otherwise the test itself would wait.
    """

    def __init__(self, node: Node, pod: Pod) -> None:
        self.volume = pod.publish(volume="unwritten", socket="unwritten.sock")
        fuse = pod.fuse(self.volume, binds=[TEST_PROGRAMS])
        self.program = fuse.start("python3 /programs/hostile_fuse.py never-writes /data")
        self.program.wait_until_it_says("serves")
        self._node = node
        self._kept = -1

    def send(self, volume: Published, suffix: str, number: int) -> None:
        with self._node.driver.paused():  # so that the driver drops the last copies
            for _ in range(number):
                fd = os.open(self.volume.target / "hello", os.O_RDWR)
                with connect(volume, suffix) as connection:
                    send(connection, b"x", [fd])
                os.close(fd)
            self._kept = os.open(self.volume.target / "hello", os.O_RDWR)
            os.pwrite(self._kept, bytes(4096), 0)

    def close(self) -> None:
        """Close it when its connection is aborted: before, that would wait as well."""
        with suppress(OSError):  # what was written is lost
            os.close(self._kept)


@pytest.mark.parametrize("suffix", ["", ".v1"])
def test_files_of_a_stopped_program(node: Node, pod: Pod, suffix: str) -> None:
    """The kernel reports each drop to the program, and waits for no answer."""
    volume = pod.publish()
    before = numbers(node)
    served = pod.publish(volume="served", socket="served.sock")
    fuse = pod.fuse(served, binds=[TEST_PROGRAMS])
    program = served.mounted_by(fuse, "python3 /programs/odd_program.py serves /data text")
    fuse.wait_for("test -e /data/hello")
    with node.driver.paused():  # so that the driver drops the last copies, and the test closes its own while the program answers
        for number in range(24):
            path, flags = [(served.target / "hello", os.O_RDONLY), (served.target, os.O_DIRECTORY), (served.target, os.O_PATH)][number % 3]
            fd = os.open(path, flags)
            with connect(volume, suffix) as connection:
                send(connection, b"x", [fd])
            os.close(fd)
        program.kill("STOP")
    with attacked(node, before=before):
        serves_again(volume)
    recovers(node, before, published=1)  # with the program still stopped
    served.unpublish()
    recovers(node, before)
    program.kill("CONT")


@pytest.mark.parametrize("suffix", ["", ".v1"])
def test_files_of_a_program_that_takes_no_data_end_with_its_volume(node: Node, pod: Pod, suffix: str) -> None:
    """Such files block the threads of the volume that they were sent to, and no others."""
    volume = pod.publish()
    before = numbers(node)
    unwritten = Unwritten(node, pod)
    try:
        unwritten.send(volume, suffix, 24)
        with attacked(node, volumes=2, before=before):
            pass
        with within(5, "unpublish"):
            unwritten.volume.unpublish()
    finally:
        with suppress(AssertionError):  # the program ends when it is unmounted
            unwritten.program.kill()
        unwritten.close()
    recovers(node, before)
    serves_again(volume)


def test_files_of_a_program_that_takes_no_data_delay_the_drivers_end_until_the_program_dies(node: Node, pod: Pod) -> None:
    """The kernel lets no process end that waits for such files, not even the driver. kubelet kills a pod's programs first."""
    volume = pod.publish()
    unwritten = Unwritten(node, pod)
    try:
        unwritten.send(volume, ".v1", 4)
        time.sleep(0.5)  # until they are dropped
        node.driver.signal(signal.SIGTERM)
    finally:
        unwritten.program.kill()
    with within(5, "the driver's end"):
        assert node.driver.wait() == 0
    unwritten.close()
    node.driver.start()
    unwritten.volume.wait_waiting()
    serves_again(volume)


def test_a_flood_of_fds(node: Node, pod: Pod) -> None:
    volume = pod.publish()
    before = numbers(node)
    with ExitStack() as stack, attacked(node) as cost:
        kinds = list(of_every_kind(stack, volume).values())
        for _ in cost.attacks(100):
            with suppress(OSError), connect(volume, timeout=1) as connection:
                connection.setblocking(False)
                message = array.array("i", kinds * (_MOST // len(kinds)))
                for _ in range(1000):  # until the queue is full, or the connection was closed
                    connection.sendmsg([MOUNT[:-1]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, message)])
    recovers(node, before)
    assert request(volume, b"{}")[0]["error"]
    serves_again(volume)


@pytest.mark.parametrize("for_ever", [False, True])
def test_a_container_of_the_same_user_has_too_many_fds_in_flight(node: Node, pod: Pod, for_ever: bool) -> None:
    """The kernel counts fds in flight by user, and without CAP_SYS_ADMIN the limit of open files holds for them."""
    volume = pod.publish()
    fuse = pod.fuse(volume, binds=[TEST_PROGRAMS])
    command = "sh -c 'ulimit -Sn 1024; exec {}'"
    flood = fuse.start(command.format("python3 /programs/in_flight.py"))
    flood.wait_until_it_says("full")
    program = fuse.start(command.format("bindfs -f /srv /data"))
    wait_until("the driver has mounted", lambda: "mounted fuse" in node.driver.log)
    if for_ever:
        assert program.wait() != 0
        assert "sending file descriptor: Too many references: cannot splice\n" in program.err
        volume.wait_waiting()
        flood.kill("KILL")
    else:
        flood.kill("KILL")
        volume.wait_mounted(program)
