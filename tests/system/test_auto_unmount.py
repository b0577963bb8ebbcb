"""Test -o auto_unmount where the driver mounts: any end of the program unmounts, and no process of ours stays in the pod.

With this option libfuse calls the helper first, keeps its end of the socket open, and does not wait for the helper's end.
"""

import pytest
from harness.container import Background, Bind, Container
from harness.kubelet import Published
from harness.pod import Pod
from harness.programs import static_fuse_program

# A zombie uses nothing but its pid, and libfuse never reaps this helper.
HELPERS = "for d in /proc/[0-9]*; do grep -qs fusermount3 $d/comm && ! grep -q '^State:.Z' $d/status && echo $d; done; true"


class Setup:
    def __init__(self, pod: Pod) -> None:
        self.volume: Published = pod.publish()
        self.application: Container = pod.application(self.volume)
        self.fuse: Container = pod.fuse(self.volume, binds=[Bind(static_fuse_program(), "/usr/bin/hello", read_only=True)])

    def mount(self, command: str = "hello -f -o auto_unmount /data") -> Background:
        program = self.fuse.start(command)
        self.volume.wait_mounted(program)
        # The mount is there before the program has its fd.
        assert self.fuse.check("cat /data/hello") == "Hello World!\n"
        assert self.application.check("cat /data/hello") == "Hello World!\n"
        self.fuse.wait_for(f'test -z "$({HELPERS})"')
        return program


@pytest.fixture
def setup(pod: Pod) -> Setup:
    return Setup(pod)


@pytest.mark.parametrize("number", ["KILL", "TERM", "HUP", "SEGV"])
def test_a_signal_ends_the_program(setup: Setup, number: str) -> None:
    for _ in range(2):
        program = setup.mount()
        program.kill(number)
        program.wait()
        setup.volume.wait_waiting()
        assert setup.application.check("ls -A /data") == ""


def test_its_whole_process_group_is_killed(setup: Setup) -> None:
    for _ in range(2):
        program = setup.mount("setsid hello -f -o auto_unmount /data")
        setup.fuse.check(f"kill -KILL -{program.pid}")
        program.wait()
        setup.volume.wait_waiting()


def test_it_is_unmounted_by_hand(setup: Setup) -> None:
    for _ in range(2):
        program = setup.mount()
        assert setup.fuse.run("fusermount3 -u /data").code == 0
        assert program.wait() == 0, program.err
        setup.volume.wait_waiting()


def test_a_program_in_the_background(setup: Setup) -> None:
    for _ in range(2):
        setup.mount("hello -o auto_unmount /data")
        setup.fuse.check("pkill -KILL -x hello")
        setup.volume.wait_waiting()


def test_somebody_keeps_the_socket_of_a_program_that_died(setup: Setup) -> None:
    """libfuse's helper would wait for the end of that socket. Nobody serves the mount any more, and the next program must not wait."""
    script = "hello -f -o auto_unmount /data & echo $! >/harness/pid; wait; sleep 1000"
    setup.mount(f"sh -c '{script}'")
    setup.fuse.check("kill -KILL $(cat /harness/pid)")
    setup.volume.wait_waiting()
    setup.mount()
