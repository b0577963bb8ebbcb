"""Builds dist/. packaging/build makes the Python environment and runs this."""

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

import elf
import programs

ROOT = programs.ROOT
DIST = ROOT / "dist"

# Maps each tool to the package of Debian and Ubuntu that has it.
TOOLS = {"gcc": "gcc", "patchelf": "patchelf", "strip": "binutils", "nm": "binutils", "ldd": "libc-bin"}


class BuildError(Exception):
    """Ends the build. The text is one line."""


class Part:
    """Describes a part of dist/, which is built as a whole if one of its inputs has changed.

    `outputs` are names in dist/. `inputs()` returns the files it is made of, besides the locked packages. `build(out, scratch)`
    makes the outputs in the folder `out`, and `check(out)` runs them. Both raise BuildError or ElfError.
    """

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


def build_programs(out: Path, scratch: Path) -> None:
    """Make the tree and the single files of the container's programs in `out`."""
    programs.build_tree(out / "mfcp", scratch)
    for program in programs.SINGLE_FILES:
        programs.build_single(program, out / program, scratch)


def check_programs(out: Path) -> None:
    """Run each of the container's programs once. Raises BuildError if one fails."""
    for program in programs.SINGLE_FILES:
        _try([out / program, "-V" if program == "fusermount3" else "--help"])
    for program in programs.PROGRAMS:
        _try_tree(out / "mfcp", program)


def build_driver(out: Path, scratch: Path) -> None:
    """Make the driver's tree in `out`."""
    spec = ROOT / "packaging" / "driver.spec"
    folders = ["--distpath", str(out), "--workpath", str(scratch / "work")]
    command = [sys.executable, "-m", "PyInstaller", "--noconfirm", *folders, str(spec)]
    # By default PyInstaller keeps stripped files in a cache of the user, which other builds share.
    environment = {**os.environ, "PYINSTALLER_CONFIG_DIR": str(scratch / "config"), "SOURCE_DATE_EPOCH": str(_epoch())}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        print(done.stderr, file=sys.stderr)
        raise BuildError("PyInstaller cannot build the driver (see above)")


def check_driver(out: Path) -> None:
    """Run the driver once. Raises BuildError if it fails."""
    program = out / "meta-fuse-csi-plugin" / "meta-fuse-csi-plugin"
    _try([program, "-V"])
    # Both commands end with one line, and need no privileges. They import the driver's modules, and the second one imports gRPC.
    done = subprocess.run([program, "--nodeid=x", "--pods-dir=x"], capture_output=True, text=True, env={})
    if done.returncode != 2 or "--pods-dir" not in done.stderr:
        raise BuildError(f"{program.name} fails after the build: {done.stderr.strip()}")
    done = subprocess.run([program, "--admin-socket=/x", "volume", "list"], capture_output=True, text=True, env={})
    if done.returncode != 1 or "no driver answers at /x" not in done.stderr:
        raise BuildError(f"{program.name} fails after the build: {done.stderr.strip()}")


def driver_inputs() -> list[Path]:
    """Return every file that the driver's tree is made of, besides the locked packages."""
    ours = [path for folder in ("driver", "fusermount3_proxy") for path in sorted((ROOT / folder).rglob("*.py"))]
    recipe = [ROOT / "packaging" / name for name in ("driver.spec", "driver_main.py", "build.py")]
    return [*ours, *recipe, *programs.system_inputs()]


PARTS = [
    Part("programs", ["mfcp", "fusermount3", "fuse-starter"], programs.inputs, build_programs, check_programs),
    Part("driver", ["meta-fuse-csi-plugin"], driver_inputs, build_driver, check_driver),
]


def main() -> int:
    """Build the parts that the command line names. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="packaging/build", description="Builds what is shipped into dist/.")
    parser.add_argument("--only", choices=[part.name for part in PARTS], help="build only this part")
    parser.add_argument("--force", action="store_true", help="build even if nothing has changed")
    arguments = parser.parse_args()
    parts = [part for part in PARTS if arguments.only in (None, part.name)]
    try:
        _epoch()
        _check_tools()
        DIST.mkdir(exist_ok=True)
        with (DIST / ".lock").open("w") as lock:
            # Without the lock, two builds at once would remove each other's folders.
            fcntl.flock(lock, fcntl.LOCK_EX)
            for left in DIST.glob(".building-*"):  # from a build that was killed
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
    # The folder is in dist/, so that rename(2) puts each result there whole.
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
    """Let any user of a pod or of the node read and execute the files, whatever the umask of the build is."""
    for path in folder.rglob("*"):
        executable = path.is_dir() or elf.is_elf(path)
        os.chmod(path, 0o755 if executable else 0o644)


def _set_times(folder: Path) -> None:
    """Give every file of every build the same time, so that images of the same content have the same layers."""
    epoch = _epoch()
    for path in folder.rglob("*"):
        os.utime(path, (epoch, epoch), follow_symlinks=False)


def _epoch() -> int:
    text = os.environ.get("SOURCE_DATE_EPOCH", "315532800")  # 1980, the first year that a zip file can hold
    if not text.isdecimal():
        raise BuildError(f"SOURCE_DATE_EPOCH is {text!r} and not a number of seconds")
    return int(text)


def _try(command: list[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env={})
    if done.returncode != 0 or not done.stdout or done.stderr:
        raise BuildError(f"{' '.join(map(str, command))} fails after the build: {done.stderr.strip() or done.stdout.strip()}")


def _try_tree(tree: Path, program: str) -> None:
    """Run a program of the tree in a mount namespace in which the tree is at programs.PLACE."""
    enter = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    if subprocess.run([*enter, "true"], capture_output=True).returncode != 0:
        print(f"build: {program} of the tree was not tried: this user may not make a mount namespace (unshare --mount)")
        return
    place = Path(programs.PLACE)
    option = "-V" if program == "fusermount3" else "--help"
    # The tmpfs hides the parent folder, so that the place can be made even if it does not exist on this machine.
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
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end without a traceback if the reader of the output ends
    sys.exit(main())
