import pytest

from driver.model import paths
from driver.model.paths import BadPath

PODS = "/var/lib/kubelet/pods"
UID = "0b1e7c2a-6d3f-4a43-9d6e-2f1f4c1f9a10"
TARGET = f"{PODS}/{UID}/volumes/kubernetes.io~csi/data/mount"


@pytest.mark.parametrize("target", [TARGET, TARGET + "/", TARGET + "//"])
def test_a_pods_places_follow_from_the_target_path(target: str) -> None:
    found = paths.of_pod(target, "fuse-fd-passing", PODS)
    assert found.root == PODS
    assert found.target == f"{UID}/volumes/kubernetes.io~csi/data/mount"
    assert found.target_path == TARGET
    assert found.sockets == f"{UID}/volumes/kubernetes.io~empty-dir/fuse-fd-passing"
    assert found.volume_name == "data"


def test_another_pods_folder() -> None:
    assert paths.of_pod("/srv/k/u/volumes/kubernetes.io~csi/v/mount", "e", "/srv/k").root == "/srv/k"


@pytest.mark.parametrize(
    "target",
    [
        "",
        "/",
        "data",
        PODS,
        PODS + "/",
        f"{PODS}/{UID}",
        TARGET.removesuffix("/mount"),
        TARGET + "/x",
        TARGET.replace("/mount", "/moun"),
        TARGET.replace("kubernetes.io~csi", "kubernetes.io~empty-dir"),
        TARGET.replace("/volumes/", "/volume-subpaths/"),
        TARGET.replace(UID, ".."),
        TARGET.replace(UID, "."),
        TARGET.replace(UID, ""),
        TARGET.replace("/data/", "/../"),
        TARGET.replace("/data/", "/./"),
        TARGET.replace("/data/", "//"),
        TARGET.replace("/data/", "/a/b/"),
        TARGET.replace("/data/", "/a\0b/"),
        TARGET.replace("/data/", f"/{'d' * 256}/"),
        TARGET.replace("/pods/", "/podsx/"),
        TARGET.replace("/pods/", "/pods/../pods/"),
        "/tmp" + TARGET,
        TARGET[1:],
        TARGET + "\0",
    ],
)
def test_a_target_that_is_not_one_of_kubelets_is_refused_with_what_was_expected(target: str) -> None:
    with pytest.raises(BadPath) as caught:
        paths.of_pod(target, "fuse-fd-passing", PODS)
    assert "\n" not in str(caught.value)
    assert "\0" not in str(caught.value)


def test_a_nul_in_a_target_path_is_what_is_reported() -> None:
    with pytest.raises(BadPath, match="holds a NUL"):
        paths.of_pod(TARGET + "\0", "fuse-fd-passing", PODS)


NO_COMPONENTS = ["", ".", "..", "/", "a/b", "../a", "a/..", "/etc", "a\0", "\0", "x" * 256, "é" * 128]


@pytest.mark.parametrize("name", NO_COMPONENTS)
def test_an_empty_dir_that_is_not_one_name_is_refused(name: str) -> None:
    with pytest.raises(BadPath):
        paths.of_pod(TARGET, name, PODS)


@pytest.mark.parametrize("name", ["...", ".a", "a..b", " ", "a\nb", "x" * 255, "é" * 127, "-", "\\"])
def test_any_other_name_is_taken(name: str) -> None:
    assert paths.of_pod(TARGET, name, PODS).sockets.endswith("/" + name)


@pytest.mark.parametrize("name", [*NO_COMPONENTS, "x" * 253])
def test_a_socket_name_is_one_name_with_room_for_the_suffix(name: str) -> None:
    with pytest.raises(BadPath):
        paths.check_socket_name(name)


@pytest.mark.parametrize("name", ["fuse.sock", "a", "v1", "fuse.v1.sock", "dev-fuse2", "x" * 252, "é" * 126, "a b"])
def test_a_socket_may_have_any_other_name(name: str) -> None:
    paths.check_socket_name(name)


@pytest.mark.parametrize("name", ["dev-fuse", "fuse.sock.v1", ".v1", ".mfcp-bind", ".hidden"])
def test_names_that_the_driver_keeps_for_itself_are_refused(name: str) -> None:
    # The folder holds two sockets, dev-fuse, and the name under which sockets are bound before they are renamed.
    with pytest.raises(BadPath, match="choose another"):
        paths.check_socket_name(name)


@pytest.mark.parametrize("name", ["a", "0", "data", "a-b", "a" * 63, "A", "My_Photos.2", "a.b", "a..b"])
def test_a_volume_without_kubernetes(name: str) -> None:
    found = paths.standalone(name, "/run/mfcp/volumes")
    assert found.target_path == f"/run/mfcp/volumes/{name}/mount"
    assert found.sockets == f"{name}/sock"
    assert found.volume_name == name


@pytest.mark.parametrize("name", ["", ".", "..", "-a", "_a", ".a", "a/b", "a\n", "\na", "a" * 64, "é", "٣", " a"])
def test_a_name_without_kubernetes_that_is_refused(name: str) -> None:
    with pytest.raises(BadPath) as caught:
        paths.standalone(name, "/run/mfcp/volumes")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["any", "a", "Photos-2.x_y", "a" * 63])
def test_names_of_fuse_devices(name: str) -> None:
    paths.check_device_name(name)


@pytest.mark.parametrize("name", ["", "7a", "a-", "a.", "-a", "a b", "a/b", "a" * 64, "ä", "a\n", "..", "a=b"])
def test_a_name_that_no_fuse_device_may_have_is_named(name: str) -> None:
    with pytest.raises(paths.BadPath) as caught:
        paths.check_device_name(name)
    assert repr(name) in str(caught.value)
