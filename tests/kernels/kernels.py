"""Fetch the kernels of Debian's releases, and boot them under qemu with the root of this machine.

The guest's root is this machine's, exported read-only by 9p, under a tmpfs that takes every change. So the guest has the packages,
the Python environment and dist/ of this machine, at the same paths, and nothing but the kernel differs. Only amd64 is supported.
"""

import lzma
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.programs import REPOSITORY, debian_mirror, missing

_CACHE = REPOSITORY / ".cache" / "kernels"
_HERE = Path(__file__).resolve().parent
_KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_BUSYBOX = Path("/bin/busybox")
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

# What the initramfs needs for the guest's root; modprobe adds what these need in turn.
_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
_MEMORY = "3G"
_STARTS = 30.0  # seconds until the first process of the guest speaks under KVM; some machines have a KVM that never gets there
_STARTS_EMULATED = 300.0
_ENDS = 3000.0  # seconds until the guest switches itself off: an emulated processor is 10 to 20 times slower
_SPEAKS = "the first process of the guest runs"  # as in the script init


@dataclass(frozen=True)
class Kernel:
    """Names a kernel by its version and the Debian release that has it."""

    version: str
    release: int
    suite: str

    @property
    def title(self) -> str:
        return f"Linux {self.version} (Debian {self.release})"


@dataclass
class Outcome:
    """Holds the result of one test in the guest: why it failed ("" if it passed), and what it recorded of the kernel."""

    failure: str
    seen: dict[str, str] = field(default_factory=dict)


@dataclass
class Boot:
    """Holds what came out of a guest: the outcome of each test by its id, and everything that the guest printed."""

    outcomes: dict[str, Outcome]
    console: str

    def of(self, test: str) -> dict[str, Outcome]:
        """Return the outcomes of a test with all its parameters."""
        return {name: outcome for name, outcome in self.outcomes.items() if name == test or name.startswith(f"{test}[")}


def check_installed() -> None:
    """Fail with one line where packages are missing."""
    programs = {"qemu-system-x86_64": "qemu-system-x86", "modprobe": "kmod", "depmod": "kmod", "apparmor_parser": "apparmor"}
    packages = {package for program, package in programs.items() if shutil.which(program, path=_PATH) is None}
    packages |= {package for path, package in ((_KEYS, "debian-archive-keyring"), (_BUSYBOX, "busybox-static")) if not path.exists()}
    if packages:
        missing(f"packages are missing; type: apt-get install {' '.join(sorted(packages))} (see tests/kernels/packages.txt)")


def fetch(kernel: Kernel) -> Path:
    """Return the folder with the kernel and its modules, which is made once from Debian's package. apt checks the signatures."""
    folder = _CACHE / kernel.version
    if not folder.exists():
        unfinished = _CACHE / f"{kernel.version}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        for name in ("apt/lists/partial", "apt/archives/partial"):
            (unfinished / name).mkdir(parents=True)
        sources = unfinished / "sources.list"
        sources.write_text(f"deb [signed-by={_KEYS}] {debian_mirror()} {kernel.suite} main\n")
        # This apt knows one release alone, and nothing of what is installed on this machine.
        options = {
            "Dir::Etc::sourcelist": sources,
            "Dir::Etc::sourceparts": "-",
            "Dir::State::lists": unfinished / "apt/lists",
            "Dir::State::status": "/dev/null",
            "Dir::Cache": unfinished / "apt",
            "APT::Sandbox::User": "root",
            "Acquire::Retries": "3",
        }
        apt = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        _run("apt-get", *apt, "update")
        depends = _run("apt-cache", *apt, "depends", "--important", "linux-image-amd64")
        image = next(line.split()[-1] for line in depends.splitlines() if "linux-image-" in line and "Depends:" in line)
        _run("apt-get", *apt, "download", image, folder=unfinished)
        (package,) = unfinished.glob("*.deb")
        _run("dpkg-deb", "--extract", package, unfinished)
        package.unlink()
        shutil.rmtree(unfinished / "apt")
        if not (unfinished / "lib").exists():  # Debian 13 has it below /usr, where /lib leads
            (unfinished / "lib").symlink_to("usr/lib")
        _run("depmod", "--basedir", unfinished, _release(unfinished))
        unfinished.rename(folder)
    return folder


def boot(kernel: Kernel, tests: Sequence[str]) -> Boot:
    """Run tests (pytest's ids) in a guest with this kernel, and return what came out. Raises AssertionError if the guest does not end."""
    folder = fetch(kernel)
    results = _CACHE / "results" / kernel.version  # stays, for somebody who wants to read all of it
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    (results / "arguments").write_text("".join(f"{test}\n" for test in ("-v", "--color=no", "--timeout=900", *tests)))
    initramfs = results / "initramfs"
    initramfs.write_bytes(_initramfs(folder, results / "initramfs.d"))
    console = results / "console"
    if not (os.access("/dev/kvm", os.W_OK) and _run_guest("kvm", folder, initramfs, results, console, _STARTS)):
        started = _run_guest("tcg,thread=multi", folder, initramfs, results, console, _STARTS_EMULATED)
        assert started, f"{kernel.title} did not boot:\n{_text(console)}"
    report = results / "report.xml"
    assert report.exists(), f"{kernel.title}: the guest ended without a report:\n{_text(console)}"
    return Boot(dict(_outcomes(report)), _text(console))


def _run_guest(accelerator: str, folder: Path, initramfs: Path, results: Path, console: Path, starts: float) -> bool:
    """Run the guest to its end. Returns whether it booted within `starts` seconds. Raises AssertionError if it does not end."""
    release = _release(folder)
    script = [_HERE / "guest", sys.executable, REPOSITORY, folder / "lib/modules" / release]
    command: list[str | Path] = [
        "qemu-system-x86_64",
        *("-accel", accelerator, "-smp", "2", "-m", _MEMORY, "-nic", "none", "-nographic", "-no-reboot"),
        *("-kernel", folder / f"boot/vmlinuz-{release}", "-initrd", initramfs),
        *("-append", f"console=ttyS0 loglevel=1 panic=-1 -- {' '.join(map(str, script))}"),
        *("-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=root,mount_tag=root"),
        *("-fsdev", f"local,id=results,path={results},security_model=none"),
        *("-device", "virtio-9p-pci,fsdev=results,mount_tag=results"),
    ]
    with console.open("wb") as output, subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output) as qemu:
        try:
            began = time.monotonic()
            while _SPEAKS not in _text(console):
                if qemu.poll() is not None or time.monotonic() > began + starts:
                    return False
                time.sleep(0.2)
            qemu.wait(_ENDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the guest did not end within {_ENDS:g} s:\n{_text(console)}") from None
        finally:
            qemu.kill()
    return True


def _initramfs(folder: Path, root: Path) -> bytes:
    """Return an archive with busybox, the modules for the guest's root in the order in which they are loaded, and the script init."""
    for name in ("bin", "modules", "lower", "upper", "new"):
        (root / name).mkdir(parents=True)
    shutil.copy(_BUSYBOX, root / "bin")
    shutil.copy(_HERE / "init", root)
    shown = _run("modprobe", "--dirname", folder, "--set-version", _release(folder), "--show-depends", "--all", *_MODULES)
    paths = [Path(line.split()[1]) for line in dict.fromkeys(shown.splitlines()) if line.startswith("insmod ")]
    for path in paths:
        data = path.read_bytes()
        (root / "modules" / path.name).write_bytes(lzma.decompress(data) if path.suffix == ".xz" else data)
    (root / "modules/order").write_text("".join(f"{path.name}\n" for path in paths))
    names = "".join(f"{path.relative_to(root)}\n" for path in [root, *sorted(root.rglob("*"))])
    command = [_BUSYBOX, "cpio", "--create", "--format", "newc"]
    return subprocess.run(command, cwd=root, input=names.encode(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout


def _release(folder: Path) -> str:
    (image,) = (folder / "boot").glob("vmlinuz-*")
    return image.name.removeprefix("vmlinuz-")


def _outcomes(report: Path) -> Iterator[tuple[str, Outcome]]:
    """Yield the id of each test in pytest's JUnit report, and its outcome."""
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        failures = [*case.findall("failure"), *case.findall("error"), *case.findall("skipped")]
        text = "\n".join(f"{failure.get('message', '')}\n{failure.text or ''}" for failure in failures)
        seen = {found.get("name", ""): found.get("value", "") for found in case.iter("property")}
        yield f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}", Outcome(text, seen)


def _text(console: Path) -> str:
    return console.read_text(errors="replace")


def _run(*command: str | Path, folder: Path = REPOSITORY) -> str:
    environment = os.environ | {"PATH": _PATH, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        missing(f"{' '.join(map(str, command))} failed: {(done.stdout + done.stderr)[-2000:]}")
    return done.stdout
