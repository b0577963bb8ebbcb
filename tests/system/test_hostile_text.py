"""Test that options, sources and names of pods reach neither the kernel's mount data nor other lines of a table or the log."""

import json
import os
import re
from pathlib import Path

import grpc
import pytest
from harness.events import within
from harness.hostile import mount_and_end, request
from harness.kubelet import Published, refused
from harness.pod import Node, Pod

from driver.api.rpc import csi_pb2

# What the line of one of the driver's FUSE mounts in the mount table may contain.
_SUPER_OPTIONS = re.compile(r"rw|ro|user_id=\d+|group_id=\d+|default_permissions|allow_other|max_read=\d+|sync|dirsync")


def ask(volume: Published, options: str) -> tuple[dict[str, object], list[int]]:
    return request(volume, json.dumps({"op": "mount", "mountpoint": "/data", "options": options}).encode())


ATTACKS = [
    *("fd=0", "fd=7,fd=8", "user_id=4242", "group_id=4242", "rootmode=120777", "context=system_u:object_r:x:s0", "rootcontext=x"),
    *("max_read=4096\0fd=0", "max_read=4096\nfd=0", "max_read=4096 fd=0", "max_read=0x10", "max_read=٣", "max_read=4096\\,user_id=4242"),
    *("blksize=4096", "blkdev", "suid", "dev", "allow_root", "source=/dev/sda", "fsopen", "x-mount.mkdir", "loop", "bind", "remount"),
    *("move", "rshared", "silent,mand", "=", ",", ",,,", "\\", "\\\\,fd=0", "fsname", "subtype", "subtype=blk", "\0", "\n", "ro\0,suid"),
    *("a" * 60_000, "," * 60_000, "ro," * 20_000, "max_read=" + "9" * 50_000, "fsname=" + "f" * 50_000, "subtype=" + "s" * 50_000),
    *("fsname=a\nb", "subtype=a/b", "subtype=\n", "fsname=" + "".join(map(chr, range(1, 256))).replace(",", ""), "fsname=\x80\xff"),
]


@pytest.mark.parametrize("options", ATTACKS, ids=lambda text: repr(text[:30]))
def test_a_programs_options_inject_nothing_into_the_mount_data(pod: Pod, options: str) -> None:
    volume = pod.publish()
    answer, fds = ask(volume, options)
    try:
        if not fds:
            assert answer["error"] and answer["errno"]
            assert volume.fuse is None
            return
        mount = volume.fuse
        assert mount is not None and len(volume.mounts) == 2  # the placeholder, and this one
        assert {"nosuid", "nodev"} <= mount.options
        for option in mount.super_options:
            assert _SUPER_OPTIONS.fullmatch(option), option
        assert {"user_id=0", "group_id=0", "allow_other"} <= mount.super_options
    finally:
        for fd in fds:
            os.close(fd)
    volume.wait_waiting()


FORGED = "x 0 0\n99 98 0:99 / {target} rw - fuse forged rw\r98 97 0:98 / {target} rw - fuse forged rw\x1e\x85"


@pytest.mark.parametrize("name", ["fsname", "subtype"])
def test_a_source_forges_no_line_of_the_mount_table_or_the_log(node: Node, pod: Pod, name: str) -> None:
    victim, volume = node.pod().publish(), pod.publish()
    said = len(node.driver.log)
    # They are bytes that the mount table contains, and the victim's own path is among them.
    text = FORGED.format(target=victim.target)
    before = len(Path("/proc/self/mountinfo").read_bytes().split(b"\n"))
    _, fds = ask(volume, f"{name}={text}\n2026-01-01T00:00:00.000Z INFO pod=default/victim volume=x: unpublished")
    assert len(Path("/proc/self/mountinfo").read_bytes().split(b"\n")) == before + len(fds)
    # The driver believes none of it.
    victim.republish()
    assert victim.fuse is None
    mount_and_end(victim)
    for fd in fds:
        os.close(fd)
    volume.wait_waiting()
    new = node.driver.log[said:]
    assert not re.search(r"^2026-01-01T00:00:00.000Z", new, re.MULTILINE)
    # Python's idea of lines has more ends than a newline.
    assert [line for line in new.splitlines() if not re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z [A-Z]+ ", line)] == []


@pytest.mark.parametrize("where", ["mountOptions", "mount flags"])
@pytest.mark.parametrize(
    "text", ["fd=0", "ro\0suid", "a\nb", "user_id=0", "context=x", "max_read=1\\,fd=0", "x" * 4000, "\ud7ff\U0010ffff"]
)
def test_a_volumes_options_inject_nothing_into_the_mount_data(pod: Pod, where: str, text: str) -> None:
    pod.folder.empty_dir()
    asked = {"attributes": {"mountOptions": text}} if where == "mountOptions" else {"mount_flags": (text,)}
    volume = pod.publish(**asked)
    _, fds = ask(volume, "")
    mount = volume.fuse
    assert fds and mount is not None
    for option in mount.super_options:
        assert _SUPER_OPTIONS.fullmatch(option), option
    assert {"user_id=0", "group_id=0"} <= mount.super_options
    for fd in fds:
        os.close(fd)
    volume.wait_waiting()


@pytest.mark.parametrize("text", ["a," * 400_000, "ro," * 300_000, "x" * 4097], ids=["unknown ones", "known ones", "one"])
def test_a_volumes_options_have_a_length(node: Node, pod: Pod, text: str) -> None:
    """Nobody waits while the driver reads a megabyte of options, or logs a line for each."""
    pod.folder.empty_dir()
    said = len(node.driver.log)
    with within(2, "the refusal"):
        with refused(grpc.StatusCode.INVALID_ARGUMENT) as refusal:
            pod.folder.publish(pod.folder.request(attributes={"mountOptions": text}))
        assert "4096" in refusal.text
    assert len(node.driver.log) - said < 2000


def test_warnings_about_a_volumes_options_are_few(node: Node, pod: Pod) -> None:
    said = len(node.driver.log)
    pod.publish(attributes={"mountOptions": "a," * 2000})
    assert node.driver.log[said:].count(" WARNING ") == 11
    assert "1990 more warnings" in node.driver.log[said:]


@pytest.mark.parametrize("volume_id", ["../../etc", "a\nb", "\x1b[2J", "\0", "x" * 100_000, "é\u202e", " "])
def test_a_volume_id_is_text_alone(node: Node, pod: Pod, volume_id: str) -> None:
    """The id is never part of a path, and is one line of the log whatever it contains."""
    said = len(node.driver.log)
    asked = pod.folder.request()
    pod.folder.empty_dir()
    asked.volume_id = volume_id
    volume = pod.folder.publish(asked)
    mount_and_end(volume)
    volume.unpublish()
    new = node.driver.log[said:]
    assert new.isprintable() or all(line.isprintable() for line in new.split("\n"))
    assert max(map(len, new.split("\n"))) < 3000


@pytest.mark.parametrize(
    "target",
    [
        "{pods}/{uid}/volumes/kubernetes.io~csi/v/mount/..",
        "{pods}/{uid}/../{uid}/volumes/kubernetes.io~csi/v/mount",
        "{pods}/../volumes/kubernetes.io~csi/v/mount",
        "{pods}/./volumes/kubernetes.io~csi/v/mount",
        "{pods}//volumes/kubernetes.io~csi/v/mount",
        "/proc/self/root{pods}/{uid}/volumes/kubernetes.io~csi/v/mount",
    ],
)
def test_a_target_outside_the_pods_folder_is_not_unpublished_either(node: Node, pod: Pod, target: str) -> None:
    path = target.format(pods=node.kubelet.pods_dir, uid=pod.folder.uid)
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        node.kubelet.node().NodeUnpublishVolume(csi_pb2.NodeUnpublishVolumeRequest(volume_id="x", target_path=path))
    asked = pod.folder.request()
    pod.folder.empty_dir()
    asked.target_path = path
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        pod.folder.publish(asked)


def test_warnings_of_many_volumes_do_not_keep_status_from_answering(node: Node, pod: Pod) -> None:
    """`status` decides whether the driver's pod is ready, and gRPC accepts four mebibytes at most."""
    pod.folder.empty_dir()
    options = ",".join(["\U000e0001" * 400] * 10)
    for number in range(100):
        request = pod.folder.request(volume=f"v{number}", socket=f"s{number}", attributes={"mountOptions": options})
        pod.folder.publish(request)
    result = node.driver.cli("status")
    assert (result.returncode, result.stderr) == (0, "")
