"""Check what kustomize makes of deploy/, and of the overlays that users put beside it."""

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from test_files import ROOT
from test_manifests import VERSIONS

KUBECTL = Path(sysconfig.get_path("scripts")) / "kubectl"

Objects = dict[str, dict[str, Any]]


def render(folder: Path) -> Objects:
    """Return the objects by kind; Kubernetes must accept each."""
    done = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    objects = list(yaml.safe_load_all(done.stdout))
    for made in objects:
        for version in VERSIONS:
            kubernetes_validate.validate(made, version, strict=True)
    return {made["kind"]: made for made in objects}


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """Make a folder with a copy of deploy/, as a user has it."""
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    return tmp_path


def kustomization(folder: Path, **fields: Any) -> Path:
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(fields))
    return folder


def patch(**template: Any) -> dict[str, str]:
    """Return a patch of the DaemonSet's pods."""
    daemon_set = {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "meta-fuse-csi-plugin", "namespace": "mfcp-system"}}
    return {"patch": yaml.safe_dump({**daemon_set, "spec": {"template": template}})}


def driver(objects: Objects) -> dict[str, Any]:
    """Return the driver's container."""
    spec = objects["DaemonSet"]["spec"]["template"]["spec"]
    (found,) = [container for container in spec["containers"] if container["name"] == "meta-fuse-csi-plugin"]
    return dict(found)


def plain() -> Objects:
    return render(ROOT / "deploy")


def test_all_is_what_the_two_files_have() -> None:
    files = [yaml.safe_load_all((ROOT / "deploy" / name).read_text()) for name in ("csi-driver.yaml", "csi-driver-daemonset.yaml")]
    assert plain() == {document["kind"]: document for documents in files for document in documents}


def test_metrics_as_the_comment_in_the_kustomization_has_them(beside: Path) -> None:
    path = beside / "deploy/kustomization.yaml"
    path.write_text(re.sub(r"^# (?=components:|  - )", "", path.read_text(), flags=re.MULTILINE))
    objects = render(path.parent)
    assert driver(objects)["args"] == [*driver(plain())["args"], "--metrics-address=:9909"]
    assert driver(objects)["ports"] == [{"name": "metrics", "containerPort": 9909}]
    assert set(objects["DaemonSet"]["spec"]["template"]["metadata"]["annotations"]) == {"prometheus.io/scrape", "prometheus.io/port"}


def test_metrics_leave_what_an_overlay_has_of_its_own(beside: Path) -> None:
    template = patch(
        metadata={"annotations": {"example.com/team": "storage"}},
        spec={
            "containers": [
                {"name": "meta-fuse-csi-plugin", "ports": [{"name": "debug", "containerPort": 6060}]},
                {"name": "other", "image": "example.com/other:1"},
            ]
        },
    )
    kustomization(beside / "own", resources=["../deploy"], namespace="elsewhere", patches=[template])
    objects = render(kustomization(beside / "measured", resources=["../own"], components=["../deploy/metrics"]))
    assert sorted(port["containerPort"] for port in driver(objects)["ports"]) == [6060, 9909]
    assert driver(objects)["args"] == [*driver(plain())["args"], "--metrics-address=:9909"]
    annotations = objects["DaemonSet"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations == {"example.com/team": "storage", "prometheus.io/scrape": "true", "prometheus.io/port": "9909"}


def test_the_kustomization_that_operations_show(beside: Path) -> None:
    page = (ROOT / "docs/operations.md").read_text()
    (shown,) = [block for block in re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL) if "kind: Kustomization" in block]
    objects = render(kustomization(beside / "mine", **yaml.safe_load(shown)))
    assert driver(objects)["image"] == "registry.example.com/meta-fuse-csi-plugin:1.0.0"
    assert {**driver(objects), "image": driver(plain())["image"]} == driver(plain())
