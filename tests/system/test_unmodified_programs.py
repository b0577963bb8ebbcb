"""Test bindfs in the ways in which test_clients.py does not start it: with the single file, in the background, and under a probe."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from harness.container import Bind, Container
from harness.pod import Pod, single_file


@pytest.fixture
def content(tmp_path: Path) -> Path:
    """Make the folder that is served."""
    folder = tmp_path / "content"
    (folder / "folder").mkdir(parents=True)
    (folder / "folder" / "file").write_text("content\n")
    folder.chmod(0o755)
    return folder


def everybody_reads(applications: Sequence[Container]) -> None:
    for application in applications:
        assert application.check("cat /data/folder/file") == "content\n"
        assert application.check("ls /data/folder") == "file\n"


def one_writes_the_other_reads(before: Container, after: Container) -> None:
    after.check("echo written later >/data/new")
    assert before.check("cat /data/new") == "written later\n"
    before.check("mkdir /data/made && mv /data/new /data/made/moved")
    assert after.check("cat /data/made/moved") == "written later\n"


def test_bindfs_with_the_single_file(pod: Pod, content: Path) -> None:
    volume = pod.publish()
    before, fuse = pod.application(volume), pod.fuse(volume, helper=single_file(), binds=[Bind(content, "/source")])
    volume.mounted_by(fuse, "bindfs -f /source /data")
    after = pod.application(volume)
    everybody_reads([before, after])
    one_writes_the_other_reads(before, after)


def test_a_startup_probe_sees_when_it_is_mounted(pod: Pod, content: Path) -> None:
    """Manifests wait with these commands: only the mount may show the word fuse."""
    probes = ["mount | grep /data | grep fuse", "/bin/mount | grep fuse"]
    volume = pod.publish()
    application, fuse = pod.application(volume), pod.fuse(volume, binds=[Bind(content, "/source")])
    assert [application.run(probe).code for probe in probes] == [1, 1]
    fuse.check("mkdir /elsewhere")
    volume.mounted_by(fuse, "bindfs -f /source /elsewhere")
    assert [application.run(probe).code for probe in probes] == [0, 0]


def test_bindfs_in_the_background(pod: Pod, content: Path) -> None:
    """Without -f the program forks, and its first process ends: the child keeps the file system."""
    volume = pod.publish()
    application, fuse = pod.application(volume), pod.fuse(volume, binds=[Bind(content, "/source")])
    fuse.check("bindfs /source /data")
    everybody_reads([application])
