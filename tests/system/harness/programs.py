"""Make programs that no distribution has in the form that the tests need. They are made once and kept in the repository's .cache."""

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
SOURCES = Path(__file__).resolve().parents[1] / "programs"
_CACHE = REPOSITORY / ".cache" / "system"

_S3_SERVER = "github.com/johannesboyne/gofakes3/cmd/gofakes3"


def missing(text: str) -> NoReturn:
    """Fail the test with one line that says what is missing on this machine and what to do."""
    pytest.fail(text, pytrace=False)


# Programs, each with the package that contains it; the packages are those of packages.txt.
_INSTALLED = {
    "archivemount": "archivemount",
    "bindfs": "bindfs",
    "casync": "casync",
    "curl": "curl",
    "fuse-overlayfs": "fuse-overlayfs",
    "fuse2fs": "fuse2fs",
    "fusermount3": "fuse3",
    "gcc": "gcc",
    "gocryptfs": "gocryptfs",
    "ip": "iproute2",
    "mergerfs": "mergerfs",
    "mke2fs": "e2fsprogs",
    "mksquashfs": "squashfs-tools",
    "mount": "mount",
    "nbdfuse": "libnbd-bin",
    "nbdkit": "nbdkit",
    "pkill": "procps",
    "podman": "podman",
    "python3": "python3",
    "rclone": "rclone",
    "restic": "restic",
    "s3fs": "s3fs",
    "squashfuse": "squashfuse",
    "ssh": "openssh-client",
    "sshd": "openssh-server",
    "sshfs": "sshfs",
    "strace": "strace",
    "wimmount": "wimtools",
}
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def check_installed() -> None:
    """Fail with one line where packages are missing."""
    packages = {package for name, package in _INSTALLED.items() if shutil.which(name, path=_PATH) is None}
    if runtime() == "":
        packages.add("runc")
    if packages:
        missing(f"packages are missing; type: apt-get install {' '.join(sorted(packages))} (see tests/system/packages.txt)")


def runtime() -> str:
    """Return the path of the container runtime that podman is to use; "" where there is none."""
    return shutil.which("runc", path=_PATH) or shutil.which("crun", path=_PATH) or ""


def path_of(name: str) -> str:
    """Return the path of an installed program."""
    path = shutil.which(name, path=_PATH)
    assert path is not None, name
    return path


def debian_mirror() -> str:
    """Return the address from which this machine's apt gets Debian."""
    command = ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(SITE)", "Created-By: Packages"]
    listed = subprocess.run(command, capture_output=True, text=True).stdout
    found = re.search(r"^Debian\|Debian\|(\S+)$", listed, re.MULTILINE)
    if found is None:
        missing("apt's sources name no mirror of Debian, from which the other release of Debian that this test needs could come")
    return found[1]


def static_fuse_program() -> Path:
    """Link libfuse's own example hello statically, so that it needs no libc, and nothing else of the container's root.

    It is a FUSE file system with one file, /hello, that contains "Hello World!", and with libfuse's own command line: it takes
    every mount option as it is. Programs with options of their own do not.
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
    """Build a small static S3 server from what programs/go.mod and go.sum lock."""
    return _go_program(SOURCES, _S3_SERVER, "gofakes3")


def gcsfuse() -> Path:
    """Build a static gcsfuse."""
    return _go_program(SOURCES / "gcs", "github.com/googlecloudplatform/gcsfuse/v3", "gcsfuse")


def gcs_server() -> Path:
    """Build a small static server that speaks Google's protocol."""
    return _go_program(SOURCES / "gcs", "github.com/fsouza/fake-gcs-server", "fake-gcs-server")


def gcsfuse_version() -> str:
    """Return the locked version of gcsfuse."""
    return _locked(SOURCES / "gcs/go.mod", r"googlecloudplatform/gcsfuse/v3 v(\S+)")


def rust_program(name: str) -> Path:
    """Build the program in programs/NAME from what its crates.lock locks."""
    source = SOURCES / name
    files = [source / "Cargo.toml", source / "crates.lock", source / "src/main.rs"]
    built = _CACHE / f"hello-{name}-{hashlib.sha256(b''.join(file.read_bytes() for file in files)).hexdigest()[:16]}"
    if not built.exists():
        cargo = os.environ.get("CARGO") or shutil.which("cargo")
        if cargo is None:
            missing("cargo is missing, programs in Rust are built with it; install Rust >= 1.91 (Debian has a package cargo-web)")
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, name)
            shutil.copytree(source, copy)
            remedy = "it needs Rust >= 1.91, and its registry of crates once"
            options: list[str | Path] = ["--quiet", "--manifest-path", copy / "Cargo.toml"]
            _run([cargo, "generate-lockfile", *options], remedy)
            _write_cargo_lock(copy)
            _run([cargo, "build", "--release", "--locked", "--target-dir", Path(folder, "target"), *options], remedy)
            _place(Path(folder, "target/release", f"hello-{name}"), built)
    return built


def _write_cargo_lock(folder: Path) -> None:
    """Write Cargo.lock with the versions and hashes of crates.lock, and the address from which this machine's cargo gets crates."""
    lock = folder / "Cargo.lock"
    address = next(line for line in lock.read_text().splitlines() if line.startswith("source = "))
    lock.write_text(re.sub(r"^checksum = ", f"{address}\\nchecksum = ", (folder / "crates.lock").read_text(), flags=re.MULTILINE))


def crate_version(name: str) -> str:
    """Return the version of the crate that programs/NAME is built on."""
    return _locked(SOURCES / name / "Cargo.toml", rf'{name} = .*"=([0-9.]+)"')


def python_packages(name: str) -> Path:
    """Install the Python packages that programs/NAME.txt locks into a folder. They have no compiled parts, so every Python can use it."""
    lock = SOURCES / f"{name}.txt"
    built = _CACHE / f"{name}-{_digest(lock)}"
    if not built.exists():
        with _unfinished(built) as folder:
            pip: list[str | Path] = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-compile"]
            _run(
                [*pip, "--no-deps", "--require-hashes", "--requirement", lock, "--target", folder], "it needs the Python package index once"
            )
    return built


def node_program() -> Path:
    """Install programs/node with the packages that its lock file names, and their libraries that are built already."""
    source = SOURCES / "node"
    built = _CACHE / f"node-{_digest(source / 'hello.js', source / 'package-lock.json')}"
    if not built.exists():
        npm = _tool("npm", "nodejs npm")
        with _unfinished(built) as folder:
            shutil.copytree(source, folder, dirs_exist_ok=True)
            _run([npm, "--prefix", folder, "--silent", "--ignore-scripts", "ci"], "it needs the registry of npm once")
    return built


def java_program() -> Path:
    """Compile programs/java, and copy the archives that its pom.xml names beside it."""
    source = SOURCES / "java"
    built = _CACHE / f"java-{_digest(source / 'Hello.java', source / 'pom.xml')}"
    if not built.exists():
        maven, compiler = _tool("mvn", "maven"), _tool("javac", "default-jdk-headless")
        with _unfinished(built) as folder:
            copy = ["dependency:copy-dependencies", f"-DoutputDirectory={folder}/lib"]
            _run([maven, "--quiet", "--file", source / "pom.xml", *copy], "it needs the repository of Maven once")
            _run([compiler, "-classpath", f"{folder}/lib/*", "-d", folder, source / "Hello.java"], "it needs Java >= 11")
    return built


def locked_version(file: str, pattern: str) -> str:
    """Return the version that the file in programs/ locks."""
    return _locked(SOURCES / file, pattern)


def _tool(name: str, packages: str) -> str:
    found = shutil.which(name)
    if found is None:
        missing(f"{name} is missing; type: apt-get install {packages}")
    return found


def _digest(*files: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


@contextmanager
def _unfinished(built: Path) -> Iterator[Path]:
    """Yield a folder that becomes `built` in one step: another run of the tests may look for it."""
    _CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_CACHE) as folder:
        made = Path(folder, "made")
        made.mkdir()
        yield made
        if not built.exists():
            made.rename(built)


def _go_program(module: Path, package: str, name: str) -> Path:
    lock = (module / "go.mod").read_bytes() + (module / "go.sum").read_bytes()
    built = _CACHE / f"{name}-{hashlib.sha256(lock).hexdigest()[:16]}"
    if not built.exists():
        beside = Path(sys.executable).with_name("go")
        go = os.environ.get("GO") or (str(beside) if beside.exists() else shutil.which("go"))
        if go is None:
            missing(f"go is missing, {name} is built with it; install Go >= 1.24 or set GO to its path")
        environment = {
            **os.environ,
            "CGO_ENABLED": "0",
            "GOFLAGS": "-mod=readonly -buildvcs=false",
            "GOWORK": "off",
            "GOTOOLCHAIN": "local",
        }
        unfinished = built.with_name(f"{built.name}.{os.getpid()}")
        _run([go, "build", "-C", module, "-o", unfinished, package], "it needs the Go module proxy once", environment)
        unfinished.rename(built)
    return built


def _locked(file: Path, pattern: str) -> str:
    found = re.search(pattern, file.read_text())
    assert found, f"{file} has no {pattern}"
    return found[1]


def _place(made: Path, built: Path) -> None:
    """Put a file under its name in one step: another run of the tests may look for it."""
    unfinished = built.with_name(f"{built.name}.{os.getpid()}")
    shutil.copy(made, unfinished)
    unfinished.rename(built)


def _run(command: list[str | Path], remedy: str, environment: dict[str, str] | None = None, given: bytes = b"") -> None:
    _CACHE.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, capture_output=True, input=given, env=environment)
    if done.returncode != 0:
        missing(f"{' '.join(map(str, command))} failed ({remedy}): {done.stderr.decode(errors='replace').strip()}")
