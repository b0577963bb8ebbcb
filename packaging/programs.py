"""Freezes the container's programs: into the tree mfcp/, and into the single files fusermount3 and fuse-starter.

PyInstaller's boot loader starts Python. The programs use nothing else of PyInstaller, because its own start-up (import hooks, an
archive of the standard library) takes several times as long as the program. Instead the archive behind each boot loader holds
one script, made of start.py and all modules of the program. Beside it lie the few files that Python reads before it runs a
script: the package encodings, and extensions that are not built into libpython.

The tree has its own libc. Executables name the dynamic loader and their libraries by absolute paths below PLACE, so that no
library of the image is found instead.
"""

import importlib.util
import marshal
import shutil
import subprocess
import sys
import sysconfig
from importlib.machinery import FrozenImporter
from pathlib import Path

import elf
import PyInstaller
from PyInstaller.archive.writers import CArchiveWriter

HERE = Path(__file__).parent
ROOT = HERE.parent

PLACE = "/opt/mfcp"  # the path at which the tree must lie in every image
RUNTIME = "_internal"
BIN = "bin"  # the folder of the tree that a container has in PATH
SOCKET = "socket"  # an empty folder of the tree, over which the folder of a socket is mounted where the tree is read-only
NAMES_IN_BIN = {"fusermount3": "fusermount3", "fusermount": "fusermount3", "fuse-starter": "fuse-starter"}  # maps them to programs
PACKAGE = "fusermount3_proxy"
PROGRAMS = {"fusermount3": "fusermount3", "fuse-starter": "starter", "install": "install"}  # maps file names to modules of PACKAGE
SINGLE_FILES = ("fusermount3", "fuse-starter")  # these are also made as single files
LATE_IMPORTS = {"fusermount3": ("_ctypes",), "fuse-starter": (), "install": ()}  # modules that a function imports, which few starts run
EXIT_CODES = {"fusermount3": 1, "fuse-starter": 125, "install": 1}  # if the tree is not at PLACE

# These libraries are empty since glibc 2.34, because libc.so.6 holds their functions. The boot loader still needs their names.
EMPTY_LIBRARIES = ("libdl.so.2", "libpthread.so.0")

# Python decodes arguments and paths as UTF-8 in any locale, so that no byte is lost (PEP 540). PYTHONUTF8 cannot do that, because
# the boot loader starts Python isolated from the environment.
PYTHON_OPTIONS = ("X utf8=1",)


def build_tree(out: Path, scratch: Path) -> None:
    """Make the tree in the folder `out`. `scratch` is a folder for files that are not kept. Raises ElfError."""
    runtime = out / RUNTIME
    runtime.mkdir(parents=True)
    modules = {program: _imported_modules(program) for program in PROGRAMS}
    extensions = _extension_files(modules)
    libpython = _libpython()
    loader = elf.interpreter(_bootloader())

    libraries = {libpython.name: libpython}
    for file in (_bootloader(), libpython, *extensions):
        libraries |= elf.libraries(file)
    for name in EMPTY_LIBRARIES:
        libraries.pop(name, None)
    for name, file in {**libraries, loader.name: loader, **{file.name: file for file in extensions}}.items():
        copy = runtime / name
        shutil.copyfile(file, copy)
        elf.strip(copy)
        # libc.so.6 needs no path, since the executable has loaded it before.
        if set(elf.needed(copy)) - {loader.name, "libc.so.6"}:
            _name_libraries(copy, libraries)
    _disable_preload_file(runtime / loader.name)
    _write_standard_library(runtime, modules)

    for program in PROGRAMS:
        executable = runtime / program
        shutil.copyfile(_bootloader(), executable)
        elf.patch(executable, "--set-interpreter", f"{PLACE}/{RUNTIME}/{loader.name}")
        _name_libraries(executable, libraries)
        # The archive comes last. The boot loader reads it from the end of the file, and patchelf would append to the file.
        script = _script(program, modules[program], hidden_environment=True, scratch=scratch)
        _append_archive(executable, _entries(program, script), libpython.name, scratch)
        _compile_trampoline(out / program, program)

    (out / SOCKET).mkdir()
    (out / BIN).mkdir()
    for name, program in NAMES_IN_BIN.items():
        shutil.copy(out / program, out / BIN / name)  # no link: `install` and engines copy the tree file by file


def build_single(program: str, out: Path, scratch: Path) -> None:
    """Make the single file `out`, which unpacks its libraries at each start and uses the image's libc. Raises ElfError."""
    modules = _imported_modules(program)
    libpython = _libpython()
    libraries = {libpython.name: libpython}
    for file in (libpython, *_extension_files({program: modules})):
        libraries[file.name] = file
        libraries |= {name: path for name, path in elf.libraries(file).items() if not _is_part_of_glibc(name)}

    files = scratch / f"{program}.files"
    files.mkdir()
    for name, file in libraries.items():
        shutil.copyfile(file, files / name)
        elf.strip(files / name)
    _write_standard_library(files, {program: modules})

    shutil.copyfile(_bootloader(), out)
    # An image with a libc may lack zlib. The boot loader needs zlib only for compressed entries, and there are none.
    elf.make_optional(out, "libz.so.1")
    script = _script(program, modules, hidden_environment=False, scratch=scratch)
    entries = _entries(program, script)
    # Compressed files would double the time of a start.
    for file in sorted(path for path in files.rglob("*") if path.is_file()):
        entries.append((str(file.relative_to(files)), str(file), False, "b" if elf.is_elf(file) else "x"))
    _append_archive(out, entries, libpython.name, scratch)


def inputs() -> list[Path]:
    """Return every file that the programs are made of, besides the locked packages."""
    return [*sorted((ROOT / PACKAGE).rglob("*.py")), *sorted(HERE.glob("*.py")), HERE / "trampoline.c", *system_inputs()]


def system_inputs() -> list[Path]:
    """Return the files of the build machine that are copied into the result, since an upgrade of the machine changes them."""
    extensions = _extension_files({program: _imported_modules(program) for program in PROGRAMS})
    libraries = {name: path for file in (_libpython(), *extensions) for name, path in elf.libraries(file).items()}
    return [_libpython(), elf.interpreter(_bootloader()), *extensions, *libraries.values()]


def _bootloader() -> Path:
    return Path(PyInstaller.__file__).parent / "bootloader" / str(PyInstaller.PLATFORM) / "run"


def _libpython() -> Path:
    name, multiarch = str(sysconfig.get_config_var("INSTSONAME")), str(sysconfig.get_config_var("MULTIARCH"))
    folder = Path(sysconfig.get_config_var("LIBDIR"))
    for path in (folder / multiarch, folder):
        if (path / name).exists() and ".so" in name:
            return path / name
    version = sysconfig.get_python_version()
    raise elf.ElfError(f"the shared library of Python {version} is missing; type: apt-get install libpython{version}")


def _is_part_of_glibc(name: str) -> bool:
    return name.split(".")[0] in ("libc", "libm", "libdl", "libpthread", "librt", "libutil")


def _imported_modules(program: str) -> list[tuple[str, str]]:
    """Return name and file of each module that a program imports, without those in libpython. A module comes after its imports."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {PACKAGE}.{PROGRAMS[program]}"
    # -S leaves out the module site, which the frozen program does not import. importtime names each module when its import ends.
    command = [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-X", "importtime", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env={})
    if done.returncode != 0:
        raise elf.ElfError(f"{PACKAGE} cannot be imported: {done.stderr.strip().splitlines()[-1]}")
    sys.path.insert(0, str(ROOT))
    try:
        lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
        names = [name for line in lines if (name := line.rpartition("|")[2].strip()) != "imported package"]
        modules = []
        for name in [*names, *LATE_IMPORTS[program]]:
            if FrozenImporter.find_spec(name):
                continue
            spec = importlib.util.find_spec(name)
            if spec is not None and spec.has_location and spec.origin:  # not built in
                modules.append((name, spec.origin))
        return modules
    finally:
        sys.path.remove(str(ROOT))


def _extension_files(modules: dict[str, list[tuple[str, str]]]) -> list[Path]:
    return sorted({Path(file) for listed in modules.values() for _, file in listed if ".so" in Path(file).suffixes})


def _write_standard_library(folder: Path, modules: dict[str, list[tuple[str, str]]]) -> None:
    """Write the compiled modules of the standard library that Python imports before it runs a script."""
    for name, file in sorted({pair for listed in modules.values() for pair in listed}):
        if name.split(".")[0] == PACKAGE or not file.endswith(".py"):
            continue
        relative = name.replace(".", "/") + ("/__init__.pyc" if Path(file).name == "__init__.py" else ".pyc")
        target = folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        # With this header Python does not compare the file with a source file (PEP 552).
        target.write_bytes(importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + bytes(8) + _code(name, file))


def _code(name: str, file: str) -> bytes:
    # The file name in the code does not depend on where the repository lies. Docstrings and asserts would be read at each start.
    source = Path(file).read_bytes()
    return marshal.dumps(compile(source, name.replace(".", "/") + ".py", "exec", dont_inherit=True, optimize=2))


def _script(program: str, modules: list[tuple[str, str]], hidden_environment: bool, scratch: Path) -> Path:
    """Write the script of a program: start.py, all modules, and the call of run()."""
    ours = tuple((name, _code(name, file)) for name, file in modules if name.split(".")[0] == PACKAGE)
    lines = [(HERE / "start.py").read_text()]
    if hidden_environment:
        lines.append("reveal()")
    lines += [f"load({ours!r})", f"from {PACKAGE}.{PROGRAMS[program]} import run", "run()", ""]
    path = scratch / f"{program}.py"
    path.write_text("\n".join(lines))
    return path


def _entries(program: str, script: Path) -> list[tuple[str, str, bool, str]]:
    empty = script.with_suffix(".pyz")
    empty.touch()
    # "z" is PyInstaller's archive of modules. The boot loader fails without one, but does not read it.
    return [
        *((option, "", False, "o") for option in PYTHON_OPTIONS),
        ("PYZ.pyz", str(empty), False, "z"),
        (program, str(script), False, "s2"),
    ]


def _append_archive(executable: Path, entries: list[tuple[str, str, bool, str]], libpython: str, scratch: Path) -> None:
    archive = scratch / "archive"
    CArchiveWriter(str(archive), entries, libpython)
    with executable.open("ab") as file:
        file.write(archive.read_bytes())


def _name_libraries(path: Path, libraries: dict[str, Path]) -> None:
    """Replace the names of the libraries that `path` needs by absolute paths in the tree."""
    options = []
    for name in elf.needed(path):
        kept = "libc.so.6" if name in EMPTY_LIBRARIES else name
        if kept in libraries:
            options += ["--replace-needed", name, f"{PLACE}/{RUNTIME}/{kept}"]
    if options:
        elf.patch(path, *options)


def _disable_preload_file(loader: Path) -> None:
    """Keep the tree's dynamic loader from reading the image's /etc/ld.so.preload, which names libraries for another libc."""
    theirs = b"/etc/ld.so.preload\0"
    ours = f"{PLACE}/.preload".encode().ljust(len(theirs), b"\0")  # a file that does not exist
    content = loader.read_bytes()
    if content.count(theirs) != 1 or len(ours) != len(theirs):
        raise elf.ElfError(f"the path /etc/ld.so.preload cannot be replaced in {loader.name}: it is not there exactly once")
    loader.write_bytes(content.replace(theirs, ours))


def _compile_trampoline(out: Path, program: str) -> None:
    strings = {"PROGRAM": f"{PLACE}/{RUNTIME}/{program}", "NAME": program, "PLACE": PLACE}
    command = ["gcc", "-Os", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-nostdlib", "-static", "-fno-pie", "-no-pie"]
    # These leave out tables and padding that the program does not need, and the landing pads that Ubuntu's compiler adds.
    command += [
        "-fno-stack-protector",
        "-fno-asynchronous-unwind-tables",
        "-fcf-protection=none",
        "-Wl,--build-id=none,-z,noseparate-code,--strip-all",
    ]
    command += [f'-D{name}="{value}"' for name, value in strings.items()] + [f"-DEXIT_CODE={EXIT_CODES[program]}"]
    done = subprocess.run([*command, "-o", str(out), str(HERE / "trampoline.c")], capture_output=True, text=True)
    if done.returncode != 0:
        raise elf.ElfError(f"trampoline.c cannot be compiled: {done.stderr.strip()}")
