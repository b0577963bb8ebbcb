"""Test kubelet's subPath binds: a container with a subPath sees each next mount, as containers with the whole volume do."""

import signal

import pytest
from harness.container import Background, Bind, Container
from harness.events import wait_until, within
from harness.kubelet import Published
from harness.mounts import stack
from harness.pod import STARTER, Node, Pod

CRASHES = 10


class Setup:
    def __init__(self, pod: Pod) -> None:
        self.pod = pod
        self.volume: Published = pod.publish()
        self.fuse: Container = pod.fuse(self.volume)
        self.fuse.check("mkdir -p /source/sub/deep")
        self._containers = 0

    def start(self, command: str = "bindfs -f /source /data") -> Background:
        return self.volume.mounted_by(self.fuse, command)

    def kill(self, program: Background) -> None:
        program.kill("KILL")
        self.volume.wait_waiting()

    def mount(self, text: str) -> Background:
        self.fuse.check(f"echo {text} >/source/sub/file; echo {text} >/source/sub/deep/file")
        program = self.start()
        self.fuse.wait_for("cat /data/sub/file")
        return program

    def application(self, sub_path: str = "sub", propagation: str = "rslave") -> Container:
        """Start a container with a subPath of what is mounted now."""
        self._containers += 1
        path = self.volume.pod.bind_sub_path(self.volume, f"app{self._containers}", sub_path)
        container = self.pod.container([Bind(path, "/data-subpath", propagation)])
        container.wait_until_running()
        return container

    def application_of_a_dead_program(self) -> Container:
        """Start a container with a subPath of a mount, whose program is then killed."""
        program = self.mount("first")
        application = self.application()
        self.kill(program)
        return application

    def layers(self) -> list[int]:
        paths = sorted((self.volume.pod.folder / "volume-subpaths").glob("*/*/*"))
        return [len(stack(path)) for path in paths]


@pytest.fixture
def setup(pod: Pod) -> Setup:
    return Setup(pod)


def sees(container: Container, text: str, file: str = "/data-subpath/file") -> None:
    wait_until(f"{file} contains {text}", lambda: container.run(f"cat {file}").out == f"{text}\n")


def test_ten_crashes_in_a_row_are_seen_and_the_pod_goes(node: Node, setup: Setup) -> None:
    program = setup.mount("first")
    applications = [setup.application()]
    sees(applications[0], "first")
    for number in range(CRASHES):
        setup.kill(program)
        assert "not connected" in applications[0].run("cat /data-subpath/file").err
        program = setup.mount(f"life {number}")
        if number == 3:  # started between two crashes: its bind is of another file system
            applications.append(setup.application())
        if number == 6:  # restarted between two crashes
            setup.pod.stop(applications.pop())
            applications += [setup.application(), setup.application()]
        for application in applications:
            sees(application, f"life {number}")
        assert max(setup.layers()) <= 2
    with within(10, "the end of the pod"):
        node.delete_pods()


def test_writing_through_it_reaches_the_new_program(setup: Setup) -> None:
    application = setup.application_of_a_dead_program()
    setup.mount("second")
    sees(application, "second")
    application.check("echo written >/data-subpath/new")
    assert setup.fuse.check("cat /source/sub/new") == "written\n"


def test_deeper_sub_paths_and_odd_names(setup: Setup) -> None:
    setup.fuse.check("mkdir '/source/a b\\c' && echo odd >'/source/a b\\c/file'")
    program = setup.mount("first")
    deep, odd = setup.application("sub/deep"), setup.application("a b\\c")
    setup.kill(program)
    setup.mount("second")
    sees(deep, "second")
    sees(odd, "odd")


def test_an_unmount_by_hand_is_like_a_crash(setup: Setup) -> None:
    setup.mount("first")
    application = setup.application()
    assert setup.fuse.run("fusermount3 -u /data").code == 0
    assert application.run("cat /data-subpath/file").code != 0
    setup.mount("second")
    sees(application, "second")


def test_a_removed_sub_path_is_bound_again_when_it_exists(setup: Setup) -> None:
    application = setup.application_of_a_dead_program()
    setup.fuse.check("mv /source/sub /source/gone && mkdir /source/other")
    setup.start()
    setup.fuse.wait_for("test -d /data/other")
    assert application.run("cat /data-subpath/file").code != 0
    setup.fuse.check("mv /source/gone /source/sub")
    wait_until("a republish brings it", lambda: setup.volume.republish() or application.run("cat /data-subpath/file").code == 0)


def test_a_link_in_its_place_is_not_followed(node: Node, setup: Setup) -> None:
    """The pod's program decides what each name is: a link would lead the driver, which is root, to a file of the node."""
    application = setup.application_of_a_dead_program()
    setup.fuse.check("mv /source/sub /source/gone && ln -s /etc /source/sub")
    said = len(node.driver.log)
    setup.start()
    wait_until("the driver refuses", lambda: "do not see the new mount yet" in node.driver.log[said:])
    assert application.run("ls /data-subpath/hostname").code != 0
    assert setup.layers() == [1]


def test_a_driver_that_was_replaced_meanwhile(node: Node, setup: Setup) -> None:
    application = setup.application_of_a_dead_program()
    setup.mount("second")
    sees(application, "second")
    assert node.driver.stop(signal.SIGTERM) == 0
    node.driver.start()
    sees(application, "second")
    setup.fuse.check("pkill -KILL -x bindfs")
    setup.volume.wait_waiting()
    setup.mount("third")
    sees(application, "third")
    assert setup.layers() == [2]


def test_a_program_that_hangs_blocks_nobody(node: Node, setup: Setup) -> None:
    application = setup.application_of_a_dead_program()
    # It is mounted, and never reads a request.
    program = setup.start(f"{STARTER} sleep 1000")
    with within(5, "republish"):
        setup.volume.republish()
    setup.kill(program)
    setup.mount("second")
    sees(application, "second")


def test_a_directory_that_each_next_program_lacks_does_not_fill_the_log(node: Node, setup: Setup) -> None:
    setup.application_of_a_dead_program()
    setup.fuse.check("mkdir /empty")
    said, sentence = len(node.driver.log), "do not see the new mount yet: sub:"
    for _ in range(25):
        program = setup.start("bindfs -f /empty /data")
        wait_until("it is reported", lambda: f"{sentence} No such file or directory" in setup.volume.condition)
        setup.volume.republish()
        setup.kill(program)
    assert node.driver.log[said:].count(sentence) == 20
