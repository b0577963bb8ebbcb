"""Test programs whose threads each clone the fd, for which they open /dev/fuse themselves.

The driver's empty file is not enough for that. The node's device is, which the engine's option --device gives the container;
the container has no CAP_SYS_ADMIN then either, so it can mount nothing without the driver.
"""

import pytest
from harness.container import Background, Bind, Container
from harness.events import wait_until
from harness.kubelet import Published
from harness.pod import Pod
from harness.programs import rust_program, static_fuse_program

CONTENT = "Hello World!\n"
_DEVICE = "a:e5"  # the numbers of /dev/fuse, as stat(1) prints them

with_fuser = [pytest.mark.long, pytest.mark.timeout(1800)]
each_command = pytest.mark.parametrize(
    ("command", "fds"),
    [
        pytest.param("hello -f -o clone_fd /data", 2, id="libfuse"),  # and more, as it needs threads
        pytest.param("hello-fuser --clone-fd /data", 4, id="fuser", marks=with_fuser),
    ],
)


def fuse_with(pod: Pod, volume: Published, command: str, has_device: bool) -> Container:
    """Start the FUSE container with the program of `command`, and with the node's device or the driver's empty file."""
    name = command.split()[0]
    program = Bind(static_fuse_program() if name == "hello" else rust_program("fuser"), f"/usr/bin/{name}", read_only=True)
    return pod.fuse(volume, binds=[program], dev_fuse=not has_device, options=["--device", "/dev/fuse"] if has_device else [])


def fds_of(fuse: Container, program: Background) -> int:
    """Count the fds of /dev/fuse that a program has, the driver's included."""
    return fuse.check(f"stat -L -c %t:%T /proc/{program.pid}/fd/*").split().count(_DEVICE)


def wait_for_fds(fuse: Container, program: Background, count: int) -> None:
    wait_until(f"{program.command} has {count} fds of /dev/fuse", lambda: fds_of(fuse, program) >= count)


def many_read(application: Container) -> None:
    out = application.check("for reader in 1 2 3 4 5 6 7 8; do { cat /data/hello || echo failed; } & done; wait")
    assert out == CONTENT * 8


@each_command
def test_with_the_device_each_thread_has_a_clone(pod: Pod, command: str, fds: int) -> None:
    volume = pod.publish()
    application, fuse = pod.application(volume), fuse_with(pod, volume, command, has_device=True)
    assert fuse.run("mount -t tmpfs none /mnt").code != 0
    for _ in range(2):
        program = fuse.start(command)
        volume.wait_served(program)
        many_read(application)
        wait_for_fds(fuse, program, fds)
        program.kill("KILL")  # the clones end with the program
        volume.wait_waiting()


def test_with_an_empty_file_libfuse_goes_on_without_clones(pod: Pod) -> None:
    volume, command = pod.publish(), "hello -f -o clone_fd /data"
    application, fuse = pod.application(volume), fuse_with(pod, volume, command, has_device=False)
    program = fuse.start(command)
    volume.wait_served(program)
    many_read(application)
    says = "fuse: failed to clone device fd: Inappropriate ioctl for device\nfuse: trying to continue without -o clone_fd.\n"
    wait_until("it says that it goes on", lambda: says in program.err)
    assert fds_of(fuse, program) == 1
    program.kill("KILL")
    volume.wait_waiting()


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_with_an_empty_file_fuser_ends_and_works_without_clones(pod: Pod) -> None:
    volume, command = pod.publish(), "hello-fuser --clone-fd /data"
    application, fuse = pod.application(volume), fuse_with(pod, volume, command, has_device=False)
    program = fuse.start(command)
    assert program.wait() == 1
    assert program.err == 'Error: Os { code: 25, kind: Uncategorized, message: "Inappropriate ioctl for device" }\n'
    volume.wait_waiting()
    program = fuse.start("hello-fuser /data")
    volume.wait_served(program)
    many_read(application)
    program.kill("KILL")
    volume.wait_waiting()
