"""Which of kubelet's subPath binds show a file system that is gone. The lines are those of a real node, shortened."""

from driver.model.paths import of_pod
from driver.mounts import subpaths
from fusermount3_proxy.wire import mountinfo

PODS = "/var/lib/kubelet/pods"
UID = "0d9ce2f8-9f2c-4d4c-a4ce-2a0d5e0b7a11"
BELOW = f"{PODS}/{UID}/volume-subpaths/data".encode()


def line(number: int, parent: int, device: str, root: str, path: str, kind: str = "fuse.bindfs") -> str:
    return f"{number} {parent} {device} {root} {path} rw,nosuid,nodev shared:9 - {kind} source rw\n"


def found(text: str, device: str) -> list[tuple[bytes, bytes, int]]:
    stale = subpaths.stale(mountinfo.parse(text.encode()), BELOW, device)
    return [(each.path, each.inner, each.layers) for each in stale]


def below(name: str) -> str:
    return f"{BELOW.decode()}/{name}"


def test_the_folder_is_kubelets() -> None:
    paths = of_pod(f"{PODS}/{UID}/volumes/kubernetes.io~csi/data/mount", "sockets", PODS)
    assert subpaths.folder(paths).encode() == BELOW


def test_a_bind_of_a_former_file_system_is_stale_and_one_of_the_present_is_not() -> None:
    text = line(40, 30, "0:50", "/sub", below("app/0")) + line(41, 30, "0:51", "/sub", below("other/0"))
    assert found(text, "0:51") == [(below("app/0").encode(), b"sub", 0)]
    assert found(text, "0:50") == [(below("other/0").encode(), b"sub", 0)]


def test_the_topmost_layer_counts_and_the_lowest_says_what_it_shows() -> None:
    text = line(40, 30, "0:50", "/a/b", below("app/0")) + line(41, 40, "0:51", "/a/b", below("app/0"))
    assert found(text, "0:51") == []
    assert found(text, "0:52") == [(below("app/0").encode(), b"a/b", 1)]


def test_without_a_file_system_all_are_stale() -> None:
    text = line(40, 30, "0:50", "/sub", below("app/0")) + line(41, 40, "0:51", "/sub", below("app/0"))
    assert found(text, "") == [(below("app/0").encode(), b"sub", 1)]


def test_names_are_bytes_with_the_kernels_escapes() -> None:
    assert found(line(40, 30, "0:50", "/with\\040space", below("app/0")), "0:51") == [(below("app/0").encode(), b"with space", 0)]


def test_other_binds_are_left_alone() -> None:
    others = [
        line(40, 30, "0:50", "/sub", f"{PODS}/{UID}/volume-subpaths/database/app/0"),  # of another volume
        line(41, 30, "0:50", "/sub", f"{BELOW.decode()}2/app/0"),
        line(42, 30, "0:50", "/sub", f"{PODS}/{UID}/volumes/kubernetes.io~csi/data/mount"),
        line(43, 30, "8:1", "/sub", below("app/0"), "ext4"),  # not FUSE
        line(44, 30, "0:50", "/sub//deleted", below("gone/0")),
        line(45, 30, "0:50", "/", below("root/0")),  # gets what the target gets
    ]
    assert found("".join(others), "0:51") == []
