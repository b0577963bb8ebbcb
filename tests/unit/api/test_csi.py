import grpc
import pytest

from driver.api import csi
from driver.api.csi import publication_of
from driver.api.rpc import csi_pb2
from driver.model.errors import Code, VolumeError

PODS = "/var/lib/kubelet/pods"
TARGET = f"{PODS}/uid-1/volumes/kubernetes.io~csi/data/mount"


def request(
    volume_id: str = "csi-1", target_path: str = TARGET, readonly: bool = False, capability: str = "mount", **context: str
) -> csi_pb2.NodePublishVolumeRequest:
    """Return a request as kubelet sends it for an inline volume of a pod."""
    attributes = {
        "fdPassingEmptyDirName": "fuse-fd-passing",
        "fdPassingSocketName": "fuse.sock",
        "csi.storage.k8s.io/pod.name": "pod-1",
        "csi.storage.k8s.io/pod.namespace": "default",
        "csi.storage.k8s.io/ephemeral": "true",
    }
    made = csi_pb2.NodePublishVolumeRequest(
        volume_id=volume_id,
        target_path=target_path,
        readonly=readonly,
        volume_context={name: value for name, value in (attributes | context).items() if value != "left out"},
    )
    if capability == "mount":
        made.volume_capability.mount.mount_flags.extend(["noexec", "sync"])
        made.volume_capability.mount.volume_mount_group = "1000"
    elif capability == "block":
        made.volume_capability.block.SetInParent()
    elif capability == "neither":
        made.volume_capability.access_mode.mode = csi_pb2.VolumeCapability.AccessMode.SINGLE_NODE_WRITER
    return made


def refusal(made: csi_pb2.NodePublishVolumeRequest) -> str:
    with pytest.raises(VolumeError) as caught:
        publication_of(made, PODS)
    assert caught.value.code is Code.INVALID_ARGUMENT
    text = str(caught.value)
    assert text.isprintable()
    return text


def test_a_publication_is_what_the_request_says() -> None:
    publication = publication_of(request(readonly=True, mountOptions="ro,o=x"), PODS)
    assert publication.volume_id == "csi-1"
    assert publication.paths.target_path == TARGET
    assert publication.paths.sockets == "uid-1/volumes/kubernetes.io~empty-dir/fuse-fd-passing"
    assert publication.socket_name == "fuse.sock"
    assert publication.read_only
    assert publication.mount_flags == ("noexec", "sync")
    assert publication.mount_options == "ro,o=x"
    assert publication.pod == "default/pod-1"


def test_the_same_request_is_the_same_publication() -> None:
    assert publication_of(request(), PODS) == publication_of(request(), PODS)
    # kubelet may write the target path with a slash at its end.
    assert publication_of(request(target_path=TARGET + "/"), PODS) == publication_of(request(), PODS)
    # kubelet sends the pod's name only if the CSIDriver object has podInfoOnMount, which may change while pods run.
    without_pod = request(**{"csi.storage.k8s.io/pod.name": "left out", "csi.storage.k8s.io/pod.namespace": "left out"})
    assert publication_of(without_pod, PODS) == publication_of(request(), PODS)
    for other in (request(volume_id="csi-2"), request(readonly=True), request(mountOptions="ro"), request(fdPassingSocketName="b")):
        assert publication_of(other, PODS) != publication_of(request(), PODS)


@pytest.mark.parametrize(
    "names", [["csi.storage.k8s.io/ephemeral"], ["csi.storage.k8s.io/pod.name", "csi.storage.k8s.io/pod.namespace"], ["mountOptions"]]
)
def test_what_only_kubelet_adds_is_not_required(names: list[str]) -> None:
    publication = publication_of(request(**dict.fromkeys(names, "left out")), PODS)
    assert publication.volume_id == "csi-1"


@pytest.mark.parametrize(
    ("mode", "read_only"),
    [
        ("UNKNOWN", False),
        ("SINGLE_NODE_WRITER", False),
        ("SINGLE_NODE_READER_ONLY", True),
        ("MULTI_NODE_READER_ONLY", True),
        ("MULTI_NODE_SINGLE_WRITER", False),
        ("MULTI_NODE_MULTI_WRITER", False),
    ],
)
def test_an_access_mode_of_readers_alone_is_read_only(mode: str, read_only: bool) -> None:
    made = request()
    made.volume_capability.access_mode.mode = csi_pb2.VolumeCapability.AccessMode.Mode.Value(mode)
    assert publication_of(made, PODS).read_only is read_only
    made.readonly = True
    assert publication_of(made, PODS).read_only


def test_without_a_pod_there_is_none() -> None:
    assert publication_of(request(**{"csi.storage.k8s.io/pod.name": "left out"}), PODS).pod == ""


@pytest.mark.parametrize("value", ["left out", "", ".", "..", "a/b", "/etc", "../x", "a\0b", "x" * 256, "a\n/b"])
@pytest.mark.parametrize("name", ["fdPassingEmptyDirName", "fdPassingSocketName"])
def test_an_attribute_that_is_no_file_name_is_refused(name: str, value: str) -> None:
    text = refusal(request(**{name: value}))
    if value in ("left out", ""):
        assert name in text
        assert "volumeAttributes" in text


@pytest.mark.parametrize("value", ["..", "a/b", "x" * 256])
@pytest.mark.parametrize("name", ["fdPassingEmptyDirName", "fdPassingSocketName"])
def test_the_attribute_that_is_refused_is_named(name: str, value: str) -> None:
    assert name in refusal(request(**{name: value}))


@pytest.mark.parametrize("target", ["", "/etc", TARGET + "/..", TARGET.replace("uid-1", ".."), f"/tmp{TARGET}", "a\nb"])
def test_a_target_that_is_not_kubelets_is_refused(target: str) -> None:
    assert "target" in refusal(request(target_path=target))


def test_a_volume_id_is_required() -> None:
    assert refusal(request(volume_id="")) == "volume_id is missing"


@pytest.mark.parametrize(("capability", "word"), [("missing", "missing"), ("block", "block"), ("neither", "only mount")])
def test_only_mount_volumes_are_made(capability: str, word: str) -> None:
    assert word in refusal(request(capability=capability))


def test_the_socket_name_may_be_as_long_as_leaves_room_for_the_second_one() -> None:
    assert publication_of(request(fdPassingSocketName="x" * 252), PODS).socket_name == "x" * 252
    refusal(request(fdPassingSocketName="x" * 253))


def test_every_code_is_one_of_grpc() -> None:
    assert all(code.name in grpc.StatusCode.__members__ for code in Code)


def test_the_drivers_name_is_the_one_of_existing_manifests() -> None:
    assert csi.NAME == "meta-fuse-csi-plugin.csi.storage.pfn.io"
