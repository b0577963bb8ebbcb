"""Test NodePublishVolume: what is refused, with which code of the CSI specification, and that nothing is left behind."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from harness import mounts
from harness.kubelet import EMPTY_DIR, SOCKET, refused
from harness.pod import Node, Pod

from driver.api.rpc import csi_pb2

INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT
FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
ALREADY_EXISTS = grpc.StatusCode.ALREADY_EXISTS

Request = csi_pb2.NodePublishVolumeRequest


def nothing_is_there(pod: Pod) -> None:
    assert not os.path.lexists(pod.folder.target())
    assert os.listdir(pod.folder.empty_dir()) == []
    assert mounts.below(pod.folder.folder) == []


def test_what_is_there_after_a_publish(pod: Pod) -> None:
    volume = pod.publish()
    (placeholder,) = volume.mounts
    assert "fuse" not in f"{placeholder.fstype} {placeholder.source}"
    assert {"nosuid", "nodev"} <= placeholder.options
    assert os.listdir(volume.target) == []
    assert stat.S_IMODE(os.stat(volume.target).st_mode) == 0o777
    names = {"dev-fuse": stat.S_IFREG, SOCKET: stat.S_IFSOCK, f"{SOCKET}.v1": stat.S_IFSOCK}
    assert set(os.listdir(volume.socket.parent)) == set(names)
    for name, kind in names.items():
        assert os.lstat(volume.socket.with_name(name)).st_mode == kind | 0o666


@pytest.mark.parametrize("name", ["fdPassingEmptyDirName", "fdPassingSocketName"])
@pytest.mark.parametrize(
    "value",
    [None, "", ".", "..", "../other", "a/b", "/absolute", "nul\0byte", "n" * 256],
    ids=["missing", "empty", "dot", "dot dot", "parent", "slash", "absolute", "NUL", "too long"],
)
def test_a_bad_attribute(pod: Pod, name: str, value: str | None) -> None:
    pod.folder.empty_dir()
    with refused(INVALID_ARGUMENT) as refusal:
        pod.publish(attributes={name: value})
    what = "emptyDir" if name == "fdPassingEmptyDirName" and value else name
    assert what in refusal.text
    nothing_is_there(pod)


def test_the_longest_socket_name(pod: Pod) -> None:
    """A file's name has at most 255 bytes, and the second socket's name is three bytes longer."""
    volume = pod.publish(socket="n" * 252)
    assert volume.socket.is_socket()
    assert volume.socket.with_name("n" * 252 + ".v1").is_socket()
    volume.unpublish()
    with refused(INVALID_ARGUMENT):
        pod.publish(socket="n" * 253)


@pytest.mark.parametrize(
    "target",
    [
        "",
        "/tmp/elsewhere",
        "{pods}",
        "{pods}/{uid}/volumes/kubernetes.io~csi/v",
        "{pods}/{uid}/volumes/kubernetes.io~csi/v/other",
        "{pods}/{uid}/volumes/kubernetes.io~csi/../mount",
        "{pods}/../{uid}/volumes/kubernetes.io~csi/v/mount",
        "{pods}/{uid}/volumes/kubernetes.io~csi/v/mount/../../../../..",
        "{pods}/{uid}/volumes/kubernetes.io~empty-dir/v/mount",
        "{pods}x/{uid}/volumes/kubernetes.io~csi/v/mount",
        "relative/{uid}/volumes/kubernetes.io~csi/v/mount",
        "{pods}/{uid}/volumes/kubernetes.io~csi/nul\0byte/mount",
    ],
)
def test_a_target_that_is_not_one_of_kubelets(node: Node, pod: Pod, target: str) -> None:
    request = pod.folder.request()
    pod.folder.empty_dir()
    request.target_path = target.format(pods=node.kubelet.pods_dir, uid=pod.folder.uid)
    with refused(INVALID_ARGUMENT) as refusal:
        pod.folder.publish(request)
    assert "target" in refusal.text
    assert not os.path.exists("/tmp/elsewhere")
    nothing_is_there(pod)


def clear(field: str) -> Callable[[Request], None]:
    return lambda request: request.ClearField(field)  # type: ignore[arg-type]


def as_block(request: Request) -> None:
    request.volume_capability.block.SetInParent()


@pytest.mark.parametrize(
    ("spoil", "word"),
    [(clear("volume_id"), "volume_id"), (clear("volume_capability"), "volume_capability"), (as_block, "block")],
    ids=["no volume id", "no capability", "block volume"],
)
def test_a_request_that_the_specification_forbids(pod: Pod, spoil: Callable[[Request], None], word: str) -> None:
    request = pod.folder.request()
    pod.folder.empty_dir()
    spoil(request)
    with refused(INVALID_ARGUMENT) as refusal:
        pod.folder.publish(request)
    assert word in refusal.text
    nothing_is_there(pod)


def test_an_empty_dir_that_is_not_there_yet(pod: Pod) -> None:
    """kubelet tries again, and then the emptyDir is there."""
    with refused(FAILED_PRECONDITION) as refusal:
        pod.folder.publish(pod.folder.request())
    assert EMPTY_DIR in refusal.text
    assert not os.path.lexists(pod.folder.target())
    assert pod.publish().socket.is_socket()


def test_an_empty_dir_that_is_a_link_to_elsewhere(node: Node, pod: Pod) -> None:
    victim = node.pod().folder.empty_dir()
    link = pod.folder.folder / "volumes" / "kubernetes.io~empty-dir" / EMPTY_DIR
    link.symlink_to(victim)
    with refused(FAILED_PRECONDITION):
        pod.folder.publish(pod.folder.request())
    assert os.listdir(victim) == []
    assert not os.path.lexists(pod.folder.target())
    link.unlink()


def of_file(path: Path) -> None:
    path.write_text("the pod's\n")


def of_folder(path: Path) -> None:
    path.mkdir()


def of_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


@pytest.mark.parametrize("make", [of_file, of_folder, of_link])
@pytest.mark.parametrize("suffix", ["", ".v1"])
def test_a_name_that_the_pod_has_taken(pod: Pod, make: Callable[[Path], None], suffix: str) -> None:
    taken = pod.folder.empty_dir() / f"{SOCKET}{suffix}"
    make(taken)
    before = os.lstat(taken)
    with refused(FAILED_PRECONDITION) as refusal:
        pod.publish()
    assert f"{SOCKET}{suffix}" in refusal.text
    assert os.lstat(taken) == before
    assert os.listdir(taken.parent) == [taken.name]
    assert not os.path.lexists(pod.folder.target())


def test_a_link_in_place_of_the_target(node: Node, pod: Pod) -> None:
    """Only the node's root can make such a link. Nothing is mounted at its far end, where nobody would unmount it."""
    elsewhere = node.folder / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    pod.folder.target().symlink_to(elsewhere)
    with refused(FAILED_PRECONDITION) as refusal:
        pod.publish()
    assert refusal.text.count(str(pod.folder.target())) == 1
    assert mounts.below(elsewhere) == []
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o700
    pod.folder.target().unlink()
    elsewhere.rmdir()


def test_a_target_that_cannot_be_made_is_named_once(pod: Pod) -> None:
    pod.folder.empty_dir()
    request, target = pod.folder.request(), pod.folder.target()
    target.parent.rmdir()
    target.parent.write_text("somebody's\n")
    with refused(grpc.StatusCode.INTERNAL) as refusal:
        pod.folder.publish(request)
    assert refusal.text == f"cannot make the target {target}: Not a directory"
    target.parent.unlink()


def test_a_repeated_publish_changes_nothing(pod: Pod) -> None:
    volume = pod.publish()
    sockets = os.stat(volume.socket), os.stat(volume.socket.with_name(f"{SOCKET}.v1"))
    before = volume.mounts
    volume.republish()
    assert (os.stat(volume.socket), os.stat(volume.socket.with_name(f"{SOCKET}.v1"))) == sockets
    assert volume.mounts == before


def test_one_volume_id_at_many_targets(node: Node) -> None:
    """PersistentVolumes do this."""
    pods = [node.pod() for _ in range(2)]
    volumes = []
    for pod in pods:
        pod.folder.empty_dir()
        request = pod.folder.request()
        request.volume_id = "one-id"
        volumes.append(pod.folder.publish(request))
    volumes[0].unpublish()
    volumes[1].mounted_by(pods[1].fuse(volumes[1]))


def test_a_mount_group_and_a_file_system_type_change_nothing(pod: Pod) -> None:
    pod.folder.empty_dir()
    request = pod.folder.request()
    request.volume_capability.mount.volume_mount_group = "4321"
    request.volume_capability.mount.fs_type = "ext4"
    volume = pod.folder.publish(request)
    (placeholder,) = volume.mounts
    assert placeholder.fstype == "tmpfs"
    assert os.stat(volume.target).st_gid == 0
    volume.republish()


def other_id(request: Request) -> None:
    request.volume_id = "csi-other"


def other_mode(request: Request) -> None:
    request.readonly = True


def other_flags(request: Request) -> None:
    request.volume_capability.mount.mount_flags.append("noexec")


def other_options(request: Request) -> None:
    request.volume_context["mountOptions"] = "noexec"


def other_socket(request: Request) -> None:
    request.volume_context["fdPassingSocketName"] = "other.sock"


@pytest.mark.parametrize("change", [other_id, other_mode, other_flags, other_options, other_socket])
def test_another_publish_at_the_same_target_is_refused(pod: Pod, change: Callable[[Request], None]) -> None:
    volume = pod.publish()
    before = volume.mounts
    request = pod.folder.request()
    change(request)
    with refused(ALREADY_EXISTS) as refusal:
        pod.folder.publish(request)
    assert str(volume.target) in refusal.text
    assert volume.mounts == before
    assert sorted(os.listdir(volume.socket.parent)) == ["dev-fuse", SOCKET, f"{SOCKET}.v1"]
    volume.republish()


def test_sockets_that_the_pod_removed_are_made_again_at_the_next_republish(pod: Pod) -> None:
    volume = pod.publish()
    volume.socket.unlink()
    volume.republish()
    assert volume.socket.is_socket()
    fuse = pod.fuse(volume)
    volume.mounted_by(fuse)


def test_an_empty_dir_in_memory_that_is_mounted_after_the_publish(pod: Pod) -> None:
    volume = pod.publish()
    empty_dir = volume.socket.parent
    mounts.mount("-t", "tmpfs", "-o", "mode=0777", "memory", empty_dir)
    try:
        volume.republish()
        assert volume.socket.is_socket()
        volume.mounted_by(pod.fuse(volume))
        pod.stop_containers()
        volume.unpublish()
    finally:
        # A plain unmount succeeds: the driver must hold nothing of it.
        mounts.unmount(empty_dir)
