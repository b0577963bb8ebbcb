"""Programs that no distribution has in the form that the tests need: made once, kept in the repository's .cache."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
SOURCES = Path(__file__).resolve().parents[1] / "programs"
_CACHE = REPOSITORY / ".cache" / "system"

_S3_SERVER = "github.com/johannesboyne/gofakes3/cmd/gofakes3"
_S3_SERVER_VERSION = "v1.2.0"


def missing(text: str) -> NoReturn:
    """Something that the tests need is not on this machine: the test fails with one line that says what to do."""
    pytest.fail(text, pytrace=False)


# Each by the package that has it; the packages are those of packages.txt.
_INSTALLED = {
    "bindfs": "bindfs",
    "curl": "curl",
    "fuse2fs": "fuse2fs",
    "fusermount3": "fuse3",
    "gcc": "gcc",
    "gocryptfs": "gocryptfs",
    "mke2fs": "e2fsprogs",
    "mksquashfs": "squashfs-tools",
    "mount": "mount",
    "pkill": "procps",
    "podman": "podman",
    "python3": "python3",
    "s3fs": "s3fs",
    "squashfuse": "squashfuse",
    "ssh": "openssh-client",
    "sshd": "openssh-server",
    "sshfs": "sshfs",
}
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def check_installed() -> None:
    """Fail with one line where packages are missing."""
    packages = {package for name, package in _INSTALLED.items() if shutil.which(name, path=_PATH) is None}
    if shutil.which("crun", path=_PATH) is None and shutil.which("runc", path=_PATH) is None:
        packages.add("runc")
    if packages:
        missing(f"packages are missing; type: apt-get install {' '.join(sorted(packages))} (see tests/system/packages.txt)")


def path_of(name: str) -> str:
    """Where an installed program is."""
    path = shutil.which(name, path=_PATH)
    assert path is not None, name
    return path


def static_fuse_program() -> Path:
    """hello.c with libfuse in it: needs no libc, and nothing else of the container's root file system."""
    source = SOURCES / "hello.c"
    built = _CACHE / f"hello-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}"
    if not built.exists():
        command = ["gcc", "-O1", "-static", "-D_FILE_OFFSET_BITS=64", "-I/usr/include/fuse3", source, "-lfuse3", "-pthread"]
        unfinished = built.with_name(f"{built.name}.{os.getpid()}")
        _run([*command, "-o", unfinished], "type: apt-get install libfuse3-dev libc6-dev")
        unfinished.rename(built)
    return built


def s3_server() -> Path:
    """A small S3 server, static."""
    built = _CACHE / f"gofakes3-{_S3_SERVER_VERSION}"
    if not built.exists():
        beside = Path(sys.executable).with_name("go")
        go = os.environ.get("GO") or (str(beside) if beside.exists() else shutil.which("go"))
        if go is None:
            missing("go is missing, the S3 server is built with it; install Go >= 1.21 or set GO to its path")
        environment = {**os.environ, "CGO_ENABLED": "0", "GOBIN": str(_CACHE / "bin")}
        (_CACHE / "bin").mkdir(parents=True, exist_ok=True)
        _run([go, "install", f"{_S3_SERVER}@{_S3_SERVER_VERSION}"], "it needs the Go module proxy once", environment)
        (_CACHE / "bin" / "gofakes3").rename(built)
    return built


def _run(command: list[str | Path], remedy: str, environment: dict[str, str] | None = None) -> None:
    _CACHE.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        missing(f"{' '.join(map(str, command))} failed ({remedy}): {done.stderr.strip()}")
