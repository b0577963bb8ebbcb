"""Tests that packaging/ answers wrong use with one line and destroys nothing, and that any user can read what it builds."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pod_programs import ROOT


def ran(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, env=os.environ | environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert len(done.stderr.splitlines()) <= 1, done.stderr
    return done


def test_no_environment_is_made_in_a_folder_with_other_files(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "precious").write_text("kept")
    done = ran(ROOT / "packaging/setup-venv", folder)
    assert done.returncode == 1
    assert f"{folder} is no virtual environment" in done.stderr
    assert (folder / "precious").read_text() == "kept"


@pytest.mark.parametrize(("option", "code"), [("--help", 0), ("--clear", 1)])
def test_an_unknown_option_makes_no_environment(tmp_path: Path, option: str, code: int) -> None:
    script = f'cd "{tmp_path}" && exec "{ROOT}/packaging/setup-venv" {option}'
    assert ran("sh", "-c", script).returncode == code
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def packaging(tmp_path: Path) -> Path:
    """Return a copy of packaging/, which builds into a folder of its own."""
    shutil.copytree(ROOT / "packaging", tmp_path / "packaging")
    return tmp_path / "packaging"


def test_a_build_reports_a_time_that_is_no_number(packaging: Path) -> None:
    done = ran(sys.executable, "-B", packaging / "build.py", SOURCE_DATE_EPOCH="yesterday")
    assert (done.returncode, done.stderr) == (1, "build: SOURCE_DATE_EPOCH is 'yesterday' and not a number of seconds\n")


def test_a_build_reports_where_it_cannot_write(packaging: Path) -> None:
    (packaging.parent / "dist").touch()
    done = ran(sys.executable, "-B", packaging / "build.py")
    assert done.returncode == 1
    assert str(packaging.parent / "dist") in done.stderr


def test_libraries_that_cannot_be_copied_are_named(packaging: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    shutil.copy(Path(sys.executable).resolve(), tree / "meta-fuse-csi-plugin")
    done = ran(sys.executable, "-B", packaging / "driver-libs", "--tree", tree, "--copy-to", "/proc/none")
    assert done.returncode == 1
    assert "/proc/none" in done.stderr


_BUILD = """
import os, sys
sys.path.insert(0, sys.argv[1])
import build

def make(out, scratch):
    os.umask(0o077)
    (out / "tree" / "folder").mkdir(parents=True)
    (out / "tree" / "folder" / "text").touch()
    (out / "tree" / "program").write_bytes(b"\\x7fELF")

build.DIST.mkdir()
build._bring_up_to_date(build.Part("tree", ["tree"], lambda: [], make, lambda out: None), False)
"""


def test_what_is_built_is_readable_by_all_whatever_the_umask(packaging: Path) -> None:
    done = ran(sys.executable, "-B", "-c", _BUILD, packaging)
    assert done.returncode == 0, done.stderr
    tree = packaging.parent / "dist" / "tree"
    modes = {str(path.relative_to(tree.parent)): path.stat().st_mode & 0o777 for path in [tree, *tree.rglob("*")]}
    assert modes == {"tree": 0o755, "tree/folder": 0o755, "tree/folder/text": 0o644, "tree/program": 0o755}
