"""Executables and shared libraries: what they need, and changing it. Uses ldd, patchelf and strip."""

import re
import subprocess
from pathlib import Path


class ElfError(Exception):
    """A tool failed or a library is missing; the text is one line."""


def needed(path: Path) -> list[str]:
    """The names of the libraries that `path` itself asks for."""
    return _run("patchelf", "--print-needed", str(path)).split()


def interpreter(path: Path) -> Path:
    """The dynamic loader that an executable asks for."""
    return Path(_run("patchelf", "--print-interpreter", str(path)).strip())


def libraries(path: Path) -> dict[str, Path]:
    """The system's libraries that loading `path` brings in, all the way down: name to file."""
    found = {}
    for line in _run("ldd", str(path)).splitlines():
        if "not found" in line:
            raise ElfError(f"{path} needs {line.split()[0]}, which is not installed")
        if match := re.match(r"\s*(\S+) => (/\S+) \(0x", line):
            found[match[1]] = Path(match[2])
    return found


def strip(path: Path) -> None:
    """Remove what loading does not need. Before patch(): afterwards it may damage the file."""
    _run("strip", "--strip-unneeded", "--remove-section=.comment", str(path))


def patch(path: Path, *options: str) -> None:
    """Change a file with patchelf's options."""
    _run("patchelf", *options, str(path))


def is_elf(path: Path) -> bool:
    """Whether it is an executable or a library."""
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _run(*command: str) -> str:
    # Messages are parsed: no translations.
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C"})
    if done.returncode != 0:
        raise ElfError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout
