"""Reads and changes what executables and shared libraries need, with ldd, nm, patchelf and strip.

The functions raise ElfError, and OSError if a file cannot be read.
"""

import re
import struct
import subprocess
from pathlib import Path


class ElfError(Exception):
    """Reports that a tool failed or that a library is missing. The text is one line."""


def needed(path: Path) -> list[str]:
    """Return the names of the libraries that `path` itself needs (DT_NEEDED)."""
    return _run("patchelf", "--print-needed", str(path)).split()


def interpreter(path: Path) -> Path:
    """Return the dynamic loader of an executable (PT_INTERP)."""
    return Path(_run("patchelf", "--print-interpreter", str(path)).strip())


def libraries(path: Path) -> dict[str, Path]:
    """Return all libraries of the system that are loaded with `path`, also indirectly: a map from names to files."""
    found = {}
    for line in _run("ldd", str(path)).splitlines():
        if "not found" in line:
            raise ElfError(f"{path} needs {line.split()[0]}, which is not installed; install the package that has it")
        if match := re.match(r"\s*(\S+) => (/\S+) \(0x", line):
            found[match[1]] = Path(match[2])
    return found


def strip(path: Path) -> None:
    """Remove symbols that loading does not need. It must come before patch(), because strip may damage patched files."""
    _run("strip", "--strip-unneeded", "--remove-section=.comment", str(path))


def patch(path: Path, *options: str) -> None:
    """Change a file with these options of patchelf."""
    _run("patchelf", *options, str(path))


def make_optional(path: Path, library: str) -> None:
    """Let an executable run without `library`, as long as it calls no function of the library.

    The library's symbols become weak. Otherwise a start with LD_BIND_NOW in the environment would fail, since they are missing.
    """
    symbols = set(_run("nm", "--dynamic", "--defined-only", "--format=just-symbols", str(libraries(path)[library])).split())
    patch(path, "--remove-needed", library)
    content = bytearray(path.read_bytes())
    # The layout is that of Elf64_Ehdr, Elf64_Shdr and Elf64_Sym in elf(5).
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
    """Return whether the file is an executable or a shared library."""
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _run(*command: str) -> str:
    # LC_ALL keeps the output, which is parsed, from being translated.
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C"})
    if done.returncode != 0:
        raise ElfError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout
