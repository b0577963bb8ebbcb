"""Builds dist/ (started by packaging/build, which prepares the environment for it)."""

import argparse
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import client
import elf

ROOT = client.ROOT
DIST = ROOT / "dist"

# Tools by the Debian and Ubuntu package that has them.
TOOLS = {"gcc": "gcc", "patchelf": "patchelf", "strip": "binutils", "nm": "binutils", "ldd": "libc-bin"}


class BuildError(Exception):
    """The end; the text is one line."""


class Part:
    """Something that is built as a whole: `outputs` are names in dist/."""

    def __init__(
        self,
        name: str,
        outputs: list[str],
        inputs: Callable[[], list[Path]],
        build: Callable[[Path, Path], None],
        check: Callable[[Path], None],
    ) -> None:
        self.name = name
        self.outputs = outputs
        self.inputs = inputs
        self.build = build
        self.check = check


def build_client(out: Path, scratch: Path) -> None:
    """Make the pod's programs in `out`."""
    client.build_tree(out / "mfcp", scratch)
    for program in client.SINGLE:
        client.build_single(program, out / program, scratch)


def check_client(out: Path) -> None:
    """Try the pod's programs."""
    for program in client.SINGLE:
        _try([out / program, "-V" if program == "fusermount3" else "--help"])
    for program in client.PROGRAMS:
        _try_tree(out / "mfcp", program)


def build_driver(out: Path, scratch: Path) -> None:
    """Make the driver's tree in `out`."""
    spec = ROOT / "packaging" / "driver.spec"
    folders = ["--distpath", str(out), "--workpath", str(scratch / "work")]
    command = [sys.executable, "-m", "PyInstaller", "--noconfirm", *folders, str(spec)]
    # Its cache of stripped files is kept per user otherwise.
    environment = {**os.environ, "PYINSTALLER_CONFIG_DIR": str(scratch / "config"), "SOURCE_DATE_EPOCH": str(_epoch())}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        print(done.stderr, file=sys.stderr)
        raise BuildError("PyInstaller failed (see above)")


def check_driver(out: Path) -> None:
    """Try the driver."""
    program = out / "meta-fuse-csi-plugin" / "meta-fuse-csi-plugin"
    _try([program, "-V"])
    # As far as it goes without privileges: the driver's modules are imported by then, and for `volume list` gRPC's.
    done = subprocess.run([program, "--nodeid=x", "--pods-dir=x"], capture_output=True, text=True, env={})
    if done.returncode != 2 or "--pods-dir" not in done.stderr:
        raise BuildError(f"{program.name} fails after the build: {done.stderr.strip()}")
    done = subprocess.run([program, "--admin-socket=/x", "volume", "list"], capture_output=True, text=True, env={})
    if done.returncode != 1 or "no driver answers at /x" not in done.stderr:
        raise BuildError(f"{program.name} fails after the build: {done.stderr.strip()}")


def driver_inputs() -> list[Path]:
    """Every file that the driver's tree depends on, besides the locked packages."""
    ours = [path for folder in ("driver", "fusermount3_proxy") for path in sorted((ROOT / folder).rglob("*.py"))]
    recipe = [ROOT / "packaging" / name for name in ("driver.spec", "driver_main.py", "build.py")]
    return [*ours, *recipe, *client.system_inputs()]


PARTS = [
    Part("client", ["mfcp", "fusermount3", "fuse-starter"], client.inputs, build_client, check_client),
    Part("driver", ["meta-fuse-csi-plugin"], driver_inputs, build_driver, check_driver),
]


def main() -> int:
    """Build what was asked for."""
    parser = argparse.ArgumentParser(prog="packaging/build", description="Builds what is shipped into dist/.")
    parser.add_argument("--only", choices=[part.name for part in PARTS], help="build this part alone")
    parser.add_argument("--force", action="store_true", help="build although nothing has changed")
    arguments = parser.parse_args()
    parts = [part for part in PARTS if arguments.only in (None, part.name)]
    try:
        _epoch()
        _check_tools()
        DIST.mkdir(exist_ok=True)
        with (DIST / ".lock").open("w") as lock:
            # Two builds at once would take each other's folders away.
            fcntl.flock(lock, fcntl.LOCK_EX)
            for left in DIST.glob(".building-*"):  # by a build that was killed
                shutil.rmtree(left)
            for part in parts:
                _bring_up_to_date(part, arguments.force)
    except (BuildError, elf.ElfError, OSError) as error:
        print(f"build: {error}", file=sys.stderr)
        return 1
    for part in parts:
        for name in part.outputs:
            print(f"{_size(DIST / name) / 1e6:8.2f} MB  dist/{name}")
    return 0


def _check_tools() -> None:
    missing = sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})
    if missing:
        raise BuildError(f"missing packages; type: apt-get install {' '.join(missing)}")


def _bring_up_to_date(part: Part, force: bool) -> None:
    stamp = DIST / f".{part.name}"
    digest = _digest(part.inputs())
    complete = all((DIST / name).exists() for name in part.outputs)
    if complete and not force and stamp.exists() and stamp.read_text() == digest:
        print(f"build: {part.name} is up to date")
        return
    print(f"build: building {part.name}", flush=True)
    # Within dist/, so that the results are moved into place and never half there.
    with tempfile.TemporaryDirectory(dir=DIST, prefix=".building-") as folder:
        out, scratch, old = (Path(folder, name) for name in ("out", "scratch", "old"))
        for path in (out, scratch, old):
            path.mkdir()
        part.build(out, scratch)
        _set_modes(out)
        part.check(out)
        _set_times(out)
        stamp.unlink(missing_ok=True)
        for name in part.outputs:
            if (DIST / name).exists():
                (DIST / name).rename(old / name)
            (out / name).rename(DIST / name)
        stamp.write_text(digest)


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256(sys.version.encode())
    for file in [ROOT / "packaging" / "requirements.txt", *files]:
        digest.update(f"{file.name}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _set_modes(folder: Path) -> None:
    """Readable and executable by any user of a pod or of the node, whatever umask the build has."""
    for path in folder.rglob("*"):
        executable = path.is_dir() or elf.is_elf(path)
        os.chmod(path, 0o755 if executable else 0o644)


def _set_times(folder: Path) -> None:
    """The same time for every file of every build, so that images of the same content have the same layers."""
    epoch = _epoch()
    for path in folder.rglob("*"):
        os.utime(path, (epoch, epoch), follow_symlinks=False)


def _epoch() -> int:
    text = os.environ.get("SOURCE_DATE_EPOCH", "315532800")  # 1980, the first year that a zip file can say
    if not text.isdecimal():
        raise BuildError(f"SOURCE_DATE_EPOCH is {text!r} and not a number of seconds")
    return int(text)


def _try(command: list[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env={})
    if done.returncode != 0 or not done.stdout or done.stderr:
        raise BuildError(f"{' '.join(map(str, command))} fails after the build: {done.stderr.strip() or done.stdout.strip()}")


def _try_tree(tree: Path, program: str) -> None:
    """Run a program of the tree in its place, which it has in a mount namespace of its own."""
    enter = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    if subprocess.run([*enter, "true"], capture_output=True).returncode != 0:
        print(f"build: {program} of the tree was not tried: no mount namespace may be made here (unshare --mount)")
        return
    place = Path(client.PLACE)
    option = "-V" if program == "fusermount3" else "--help"
    # A tmpfs over the parent: the place itself need not exist on this machine.
    script = f'mount -t tmpfs tmpfs "{place.parent}" && mkdir "{place}" && mount --bind "$1" "{place}" && exec "{place}/{program}" {option}'
    source = tree.resolve()
    if source.is_relative_to(place.parent):
        print(f"build: {program} of the tree was not tried: the repository lies below {place.parent}")
        return
    _try([*enter, "sh", "-c", script, "sh", str(source)])


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end quietly with a reader that ends, as other commands do
    sys.exit(main())
