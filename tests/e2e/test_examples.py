"""Each example's deploy.yaml, as its users apply it, and what the Go plugin's own check looks at."""

from pathlib import Path

import pytest
from cluster import ROOT, Cluster, Pod, existing, load

CONTENT = {"sshfs": "Hello from the SSH server.\n", "minio": "Hello from MinIO.\n"}


def examples() -> list[Path]:
    """Every example with a pod."""
    return sorted(path.parent for kind in ("proxy", "starter") for path in (ROOT / "examples" / kind).glob("*/deploy.yaml"))


@pytest.mark.parametrize("folder", [pytest.param(path, id=str(path.relative_to(ROOT / "examples"))) for path in examples()])
def test_an_example_shows_its_files_and_goes(cluster: Cluster, folder: Path) -> None:
    (manifest,) = [manifest for manifest in load(folder / "deploy.yaml") if manifest["kind"] == "Pod"]
    pod = Pod(cluster, manifest)
    expected = CONTENT["sshfs" if folder.name == "sshfs" else "minio"]
    with existing(pod):
        pod.wait_ready()
        for path in ("/data/subdir/test.txt", "/data-subpath/test.txt"):
            assert pod.read("busybox", path) == expected
        refused = pod.execute("busybox", "echo x >/data/new")
        assert refused.code != 0
        assert "Read-only file system" in refused.err
        assert all(pod.restarts(c["name"]) == 0 for c in [*manifest["spec"]["initContainers"], *manifest["spec"]["containers"]])
        pod.delete()
