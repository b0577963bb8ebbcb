"""Test tests/e2e/stand-ins/make in a project of its own, with stand-ins for the programs that it calls."""

import shutil
import subprocess
from pathlib import Path

import pytest
from test_files import ROOT

GO = """
case "$1" in
    version) echo "go version $(cat {folder}/go-version)" ;;
    mod) echo '        {dir}' ;;
    build)
        echo built >>{folder}/builds
        while [ "$1" != -o ]; do shift; done
        cp main.go "$2" ;;
esac"""

# This takes the place of build-for-kind.sh, and prints what the image would download.
DOWNLOAD = """#!/usr/bin/python3
import sys, urllib.request
address = next(argument.removeprefix("GOOFYS=") for argument in sys.argv if argument.startswith("GOOFYS="))
print(urllib.request.urlopen(address).read().decode())
"""


class Project:
    """Represents a copy of the files that make needs, with stand-ins for root, Go and the engine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.make = folder / "tests/e2e/stand-ins/make"
        shutil.copytree(ROOT / "tests/e2e/stand-ins", self.make.parent)
        self.programs = folder / "bin"
        self.programs.mkdir()
        self.module = folder / "module"
        self.module.mkdir()
        (self.module / "main.go").write_text("package main")
        (folder / "go-version").write_text("go1")
        (folder / "build-for-kind.sh").write_text(DOWNLOAD)
        (folder / "build-for-kind.sh").chmod(0o755)
        self.have("id", "echo 0")
        self.have("go", GO.format(folder=folder, dir=f'"Dir": "{self.module}",'))

    def have(self, name: str, script: str) -> None:
        (self.programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.programs / name).chmod(0o755)

    def run(self, *names: str) -> subprocess.CompletedProcess[str]:
        path = f"{self.programs}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return subprocess.run([self.make, *names], env={"PATH": path}, capture_output=True, text=True, timeout=60)

    @property
    def builds(self) -> int:
        path = self.folder / "builds"
        return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_a_program_is_built_once_and_served(project: Project) -> None:
    for _ in range(2):
        done = project.run("goofys")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "make: mfcp-example-proxy-goofys\npackage main\n"
    assert project.builds == 1


@pytest.mark.parametrize("changed", ["tests/e2e/stand-ins/goofys/go.sum", "go-version", "tests/e2e/stand-ins/make"])
def test_it_is_built_again_where_what_it_is_made_of_has_changed(project: Project, changed: str) -> None:
    project.run("goofys")
    path = project.folder / changed
    path.write_text(path.read_text().replace("kahing/goofys v0.24.0", "kahing/goofys v0.24.1") + "\n")
    if changed == "go-version":
        path.write_text("go2")
    project.run("goofys")
    assert project.builds == 2


def test_a_server_that_ends_is_reported(project: Project) -> None:
    project.have("python3", "echo no such module >&2; exit 1")
    done = project.run("goofys")
    assert done.returncode == 1
    assert done.stderr == f"make: the server of what images download has ended; see {project.folder}/.cache/e2e/downloads.log\n"


def test_a_module_that_is_nowhere_is_reported(project: Project) -> None:
    """The whole machine must not be copied instead."""
    project.have("go", GO.format(folder=project.folder, dir='"Error": "no such module"'))
    done = project.run("goofys")
    assert done.returncode != 0
    assert done.stderr.endswith("go mod download does not say where github.com/kahing/goofys@v0.24.0 is\n")
