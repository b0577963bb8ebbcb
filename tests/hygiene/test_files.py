"""Check what must be true for every file of the repository."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SHELL = re.compile(rb"#!\s*(/usr/bin/env\s+|/bin/|/usr/bin/)(sh|dash|bash)\b")

# The sites of package registries: each machine has its own configuration for them, with mirrors and caches.
REGISTRY = re.compile(
    r"pypi[.]org|pythonhosted[.]org|proxy[.]golang[.]org|sum[.]golang[.]org|registry[.]npmjs[.]org|crates[.]io"
    r"|(deb|security|snapshot|ftp)[.]debian[.]org|(archive|security)[.]ubuntu[.]com",
    re.IGNORECASE,
)

# Paths of people's checkouts and tools, which exist on no other machine. The user `demo` is in containers of the examples.
SOMEBODYS_PATH = re.compile(r"(?<![\w.~$}*-])/(work|workspaces?|Users|builds|home/(?!demo/)\w+)/\w|[.]pyenv\b")


def files() -> list[Path]:
    """Return all files that git tracks, and those that the next `git add` would add."""
    # The folder may belong to another user than root, who runs the tests.
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    paths = [ROOT / name.decode() for name in listed.split(b"\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def shell_scripts() -> list[Path]:
    return [path for path in files() if SHELL.match(path.read_bytes()[:80])]


def lines_that_match(pattern: re.Pattern[str]) -> list[str]:
    found = []
    for path in files():
        text = path.read_text(encoding="utf-8", errors="replace")
        numbered = enumerate(text.splitlines(), 1)
        found += [f"{path.relative_to(ROOT)}:{number}: {line.strip()}" for number, line in numbered if pattern.search(line)]
    return found


@pytest.mark.parametrize("script", [pytest.param(path, id=str(path.relative_to(ROOT))) for path in shell_scripts()])
def test_shellcheck_finds_nothing(script: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.fail("shellcheck is missing; type: apt-get install shellcheck", pytrace=False)
    check = ["shellcheck", "--external-sources", "--source-path=SCRIPTDIR", script]
    done = subprocess.run(check, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout


def test_programs_are_executable() -> None:
    programs = [path for path in files() if path.read_bytes()[:2] == b"#!"]
    assert programs
    assert [path for path in programs if not path.stat().st_mode & 0o100] == []


def test_no_file_names_a_registry() -> None:
    assert lines_that_match(REGISTRY) == []


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    assert lines_that_match(SOMEBODYS_PATH) == []


def test_every_dependency_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    for extra in project["project"]["optional-dependencies"].values():
        asked += extra
    lock = (ROOT / "packaging/requirements.txt").read_text()
    locked = dict(re.findall(r"^([\w.-]+)==(\S+) \\\n    --hash=", lock, re.MULTILINE))
    assert {canonical(re.match(r"[\w.-]+", name)[0]) for name in asked} <= {canonical(name) for name in locked}
    # Each has a version and a hash, or pip would accept anything.
    assert len(locked) == len(re.findall(r"^[^#\s]", lock, re.MULTILINE))


def canonical(name: str) -> str:
    """Return a package's name in the form that the registry compares."""
    return re.sub(r"[-_.]+", "-", name).lower()
