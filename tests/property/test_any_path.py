import os
import posixpath

from hypothesis import given
from hypothesis import strategies as st

from driver.api import csi
from driver.api.csi import publication_of
from driver.api.rpc import csi_pb2
from driver.model import paths
from driver.model.errors import Code, VolumeError
from driver.model.paths import BadPath
from fusermount3_proxy import mountpoint

PODS = "/var/lib/kubelet/pods"
awkward = st.sampled_from(
    [
        *("", ".", "..", "/", "\0", "a", "é", "x" * 255, "x" * 256, "../.."),
        *("mount", "volumes", "kubernetes.io~csi", "dev-fuse", "a.v1", ".v1"),
    ]
)
components = awkward | st.text(max_size=8)
targets = (
    st.text()
    | components.map(lambda name: f"{PODS}/{name}/volumes/kubernetes.io~csi/data/mount")
    | components.map(lambda name: f"{PODS}/uid/volumes/kubernetes.io~csi/{name}/mount")
    | st.lists(components, max_size=7).map(lambda parts: "/".join([PODS, *parts]))
    | st.lists(components, max_size=7).map("/".join)
)


@given(targets, components)
def test_what_is_accepted_stays_below_the_pods_folder(target: str, empty_dir: str) -> None:
    try:
        found = paths.of_pod(target, empty_dir, PODS)
    except BadPath as error:
        assert "\n" not in str(error)
        return
    assert found.root == PODS
    assert found.target_path == target.rstrip("/")
    for relative in (found.target, found.sockets):
        parts = relative.split("/")
        assert not {"", ".", ".."} & set(parts)
        assert "\0" not in relative
        assert posixpath.normpath(f"{PODS}/{relative}") == f"{PODS}/{relative}"
    uid = found.target.split("/")[0]
    # The sockets are in the same pod, whatever the pod's author has written.
    assert found.sockets == f"{uid}/volumes/kubernetes.io~empty-dir/{empty_dir}"
    assert found.target == f"{uid}/volumes/kubernetes.io~csi/{found.volume_name}/mount"
    assert all(len(os.fsencode(part)) <= 255 for part in (uid, found.volume_name, empty_dir))


@given(components)
def test_a_socket_name_that_is_accepted_is_one_name_with_its_suffix(name: str) -> None:
    try:
        paths.check_socket_name(name)
    except BadPath:
        return
    assert name == posixpath.basename(name) not in ("", ".", "..")
    assert "\0" not in name
    assert len(os.fsencode(f"{name}.v1")) <= 255
    # Neither socket has the name of the other one or of the driver's own file.
    assert name != "dev-fuse"
    assert not name.endswith(".v1")


@given(components | st.from_regex(r"[a-zA-Z0-9_.-]{0,70}", fullmatch=True))
def test_a_name_without_kubernetes_that_is_accepted_is_a_plain_one(name: str) -> None:
    try:
        found = paths.standalone(name, "/run/mfcp/volumes")
    except BadPath:
        return
    assert name.isascii()
    assert name.translate(str.maketrans("-_.", "aaa")).isalnum()
    assert name[0].isalnum()
    assert 0 < len(name) < 64
    assert found.target_path == f"/run/mfcp/volumes/{name}/mount"


utf8 = st.text(st.characters(exclude_categories=("Cs",)), max_size=12) | awkward
keys = st.sampled_from([csi.EMPTY_DIR, csi.SOCKET, csi.MOUNT_OPTIONS, "csi.storage.k8s.io/pod.name"]) | utf8


@given(utf8, targets.map(lambda text: text.encode("utf-8", "replace").decode()), st.dictionaries(keys, utf8), st.lists(utf8, max_size=3))
def test_reading_a_request_raises_only_its_own_error(volume_id: str, target: str, context: dict[str, str], mount_flags: list[str]) -> None:
    request = csi_pb2.NodePublishVolumeRequest(volume_id=volume_id, target_path=target, volume_context=context)
    request.volume_capability.mount.mount_flags.extend(mount_flags)
    try:
        publication = publication_of(request, PODS)
    except VolumeError as error:
        assert error.code is Code.INVALID_ARGUMENT
        assert "\n" not in str(error)
        return
    assert publication.paths.target_path.startswith(f"{PODS}/")
    assert ".." not in publication.paths.target_path.split("/")
    assert "/" not in publication.socket_name


@given(st.binary() | st.lists(st.sampled_from([b"/", b".", b"..", b"tmp", b"proc", b"self", b"\xff", b""])).map(b"/".join))
def test_a_mountpoint_of_any_bytes_is_resolved_or_an_oserror_or_valueerror(raw: bytes) -> None:
    try:
        path = mountpoint.resolve(raw)
    except (OSError, ValueError):
        return
    assert path.startswith(b"/")
    assert path == b"/" or not path.endswith(b"/")
    assert not {b".", b".."} & set(path.split(b"/"))
    assert mountpoint.resolve(path) == path
