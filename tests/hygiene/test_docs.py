"""Check the pages: their links and file names exist, Kubernetes accepts their YAML, and programs print what the pages quote."""

import ast
import errno
import os
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from test_files import ROOT, files
from test_manifests import VERSIONS

from driver.model import limits

PAGES = [path for path in files() if path.suffix == ".md"]

each_page = pytest.mark.parametrize("page", [pytest.param(path, id=str(path.relative_to(ROOT))) for path in PAGES])


@each_page
def test_what_it_links_to_exists(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^()\s]+)\)", page.read_text()):
        if re.match(r"https?://", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_the_files_that_it_names_exist(page: Path) -> None:
    folders = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
    named = set(re.findall(rf"(?<![\w/.~-])(?:\./)?((?:{folders})/[a-z][\w./-]*\w)", page.read_text()))
    made = {name for name in named if name.startswith("dist/")}  # packaging/build makes them
    assert [name for name in sorted(named - made) if not (ROOT / name).exists() and not (page.parent / name).exists()] == []


def test_a_page_builds_the_images_of_what_it_applies() -> None:
    builds = 0
    for page in PAGES:
        built = {
            name for line in re.findall(r"^    \./build-for-kind\.sh ([^-\n].*)$", page.read_text(), re.MULTILINE) for name in line.split()
        }
        applied = re.findall(r"^    kubectl apply -f (?:\./)?(examples/\S+)$", page.read_text(), re.MULTILINE)
        needed = {name for file in applied for name in re.findall(r"image: ghcr\.io/\S+/([^/:\s]+):", (ROOT / file).read_text())}
        assert not applied or needed <= built, page
        builds += len(applied)
    assert builds > 10


# ---- YAML

# These keys belong to a pod and not to its containers; the other keys that a page shows beside them are a container's.
OF_THE_POD = ("volumes", "containers", "initContainers", "hostUsers")


BLOCK = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def parts() -> list[Any]:
    return [
        pytest.param(part, id=f"{page.relative_to(ROOT)}-{number}")
        for page in PAGES
        for number, text in enumerate(BLOCK.findall(page.read_text()), 1)
        for part in yaml.safe_load_all(text)
    ]


def as_manifest(part: dict[str, Any]) -> dict[str, Any]:
    """Return a whole manifest, or a pod with the part of one that a page shows."""
    if "kind" in part:
        return part
    spec = {key: value for key, value in part.items() if key in OF_THE_POD}
    container = {key: value for key, value in part.items() if key not in OF_THE_POD}
    if container or "containers" not in spec:
        spec.setdefault("containers", []).append({"name": "shown", "image": "shown", **container})
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "shown"}, "spec": spec}


@pytest.mark.parametrize("part", parts())
def test_kubernetes_takes_the_yaml(part: dict[str, Any]) -> None:
    if part.get("kind") == "Kustomization":
        return  # kustomize's own kind
    has_image_volume = any("image" in volume for volume in part.get("volumes", ()))  # newer than the oldest version
    for version in VERSIONS[1:] if has_image_volume else VERSIONS:
        kubernetes_validate.validate(as_manifest(part), version, strict=True)


def test_a_part_with_a_field_that_is_none_is_refused() -> None:
    for bad in ({"volumes": [{"name": "x", "emptydir": {}}]}, {"volumeMounts": [{"name": "x", "mountPath": "/x", "subpath": "y"}]}):
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(as_manifest(bad), VERSIONS[0], strict=True)


@each_page
def test_yaml_stands_where_it_is_validated(page: Path) -> None:
    keys = "apiVersion|kind|volumes|volumeMounts|containers|initContainers"
    assert re.findall(rf"^\s*(?:{keys}):.*$", BLOCK.sub("", page.read_text()), re.MULTILINE) == []


# ---- what programs print

OURS = ("driver", "fusermount3", "install")


def quoted_texts() -> list[str]:
    """Return what the guide's tables quote of these programs, for people who search for what they see."""
    section = (ROOT / "docs/guide.md").read_text().partition("## When it does not mount\n")[2]
    rows = [row.split(" | ") for row in re.findall(r"^\| (`.*) \|$", section, re.MULTILINE)]
    return [text for row in rows if row[1] in OURS for text in re.findall(r"`([^`]+)`", row[0])]


def program_texts() -> str:
    """Return all texts in the programs, with `...` for what they put in."""
    texts = [(ROOT / "packaging/trampoline.c").read_text()]
    for path in [*(ROOT / "driver").rglob("*.py"), *(ROOT / "fusermount3_proxy").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_the_guide_quotes_what_the_programs_print() -> None:
    assert len(quoted_texts()) > 15
    everything = program_texts()
    wrong = []
    for text in quoted_texts():
        for number in errno.errorcode:
            text = text.replace(os.strerror(number), "...")
        wrong += [part for part in text.split("...") if part.strip() and part not in everything]
    assert wrong == []


def test_the_bound_of_status_is_the_one_in_the_limits() -> None:
    for name, text in {
        "docs/operations.md": f"took longer than {limits.STATUS_WAIT:g} s",
        "docs/decisions.md": f"ends its questions after {limits.STATUS_WAIT:g} s",
        "CHANGELOG.md": f"`status` answers within about {limits.STATUS_WAIT:g} s",
    }.items():
        assert text in (ROOT / name).read_text(), name
