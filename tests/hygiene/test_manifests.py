"""Check that Kubernetes accepts every manifest, and that each names only what this project makes."""

import os
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from test_files import ROOT, files

from driver import cli

# The oldest version that has sidecars (initContainers with restartPolicy) on by default, and the newest that the package knows.
VERSIONS = ("1.29", kubernetes_validate.latest_version())

FOLDERS = ("deploy", "examples", "tests/e2e")
OTHERS = ("kustomization.yaml", "compose.yaml")  # kustomize and Compose read these


def manifests() -> list[Any]:
    found = []
    for path in files():
        relative = str(path.relative_to(ROOT))
        if path.suffix == ".yaml" and relative.startswith(FOLDERS) and path.name not in OTHERS:
            documents = [document for document in yaml.safe_load_all(path.read_text()) if document]
            found += [pytest.param(d, id=f"{relative}:{d.get('kind')}-{d.get('metadata', {}).get('name')}") for d in documents]
    return found


each_manifest = pytest.mark.parametrize("manifest", manifests())


def test_there_are_manifests() -> None:
    names = {parameter.id for parameter in manifests()}
    assert "deploy/csi-driver-daemonset.yaml:DaemonSet-meta-fuse-csi-plugin" in names
    assert "examples/proxy/sshfs/deploy.yaml:Pod-mfcp-example-proxy-sshfs" in names


@each_manifest
@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_it(manifest: dict[str, Any], version: str) -> None:
    if "'image': {'reference':" in repr(manifest):
        version = VERSIONS[-1]  # 1.29 has no image volumes
    # Strict: a misspelled field is one that Kubernetes does not know.
    kubernetes_validate.validate(manifest, version, strict=True)


def test_a_manifest_with_a_field_that_is_none_is_refused() -> None:
    bad = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": [{"name": "x", "imagge": "y"}]}}
    for version in VERSIONS:
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(bad, version, strict=True)


@each_manifest
def test_our_images_are_ones_that_build_for_kind_makes(manifest: dict[str, Any]) -> None:
    prefix = "ghcr.io/pfnet-research/meta-fuse-csi-plugin/"
    made = {"meta-fuse-csi-plugin", "fusermount3-proxy"}
    made |= {f"mfcp-example-{'-'.join(path.parts[-3:-1])}" for path in (ROOT / "examples").glob("*/*/Dockerfile")}
    named = re.findall(rf"'{prefix}([^':@]+)", repr(manifest))
    assert set(named) <= made


@each_manifest
def test_a_pods_csi_volume_names_an_empty_dir_of_the_pod(manifest: dict[str, Any]) -> None:
    for volumes in _volumes(manifest):
        empty_dirs = {volume["name"] for volume in volumes if "emptyDir" in volume}
        for volume in volumes:
            if "csi" in volume:
                assert volume["csi"]["volumeAttributes"]["fdPassingEmptyDirName"] in empty_dirs


def _volumes(node: Any) -> list[list[dict[str, Any]]]:
    if isinstance(node, list):
        return [found for item in node for found in _volumes(item)]
    if not isinstance(node, dict):
        return []
    own = [node["volumes"]] if isinstance(node.get("volumes"), list) else []
    return own + [found for value in node.values() for found in _volumes(value)]


def test_both_daemon_sets_are_the_same_but_for_the_registration() -> None:
    """One is a variant of the other: a change of one needs the same change of the other."""
    ours, with_registrar = (
        yaml.safe_load((ROOT / f"deploy/{name}.yaml").read_text()) for name in ("csi-driver-daemonset", "csi-driver-daemonset-registrar")
    )
    spec = with_registrar["spec"]["template"]["spec"]
    assert [container["name"] for container in spec["containers"]] == ["meta-fuse-csi-plugin", "csi-driver-registrar"]
    del spec["containers"][1]
    container = ours["spec"]["template"]["spec"]["containers"][0]
    container["args"] = [argument for argument in container["args"] if not argument.startswith("--kubelet-registration-path")]
    container["volumeMounts"] = [mount for mount in container["volumeMounts"] if mount["name"] != "registration"]
    # A driver that registers itself is told where the node has its folder. The other one has it at the same path.
    node_folder = next(volume["hostPath"]["path"] for volume in spec["volumes"] if volume["name"] == "csi")
    spec["containers"][0]["args"].remove(f"--fuse-dir={node_folder}/fuse")
    spec["containers"][0]["volumeMounts"].remove({"name": "csi", "mountPath": node_folder})
    assert ours == with_registrar


def test_the_driver_is_where_kubelet_hands_out_devices() -> None:
    container = yaml.safe_load((ROOT / "deploy/csi-driver-daemonset.yaml").read_text())["spec"]["template"]["spec"]["containers"][0]
    paths = {mount["mountPath"] for mount in container["volumeMounts"]}
    defaults = {option.opts[0]: option.default for option in cli.main.params}
    assert {defaults["--device-plugins-dir"], os.path.dirname(defaults["--pod-resources-socket"])} <= paths


def test_no_probe_of_the_driver_asks_the_programs_of_pods() -> None:
    """`status` asks them: pods with hung programs would make the node NotReady, or have the driver restarted."""
    for name in ("csi-driver-daemonset", "csi-driver-daemonset-registrar"):
        container = yaml.safe_load((ROOT / f"deploy/{name}.yaml").read_text())["spec"]["template"]["spec"]["containers"][0]
        commands = {kind: container[f"{kind}Probe"]["exec"]["command"][1:] for kind in ("startup", "readiness", "liveness")}
        assert commands == {"startup": ["volume", "list"], "readiness": ["ready"], "liveness": ["volume", "list"]}


def test_both_csi_drivers_are_the_same_but_for_persistent_volumes() -> None:
    *_, ours = yaml.safe_load_all((ROOT / "deploy/csi-driver.yaml").read_text())
    persistent = yaml.safe_load((ROOT / "deploy/csi-driver-persistent.yaml").read_text())
    persistent["spec"]["volumeLifecycleModes"].remove("Persistent")
    assert ours == persistent


def test_examples_are_named_as_their_folders() -> None:
    paths = list((ROOT / "examples").glob("*/*/deploy.yaml"))
    assert len(paths) > 5
    for path in paths:
        names = [manifest["metadata"]["name"] for manifest in yaml.safe_load_all(Path(path).read_text()) if manifest["kind"] == "Pod"]
        assert f"mfcp-example-{'-'.join(path.parts[-3:-1])}" in names
