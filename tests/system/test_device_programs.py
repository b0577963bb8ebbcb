"""Test how people use programs in a container with a fuse device: by mount(8), several at once, by hand, after a change of user."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import mounts
from harness.container import Bind, Container, Result
from harness.device import BINDFS, FOLDER, USER, Device, fuse_mounts, source, wait_until_unmounted
from harness.pod import HELPERS, PLACE, TEST_PROGRAMS, TREE, Node, Pod
from harness.servers import SshServer


def places(container: Container) -> list[str]:
    return [mount.path for mount in fuse_mounts(container)]


def test_mount_starts_sshfs(device: Device, pod: Pod) -> None:
    """`mount -t fuse.sshfs` starts /sbin/mount.fuse3, and that sshfs. Only root may call mount(8)."""
    server = SshServer(pod)
    server.container.check("mkdir /srv/folder && echo content >/srv/folder/file")
    container = device.container([server.key], network=server.container)
    container.check("mkdir /m")
    options = SshServer.OPTIONS.removeprefix("-o ")
    container.check(f"mount -t fuse.sshfs root@127.0.0.1:/srv {FOLDER} -o nosuid,nodev,{options}")
    (mount,) = fuse_mounts(container)
    assert (mount.path, mount.fstype, mount.source) == (FOLDER, "fuse.sshfs", "root@127.0.0.1:/srv")
    assert container.check(f"cat {FOLDER}/folder/file") == "content\n"
    container.check(f"fusermount3 -u {FOLDER}")
    wait_until_unmounted(container)


def test_several_programs_at_once(device_container: Container) -> None:
    """Each mounts at a folder of its own, also inside of another one's file system, and ends alone."""
    container = device_container
    container.check("mksquashfs /source /image -quiet -no-progress && mkdir /a /b /c && chown 1234 /a /b")
    container.check(f"{USER} {BINDFS} /source /a && {USER} squashfuse /image /b && bindfs /source /c && bindfs -r /source {FOLDER}")
    assert sorted(places(container)) == ["/a", "/b", "/c", FOLDER]
    for folder, user in (("/a", USER), ("/b", USER), ("/c", ""), (FOLDER, "")):
        assert container.check(f"{user} cat {folder}/file") == "content\n"
    container.check("pkill -KILL -x squashfuse")
    container.wait_for("! grep -q ' /b ' /proc/self/mountinfo")
    container.check(f"{USER} fusermount3 -u /a && fusermount3 -u {FOLDER}")
    assert places(container) == ["/c"]
    container.check("fusermount3 -u /c")


def test_twenty_programs_start_together(device_container: Container) -> None:
    container = device_container
    numbers = range(20)
    container.check(" && ".join(f"mkdir /n{number} && chown 1234 /n{number}" for number in numbers))
    container.check(" ".join(f"{USER} {BINDFS} /source /n{number} &" for number in numbers) + " wait", 60)
    assert sorted(places(container)) == sorted(f"/n{number}" for number in numbers)
    unmounted = container.run(" ".join(f"{USER} fusermount3 -u /n{number} &" for number in numbers) + " wait", 60)
    assert unmounted.err == ""
    assert places(container) == []


def test_an_entrypoint_mounts_and_becomes_another_user(device: Device, node: Node) -> None:
    """Root mounts for everybody; the application that comes after it as another user reads and writes, and cannot unmount."""
    script = (
        f"mkdir -p {FOLDER} && bindfs -o allow_other --force-user=1234 /source {FOLDER} && "
        f"exec {USER} sh -c 'echo from the application >{FOLDER}/new && cat {FOLDER}/file {FOLDER}/new; fusermount3 -u {FOLDER}; echo $?'"
    )
    container = device.container([Bind(source(node), "/source")], command=["sh", "-c", script])
    ended = container.wait()
    assert ended.out.splitlines() == ["content", "from the application", "1"], ended
    assert f"entry for {FOLDER} not found in /etc/mtab" in ended.err
    assert (source(node) / "new").read_text() == "from the application\n"


def test_a_container_whose_first_process_is_the_program(device: Device, node: Node) -> None:
    """The program runs in the foreground as an ordinary user, and ends with the container, which starts again."""
    for _ in range(2):
        command = ["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups", "bindfs", "-f", "--no-allow-other", "/source", "/tmp/m"]
        script = f"mkdir /tmp/m && chown 1234 /tmp/m && exec {' '.join(command)}"
        container = device.container([Bind(source(node), "/source")], command=["sh", "-c", script])
        container.wait_until_running()
        seen = container.exec("until grep -q ' /tmp/m ' /proc/self/mountinfo; do sleep 0.1; done; cat /tmp/m/file", user="1234:1234")
        assert seen == Result(0, "content\n", "")
        container.kill("KILL")
        container.wait()


def test_a_notebooks_user_mounts_by_hand(device: Device, node: Node) -> None:
    """The container runs as an ordinary user, whose home is a volume. The shell in which the user mounts ends, and the mount stays."""
    home = node.folder / "home"
    home.mkdir()
    home.chmod(0o777)
    binds = [Bind(home, "/srv/home"), Bind(source(node), "/source")]
    options = ["--device=/dev/fuse", "--user=1234:100", "--cap-drop=all", "--security-opt=no-new-privileges"]
    container = device.container(binds, options)
    container.check("mkdir -p /srv/home/work/data")
    # script(1) gives the shell a terminal, as the one in a browser has.
    container.check("script -q -c 'cd /srv/home/work && bindfs --no-allow-other /source data' /dev/null")
    assert places(container) == ["/srv/home/work/data"]
    assert container.check("cat /srv/home/work/data/file") == "content\n"
    container.check("cd /srv/home/work && fusermount3 -u ./data/")
    assert places(container) == []


@pytest.fixture
def set_uid_tree(device: Device) -> Iterator[Path]:
    """Make a copy of the client tree whose helpers have the set-uid bit, as in the kit, where the bit has an effect."""
    folder = device.node.folder / "set-uid"
    folder.mkdir()
    mounts.mount("-t", "tmpfs", "-o", "mode=0755", "mfcp-test", folder)
    tree = folder / "tree"
    shutil.copytree(TREE, tree)
    for name in ("fusermount3", "bin/fusermount3", "bin/fusermount"):
        (tree / name).chmod(0o4555)
    yield tree
    mounts.unmount(folder)
    folder.rmdir()


@pytest.mark.parametrize("options", [[], ["--security-opt=no-new-privileges"]], ids=["the bit acts", "the bit does nothing"])
def test_an_app_image(device: Device, set_uid_tree: Path, options: list[str]) -> None:
    """Its runtime takes only a helper with the set-uid bit. The helper asks as the user nevertheless, and not as root."""
    binds = [
        Bind(set_uid_tree, PLACE, propagation="rprivate,suid", read_only=True),
        Bind(device.folder, f"{PLACE}/socket", read_only=True),
        *(Bind(set_uid_tree / "fusermount3", helper, propagation="rprivate,suid", read_only=True) for helper in HELPERS),
        TEST_PROGRAMS,
    ]
    container = device.container_of(binds, ["--device=/dev/fuse", *options])
    (place,) = [mount for mount in mounts.parse(container.check("cat /proc/self/mountinfo")) if mount.path == PLACE]
    assert "nosuid" not in place.options
    container.check("mkdir -p /app/data && echo content >/app/data/file && cp /programs/app_image/AppRun /app/AppRun")
    container.check("mksquashfs /app /image -quiet -no-progress -all-root && sh /programs/app_image/make.sh /image /tmp/some.AppImage")
    ended = container.run(f"{USER} /tmp/some.AppImage one two")
    assert (ended.code, ended.err) == (7, "")
    helper, owner, content, arguments = ended.out.splitlines()
    assert helper.startswith("helper /") and content == "content" and arguments == "one two"
    assert owner == "user_id=1234"
    wait_until_unmounted(container)


def test_the_set_uid_bit_gives_nobody_roots_rights(device: Device, set_uid_tree: Path) -> None:
    """While the helper waits for the end of a program it has the user's ids, all of them, and no capabilities."""
    binds = [Bind(set_uid_tree, PLACE, propagation="rprivate,suid", read_only=True)]
    container = device.container_of(binds, ["--device=/dev/fuse"])
    script = (
        "import os, socket, subprocess; a, b = socket.socketpair(); n = str(b.fileno()); "
        f"p = subprocess.Popen(['{PLACE}/fusermount3', '--auto-unmount', '--', '/tmp'], pass_fds=[b.fileno()], env={{'_FUSE_COMMFD': n}}); "
        "[None for _ in iter(lambda: b'_internal' in open(f'/proc/{p.pid}/cmdline', 'rb').read(), True)]; "
        "print(*[line for line in open(f'/proc/{p.pid}/status') if line.startswith(('Uid', 'Gid', 'CapEff', 'CapPrm'))]); p.kill()"
    )
    words = container.check(f'{USER} python3 -c "{script}"').split()
    assert words == ["Uid:", *["1234"] * 4, "Gid:", *["1234"] * 4, "CapPrm:", "0" * 16, "CapEff:", "0" * 16]
