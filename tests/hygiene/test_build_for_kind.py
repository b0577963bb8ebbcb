"""Test build-for-kind.sh with stand-ins for engines and clusters that record their arguments, and check that macOS' bash can run it."""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_files import ROOT

SCRIPT = ROOT / "build-for-kind.sh"
PREFIX = "ghcr.io/pfnet-research/meta-fuse-csi-plugin"

# The script uses these programs besides those that have stand-ins.
TOOLS = ("bash", "cat", "dirname", "grep", "mktemp", "rm", "uname")

NEWER_THAN_3_2 = {
    "mapfile, readarray": r"\b(mapfile|readarray)\b",
    "an associative array, or a name reference": r"\b(declare|local|typeset)\s+-\w*[An]",
    "case modification": r"\$\{!?\w+(\[[^]]*\])?(\^|,)",
    "a transformation": r"\$\{\w+(\[[^]]*\])?@[A-Za-z]\}",
    "&>>, |&": r"&>>|\|&",
    "an extended pattern without extglob": r"\[\[.*[@?*+!]\([^)]*\)",
    "a negative index": r"\[-\d+\]",
    "-v": r"\[\[?\s+-v\b",
    "printf %()T": r"%\([^)]*\)T",
    "coproc, ;&": r"\bcoproc\b|;;?&",
    "{fd}>": r"\{\w+\}[<>]",
    # macOS before 12.3 does not have it.
    "readlink -f": r"\breadlink -f\b",
}


@dataclass(frozen=True)
class Ran:
    """Holds how the script ended, and how the stand-ins were called."""

    code: int
    out: str
    err: str
    asked: list[str]


class Machine:
    """Provides a PATH with only what a test puts there and a few tools."""

    def __init__(self, folder: Path) -> None:
        self.programs = folder / "bin"
        self.asked = folder / "asked"
        self.programs.mkdir()
        self.asked.touch()
        # The stand-ins have a folder of their own: writing to a link would write to the machine's program.
        self.tools = folder / "tools"
        self.tools.mkdir()
        for name in TOOLS:
            (self.tools / name).symlink_to(next(path for path in (Path("/bin") / name, Path("/usr/bin") / name) if path.exists()))

    def have(self, name: str, script: str = "") -> None:
        """Add a program; its script has the arguments in `$*`."""
        program = self.programs / name
        program.write_text(f'#!/bin/bash\necho "{name} $*" >>"{self.asked}"\n{script}\n')
        program.chmod(0o755)

    def run(self, *arguments: str, **variables: str) -> Ran:
        # A script of bash 3.2 has neither of them.
        enabled = self.programs.parent / "bashrc"
        enabled.write_text("enable -n mapfile readarray\n")
        environment = {
            "PATH": f"{self.programs}:{self.tools}",
            "TMPDIR": os.environ.get("TMPDIR", "/tmp"),
            "BASH_ENV": str(enabled),
            **variables,
        }
        done = subprocess.run([SCRIPT, *arguments], env=environment, capture_output=True, text=True, timeout=60)
        return Ran(done.returncode, done.stdout, done.stderr, self.asked.read_text().splitlines())


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


DOCKER = """
case "$*" in
    "context show") echo desktop-linux ;;
    build\\ *) echo "BUILDX_BUILDER=$BUILDX_BUILDER" >>"%s" ;;
esac"""


def has_docker(machine: Machine) -> None:
    machine.have("docker", DOCKER % machine.asked)


CTR = """
case "$*" in
    "plugins list") printf '%%s\\n' 'TYPE                     ID           PLATFORMS      STATUS' %s ;;
esac"""

KUBELETS = "'io.containerd.grpc.v1    cri          linux/amd64    ok        '"
DOCKERS = "'io.containerd.grpc.v1    images       -              ok        '"


def test_all_is_built_with_docker_and_loaded_into_kind(machine: Machine) -> None:
    has_docker(machine)
    machine.have("kind", "[ $1 != get ] || echo kind")
    ran = machine.run()
    assert (ran.code, ran.err) == (0, "")
    names = [re.findall(rf"-t {PREFIX}/(\S+):latest", line)[0] for line in ran.asked if line.startswith("docker build")]
    assert names[0] == "fusermount3-proxy"  # the examples copy from it
    assert sorted(names) == sorted(machine.run("--list").out.split())
    assert len([line for line in ran.asked if line.startswith("kind load image-archive --name kind ")]) == len(names)
    assert ran.out.splitlines()[-1] == f"build-for-kind: done: {len(names)} images"


def test_dockers_own_builder_is_used(machine: Machine) -> None:
    """A builder in a container would neither see fusermount3-proxy nor give its images to the engine."""
    has_docker(machine)
    ran = machine.run("--target", "none", "mfcp-example-proxy-sshfs", BUILDX_BUILDER="container")
    assert [line for line in ran.asked if line.startswith("BUILDX")] == ["BUILDX_BUILDER=desktop-linux"] * 2


def test_an_example_is_built_after_what_it_copies(machine: Machine) -> None:
    has_docker(machine)
    ran = machine.run("--target", "none", "--build-arg", "A=b c", "mfcp-example-starter-sshfs", "fusermount3-proxy")
    builds = [line for line in ran.asked if line.startswith("docker build")]
    assert builds == [
        f"docker build -t {PREFIX}/fusermount3-proxy:latest --build-arg A=b c -f packaging/Dockerfile --target fusermount3-proxy .",
        f"docker build -t {PREFIX}/mfcp-example-starter-sshfs:latest --build-arg A=b c examples/starter/sshfs",
    ]


def test_an_example_of_the_fuse_device_needs_no_other_image(machine: Machine) -> None:
    has_docker(machine)
    ran = machine.run("--target", "none", "mfcp-example-device-sshfs")
    assert (ran.code, ran.err) == (0, "")
    assert not [line for line in ran.asked if "fusermount3-proxy" in line]
    assert any("examples/device/sshfs" in line for line in ran.asked)


def test_on_arm_mountpoint_s3_gets_its_package_for_it(machine: Machine) -> None:
    has_docker(machine)
    machine.have("uname", "echo arm64")
    builds = [line for line in machine.run("--target", "none").asked if "ARCH=arm64" in line]
    assert [re.findall(r"mfcp-example\S+", line)[0] for line in builds] == ["mfcp-example-proxy-mountpoint-s3:latest"]


def test_an_image_that_is_there_is_loaded_and_nothing_built(machine: Machine) -> None:
    has_docker(machine)
    machine.have("kind", "[ $1 != get ] || echo kind")
    ran = machine.run("--load", "docker.io/library/busybox:latest")
    assert ran.code == 0
    assert not [line for line in ran.asked if line.startswith("docker build")]
    assert [line for line in ran.asked if line.startswith("kind load")]


def test_a_build_that_fails_is_the_last_one(machine: Machine) -> None:
    machine.have("docker", "[ $1 != build ]")
    ran = machine.run("--target", "none")
    assert ran.code == 1
    assert ran.err == "build-for-kind: fusermount3-proxy cannot be built (see above)\n"
    assert len([line for line in ran.asked if line.startswith("docker build")]) == 1


def test_a_cluster_of_kind_is_found_in_podman(machine: Machine) -> None:
    has_docker(machine)
    machine.have("podman")
    machine.have(
        "kind",
        f'echo "provider=${{KIND_EXPERIMENTAL_PROVIDER:-}}" >>{machine.asked}; [ "$KIND_EXPERIMENTAL_PROVIDER" != podman ] || echo kind',
    )
    ran = machine.run("--load", "some:1")
    assert "build-for-kind: the kind cluster kind runs in podman: KIND_EXPERIMENTAL_PROVIDER=podman" in ran.out.splitlines()
    assert ran.code == 0
    assert ran.asked[-2].startswith("kind load")
    assert ran.asked[-1] == "provider=podman"


def test_a_provider_that_the_user_gives_is_the_only_one(machine: Machine) -> None:
    for name in ("docker", "podman", "kind"):
        machine.have(name)
    ran = machine.run("--name", "mine", KIND_EXPERIMENTAL_PROVIDER="docker")
    assert ran.code == 1
    assert ran.err == "build-for-kind: there is no kind cluster mine: kind create cluster --name mine, or give --name\n"
    assert ran.asked.count("kind get clusters") == 1


def test_a_containerd_of_kubelets_gets_the_images(machine: Machine) -> None:
    machine.have("buildah")
    machine.have("ctr", CTR % KUBELETS)
    ran = machine.run("fusermount3-proxy")
    assert (ran.code, ran.err) == (0, "")
    assert ran.asked[-1].startswith("ctr --namespace k8s.io images import ")


def test_a_containerd_of_dockers_is_reported_before_anything_is_built(machine: Machine) -> None:
    machine.have("docker")
    machine.have("ctr", CTR % DOCKERS)
    ran = machine.run(CONTAINERD_ADDRESS="/run/containerd/containerd.sock")
    assert ran.code == 1
    assert ran.err == (
        "build-for-kind: containerd at /run/containerd/containerd.sock serves no kubelet (its plugin cri is off, as in Docker's): "
        "install kind, set CONTAINERD_ADDRESS, or give --target none\n"
    )
    assert not [line for line in ran.asked if line.startswith("docker build")]


def test_a_containerd_that_does_not_answer_is_reported(machine: Machine) -> None:
    machine.have("docker")
    machine.have("ctr", "echo 'ctr: permission denied' >&2; exit 1")
    ran = machine.run()
    assert ran.code == 1
    assert ran.err.splitlines() == [
        "ctr: permission denied",
        "build-for-kind: containerd at its usual socket does not answer (see above): be root, or set CONTAINERD_ADDRESS",
    ]


@pytest.mark.parametrize(
    ("programs", "arguments", "printed"),
    [
        ((), (), "neither docker, podman nor buildah works here"),
        (("docker",), (), "neither kind nor ctr is installed"),
        (("docker",), ("--target", "kind"), "kind is not installed"),
        (("docker",), ("--target", "ctr"), "ctr is not installed"),
    ],
)
def test_what_is_missing_is_reported_in_one_line(
    machine: Machine, programs: tuple[str, ...], arguments: tuple[str, ...], printed: str
) -> None:
    for name in programs:
        machine.have(name)
    ran = machine.run(*arguments)
    assert ran.code == 1
    assert printed in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [("nothing",), ("--engine", "lxc"), ("--target", "moon"), ("--name",), ("--none",), ("--target", "none", "--load", "a:b")]
)
def test_a_misuse_is_reported_in_one_line(machine: Machine, arguments: tuple[str, ...]) -> None:
    ran = machine.run(*arguments)
    assert ran.code == 2
    assert arguments[-1] in ran.err
    assert ran.err.count("\n") == 1


# ---- macOS' bash


def newer_than_3_2(text: str) -> list[str]:
    """Return what bash 3.2 does not understand in a script."""
    code = re.sub(r"(^|\s)#.*", "", text)
    found = [what for what, pattern in NEWER_THAN_3_2.items() if re.search(pattern, code)]
    for name in set(re.findall(r"\b(\w+)=\(\)", code)):
        # In bash 3.2 this is nothing where the array is empty, and elsewhere all of it.
        unguarded = code.replace(f'${{{name}[@]+"${{{name}[@]}}"}}', "")
        found += [f"{name} may be empty" for _ in re.findall(rf"\$\{{{name}\[[@*]\]\}}", unguarded)]
    return found


def test_it_is_written_in_what_macos_has() -> None:
    assert newer_than_3_2(SCRIPT.read_text()) == []


@pytest.mark.parametrize(
    "script",
    [
        "mapfile -t names < <(images)",
        "declare -A image=([a]=b)",
        "echo ${name,,}",
        "echo ${name@Q}",
        "echo x &>>log",
        "[[ $(uname -m) == @(aarch64|arm64) ]]",
        'names=()\nfor name in "${names[@]}"; do :; done',
        "echo ${names[-1]}",
        'here=$(readlink -f "$0")',
    ],
)
def test_what_macos_does_not_have_is_found(script: str) -> None:
    assert newer_than_3_2(script)
