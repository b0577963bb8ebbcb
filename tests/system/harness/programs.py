"""Programs that no distribution has in the form that the tests need: made once, kept in the repository's .cache."""

import gzip
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
    "strace": "strace",
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
    """libfuse's own example hello, linked statically: needs no libc, and nothing else of the container's root.

    A FUSE file system with one file, /hello, that says "Hello World!", and with libfuse's own command line: it takes
    every mount option as it is, which programs with options of their own do not.
    """
    example = Path("/usr/share/doc/libfuse3-dev/examples/hello.c")
    packed = example.with_name("hello.c.gz")
    if not example.exists() and not packed.exists():
        missing(f"{example} is missing; type: apt-get install --reinstall libfuse3-dev (with the documentation, if dpkg leaves it out)")
    text = example.read_bytes() if example.exists() else gzip.decompress(packed.read_bytes())
    built = _CACHE / f"hello-{hashlib.sha256(text).hexdigest()[:16]}"
    if not built.exists():
        command = [
            "gcc",
            "-O1",
            "-w",
            "-static",
            "-D_FILE_OFFSET_BITS=64",
            "-I/usr/include/fuse3",
            "-xc",
            "-",
            "-xnone",
            "-lfuse3",
            "-pthread",
        ]
        unfinished = built.with_name(f"{built.name}.{os.getpid()}")
        _run([*command, "-o", unfinished], "type: apt-get install libfuse3-dev libc6-dev", given=text)
        unfinished.rename(built)
    return built


def s3_server() -> Path:
    """A small S3 server, static, built from what programs/go.mod and go.sum lock."""
    lock = (SOURCES / "go.mod").read_bytes() + (SOURCES / "go.sum").read_bytes()
    built = _CACHE / f"gofakes3-{hashlib.sha256(lock).hexdigest()[:16]}"
    if not built.exists():
        beside = Path(sys.executable).with_name("go")
        go = os.environ.get("GO") or (str(beside) if beside.exists() else shutil.which("go"))
        if go is None:
            missing("go is missing, the S3 server is built with it; install Go >= 1.24 or set GO to its path")
        environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false", "GOWORK": "off"}
        unfinished = built.with_name(f"{built.name}.{os.getpid()}")
        _run([go, "build", "-C", SOURCES, "-o", unfinished, _S3_SERVER], "it needs the Go module proxy once", environment)
        unfinished.rename(built)
    return built


def _run(command: list[str | Path], remedy: str, environment: dict[str, str] | None = None, given: bytes = b"") -> None:
    _CACHE.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, capture_output=True, input=given, env=environment)
    if done.returncode != 0:
        missing(f"{' '.join(map(str, command))} failed ({remedy}): {done.stderr.decode(errors='replace').strip()}")
