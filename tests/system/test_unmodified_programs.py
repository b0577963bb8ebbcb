"""FUSE programs as distributions have them, in a container without privileges, for two application containers.

Each mounts at the volume's own path and at another one: the file system appears at the volume either way.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest
from harness.container import Background, Bind, Container
from harness.kubelet import Published
from harness.pod import Pod, single_file
from harness.servers import S3Server, SshServer, ext4_image, squashfs_image

both_places = pytest.mark.parametrize("mountpoint", ["/data", "/elsewhere"])


@pytest.fixture
def content(tmp_path: Path) -> Path:
    """What is served."""
    folder = tmp_path / "content"
    (folder / "folder").mkdir(parents=True)
    (folder / "folder" / "file").write_text("content\n")
    folder.chmod(0o755)
    return folder


def mounted(volume: Published, fuse: Container, command: str, mountpoint: str) -> Background:
    fuse.check(f"mkdir -p {mountpoint}")
    program = fuse.start(command)
    volume.wait_mounted(program)
    return program


def everybody_reads(applications: Sequence[Container]) -> None:
    for application in applications:
        assert application.check("cat /data/folder/file") == "content\n"
        assert application.check("ls /data/folder") == "file\n"


def one_writes_the_other_reads(before: Container, after: Container) -> None:
    after.check("echo written later >/data/new")
    assert before.check("cat /data/new") == "written later\n"
    before.check("mkdir /data/made && mv /data/new /data/made/moved")
    assert after.check("cat /data/made/moved") == "written later\n"


@both_places
def test_bindfs(pod: Pod, content: Path, mountpoint: str) -> None:
    volume = pod.publish()
    before, fuse = pod.application(volume), pod.fuse(volume, binds=[Bind(content, "/source")])
    mounted(volume, fuse, f"bindfs -f /source {mountpoint}", mountpoint)
    after = pod.application(volume)
    everybody_reads([before, after])
    one_writes_the_other_reads(before, after)
    assert (content / "made" / "moved").read_text() == "written later\n"


def test_bindfs_with_the_single_file(pod: Pod, content: Path) -> None:
    volume = pod.publish()
    before, fuse = pod.application(volume), pod.fuse(volume, helper=single_file(), binds=[Bind(content, "/source")])
    mounted(volume, fuse, "bindfs -f /source /data", "/data")
    after = pod.application(volume)
    everybody_reads([before, after])
    one_writes_the_other_reads(before, after)


def test_a_startup_probe_sees_when_it_is_mounted(pod: Pod, content: Path) -> None:
    """Manifests wait with these commands: nothing but the mount may show the word fuse."""
    probes = ["mount | grep /data | grep fuse", "/bin/mount | grep fuse"]
    volume = pod.publish()
    application, fuse = pod.application(volume), pod.fuse(volume, binds=[Bind(content, "/source")])
    assert [application.run(probe).code for probe in probes] == [1, 1]
    mounted(volume, fuse, "bindfs -f /source /elsewhere", "/elsewhere")
    assert [application.run(probe).code for probe in probes] == [0, 0]


def test_bindfs_in_the_background(pod: Pod, content: Path) -> None:
    """Without -f it forks, and its first process ends: the child keeps the file system."""
    volume = pod.publish()
    application, fuse = pod.application(volume), pod.fuse(volume, binds=[Bind(content, "/source")])
    fuse.check("bindfs /source /data")
    everybody_reads([application])


@both_places
def test_sshfs_of_a_real_server(pod: Pod, mountpoint: str) -> None:
    volume = pod.publish()
    before, server = pod.application(volume), SshServer(pod)
    server.container.check("mkdir /srv/folder && echo content >/srv/folder/file")
    fuse = pod.fuse(volume, binds=[server.key], network=server.container)
    mounted(volume, fuse, f"sshfs -f {server.options} root@127.0.0.1:/srv {mountpoint}", mountpoint)
    after = pod.application(volume)
    everybody_reads([before, after])
    one_writes_the_other_reads(before, after)
    assert server.container.check("cat /srv/made/moved") == "written later\n"


@both_places
def test_squashfuse(pod: Pod, content: Path, tmp_path: Path, mountpoint: str) -> None:
    image = squashfs_image(tmp_path, content)
    volume = pod.publish()
    before, fuse = pod.application(volume), pod.fuse(volume, binds=[Bind(image, "/image", read_only=True)])
    mounted(volume, fuse, f"squashfuse -f /image {mountpoint}", mountpoint)
    everybody_reads([before, pod.application(volume)])
    assert "Read-only file system" in before.run("echo text >/data/new").err


@both_places
def test_fuse2fs(pod: Pod, content: Path, tmp_path: Path, mountpoint: str) -> None:
    image = ext4_image(tmp_path, content)
    volume = pod.publish()
    before, fuse = pod.application(volume), pod.fuse(volume, binds=[Bind(image, "/image")])
    mounted(volume, fuse, f"fuse2fs -f -o fakeroot /image {mountpoint}", mountpoint)
    after = pod.application(volume)
    everybody_reads([before, after])
    one_writes_the_other_reads(before, after)


@both_places
def test_s3fs_of_a_real_server(pod: Pod, mountpoint: str) -> None:
    volume = pod.publish()
    before, server = pod.application(volume), S3Server(pod)
    fuse = pod.fuse(volume, network=server.container)
    fuse.check("umask 077 && echo access:secret >/tmp/password")
    options = f"url={server.URL},use_path_request_style,passwd_file=/tmp/password"
    mounted(volume, fuse, f"s3fs {server.BUCKET} {mountpoint} -f -o {shlex.quote(options)}", mountpoint)
    after = pod.application(volume)
    after.check("mkdir /data/folder && echo content >/data/folder/file")
    everybody_reads([before, after])
    one_writes_the_other_reads(before, after)
    assert server.container.check(f"curl -sf {server.URL}/{server.BUCKET}/made/moved") == "written later\n"
