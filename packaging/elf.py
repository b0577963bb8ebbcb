"""Executables and shared libraries: what they need, and changing it. Uses ldd, nm, patchelf and strip."""

import re
import struct
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


def make_optional(path: Path, library: str) -> None:
    """Let an executable run without `library`, as long as it calls nothing in it.

    Its symbols become weak: otherwise a start with LD_BIND_NOW in the environment would miss them.
    """
    symbols = set(_run("nm", "--dynamic", "--defined-only", "--format=just-symbols", str(libraries(path)[library])).split())
    patch(path, "--remove-needed", library)
    content = bytearray(path.read_bytes())
    # elf(5): Elf64_Ehdr, Elf64_Shdr, Elf64_Sym.
    (table,), (entry_size, count) = struct.unpack_from("<Q", content, 0x28), struct.unpack_from("<HH", content, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", content, table + i * entry_size) for i in range(count)]
    for _, kind, _, _, offset, size, link, *_ in sections:
        if kind != _SHT_DYNSYM:
            continue
        names = sections[link][4]
        for symbol in range(offset, offset + size, _SYMBOL_SIZE):
            name_at, info, _, section = struct.unpack_from("<IBBH", content, symbol)
            name = content[names + name_at : content.index(b"\0", names + name_at)].decode()
            if section == _SHN_UNDEF and name in symbols:
                content[symbol + 4] = _STB_WEAK << 4 | info & 0xF
    path.write_bytes(content)


_SHT_DYNSYM, _SHN_UNDEF, _STB_WEAK, _SYMBOL_SIZE = 11, 0, 2, 24


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
