"""Check that docker, podman and buildah can build every Dockerfile, and that hadolint finds nothing."""

import re
import subprocess
import sysconfig
from pathlib import Path

import pytest
from test_files import ROOT, files

HADOLINT = Path(sysconfig.get_path("scripts")) / "hadolint"

HERE_DOCUMENT = re.compile(r"<<-?\s*['\"]?\w")
BUILDKIT = re.compile(
    r"^\s*(#\s*syntax=|(RUN|COPY|ADD)\s.*--(mount|network|security|link|chmod|parents|exclude|checksum)\b)", re.IGNORECASE
)


def dockerfiles() -> list[Path]:
    return [path for path in files() if path.name.startswith("Dockerfile")]


each_dockerfile = pytest.mark.parametrize("path", [pytest.param(path, id=str(path.relative_to(ROOT))) for path in dockerfiles()])


def test_there_are_dockerfiles() -> None:
    assert ROOT / "packaging/Dockerfile" in dockerfiles()
    assert ROOT / "examples/proxy/sshfs/Dockerfile" in dockerfiles()


@each_dockerfile
def test_hadolint_finds_nothing(path: Path) -> None:
    done = subprocess.run([HADOLINT, "--no-color", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@each_dockerfile
def test_every_engine_builds_it(path: Path) -> None:
    """Nothing is used that only BuildKit, or only a new buildah, knows."""
    lines = path.read_text().splitlines()
    assert [line for line in lines if HERE_DOCUMENT.search(line) or BUILDKIT.search(line)] == []


@each_dockerfile
def test_names_of_images_are_whole(path: Path) -> None:
    """Podman and buildah ask, or fail, where an image's name has no registry."""
    text = path.read_text()
    stages = {"scratch", *re.findall(r"^FROM\s+\S+\s+AS\s+(\S+)", text, re.MULTILINE | re.IGNORECASE)}
    names = re.findall(r"^FROM\s+(\S+)", text, re.MULTILINE) + re.findall(r"--from=(\S+)", text)
    defaults = dict(re.findall(r"^ARG\s+(\w+)=(\S+)", text, re.MULTILINE))
    assert names
    for name in names:
        whole = re.sub(r"\$\{(\w+)\}", lambda found: defaults[found[1]], name)
        assert whole in stages or re.fullmatch(r"[\w-]+(\.[\w-]+)+/[\w./-]+:[\w.-]+", whole), name
