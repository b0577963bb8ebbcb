"""The pod's programs, frozen: the tree mfcp/, and the single files fusermount3 and fuse-starter.

PyInstaller's boot loader starts Python, and nothing else of PyInstaller is in them: its own start-up (import hooks, an
archive of the standard library) costs several times what the program does. Instead the archive behind each boot loader
holds one script, made of start.py and all modules of the program, and Python's files beside it are the few that it reads
before that: the package encodings, and extensions that are not built into libpython.

The tree brings its own libc. Executables name the dynamic loader and their libraries with absolute paths below PLACE,
so nothing is searched for, and what an image has in the usual places plays no part.
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

PLACE = "/opt/mfcp"  # where the tree must lie, in every image
RUNTIME = "_internal"
PACKAGE = "fusermount3_proxy"
PROGRAMS = {"fusermount3": "fusermount3", "fuse-starter": "starter", "install": "install"}  # file name: module of PACKAGE
SINGLE = ("fusermount3", "fuse-starter")  # those that are made as single files too
LATE = {"fusermount3": ("_ctypes",), "fuse-starter": (), "install": ()}  # what a function imports that few starts come to
FAILED = {"fusermount3": 1, "fuse-starter": 125, "install": 1}  # the exit code where the tree is not in its place

# Empty since glibc 2.34, all of it is in libc.so.6; the boot loader still asks for them.
EMPTY_LIBRARIES = ("libdl.so.2", "libpthread.so.0")

# Isolated as the boot loader's configuration is, it reads no variable; UTF-8 in any locale, so that every argument and
# path survives (PEP 540).
PYTHON_OPTIONS = ("X utf8=1",)


def build_tree(out: Path, scratch: Path) -> None:
    """Make the tree `out`."""
    runtime = out / RUNTIME
    runtime.mkdir(parents=True)
    modules = {program: _imported(program) for program in PROGRAMS}
    extensions = _extensions(modules)
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
        # Any other's libc is loaded already, and found by its name.
        if set(elf.needed(copy)) - {loader.name, "libc.so.6"}:
            _name_libraries(copy, libraries)
    _forget_preload_file(runtime / loader.name)
    _write_standard_library(runtime, modules)

    for program in PROGRAMS:
        executable = runtime / program
        shutil.copyfile(_bootloader(), executable)
        elf.patch(executable, "--set-interpreter", f"{PLACE}/{RUNTIME}/{loader.name}")
        _name_libraries(executable, libraries)
        # Last: patchelf would move it away from the end, where the boot loader looks for it.
        script = _script(program, modules[program], hidden_environment=True, scratch=scratch)
        _append_archive(executable, _entries(program, script), libpython.name, scratch)
        _compile_trampoline(out / program, program)


def build_single(program: str, out: Path, scratch: Path) -> None:
    """Make the single file `out`: it extracts its libraries at each start, and runs with the image's libc."""
    modules = _imported(program)
    libpython = _libpython()
    libraries = {libpython.name: libpython}
    for file in (libpython, *_extensions({program: modules})):
        libraries[file.name] = file
        libraries |= {name: path for name, path in elf.libraries(file).items() if not _is_glibc(name)}

    files = scratch / f"{program}.files"
    files.mkdir()
    for name, file in libraries.items():
        shutil.copyfile(file, files / name)
        elf.strip(files / name)
    _write_standard_library(files, {program: modules})

    shutil.copyfile(_bootloader(), out)
    # An image with a libc need not have this one; the boot loader calls it for compressed entries alone.
    elf.make_optional(out, "libz.so.1")
    script = _script(program, modules, hidden_environment=False, scratch=scratch)
    entries = _entries(program, script)
    # Not compressed: that would double the time of a start.
    for file in sorted(path for path in files.rglob("*") if path.is_file()):
        entries.append((str(file.relative_to(files)), str(file), False, "b" if elf.is_elf(file) else "x"))
    _append_archive(out, entries, libpython.name, scratch)


def inputs() -> list[Path]:
    """Every file that the result depends on, besides the locked packages."""
    return [*sorted((ROOT / PACKAGE).rglob("*.py")), *sorted(HERE.glob("*.py")), HERE / "trampoline.c", *system_inputs()]


def system_inputs() -> list[Path]:
    """The files of the build machine that are copied: an upgrade of it makes another result."""
    extensions = _extensions({program: _imported(program) for program in PROGRAMS})
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


def _is_glibc(name: str) -> bool:
    return name.split(".")[0] in ("libc", "libm", "libdl", "libpthread", "librt", "libutil")


def _imported(program: str) -> list[tuple[str, str]]:
    """The modules that a program imports and that are not part of libpython: name and file, imported ones first."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {PACKAGE}.{PROGRAMS[program]}"
    # Without site (-S) it imports what the frozen program does. importtime names each module when its import ends.
    command = [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-X", "importtime", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env={})
    if done.returncode != 0:
        raise elf.ElfError(f"{PACKAGE} cannot be imported: {done.stderr.strip().splitlines()[-1]}")
    sys.path.insert(0, str(ROOT))
    try:
        lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
        names = [name for line in lines if (name := line.rpartition("|")[2].strip()) != "imported package"]
        modules = []
        for name in [*names, *LATE[program]]:
            if FrozenImporter.find_spec(name):
                continue
            spec = importlib.util.find_spec(name)
            if spec is not None and spec.has_location and spec.origin:  # not built in
                modules.append((name, spec.origin))
        return modules
    finally:
        sys.path.remove(str(ROOT))


def _extensions(modules: dict[str, list[tuple[str, str]]]) -> list[Path]:
    return sorted({Path(file) for listed in modules.values() for _, file in listed if ".so" in Path(file).suffixes})


def _write_standard_library(folder: Path, modules: dict[str, list[tuple[str, str]]]) -> None:
    """The standard library's modules that Python needs before it runs any script, as files without source."""
    for name, file in sorted({pair for listed in modules.values() for pair in listed}):
        if name.split(".")[0] == PACKAGE or not file.endswith(".py"):
            continue
        relative = name.replace(".", "/") + ("/__init__.pyc" if Path(file).name == "__init__.py" else ".pyc")
        target = folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        # The header says that nothing is to be compared with a source file (PEP 552).
        target.write_bytes(importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + bytes(8) + _code(name, file))


def _code(name: str, file: str) -> bytes:
    # The file's name in it is the same wherever it is built. No docstrings and asserts: they would be read at each start.
    source = Path(file).read_bytes()
    return marshal.dumps(compile(source, name.replace(".", "/") + ".py", "exec", dont_inherit=True, optimize=2))


def _script(program: str, modules: list[tuple[str, str]], hidden_environment: bool, scratch: Path) -> Path:
    """The program's one script."""
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
    # "z" is PyInstaller's archive of modules: the boot loader wants to see one, only its Python part would read it.
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
    """Name the libraries that `path` needs by their absolute paths in the tree."""
    options = []
    for name in elf.needed(path):
        kept = "libc.so.6" if name in EMPTY_LIBRARIES else name
        if kept in libraries:
            options += ["--replace-needed", name, f"{PLACE}/{RUNTIME}/{kept}"]
    if options:
        elf.patch(path, *options)


def _forget_preload_file(loader: Path) -> None:
    """Keep the tree's dynamic loader from reading the image's /etc/ld.so.preload: it names libraries for another libc."""
    theirs = b"/etc/ld.so.preload\0"
    ours = f"{PLACE}/.preload".encode().ljust(len(theirs), b"\0")  # does not exist
    content = loader.read_bytes()
    if content.count(theirs) != 1 or len(ours) != len(theirs):
        raise elf.ElfError(f"{loader.name}: the name of the file of preloaded libraries is not where it was expected")
    loader.write_bytes(content.replace(theirs, ours))


def _compile_trampoline(out: Path, program: str) -> None:
    strings = {"PROGRAM": f"{PLACE}/{RUNTIME}/{program}", "NAME": program, "PLACE": PLACE}
    command = ["gcc", "-Os", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-nostdlib", "-static", "-fno-pie", "-no-pie"]
    # No tables and padding that nobody reads.
    command += ["-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-Wl,--build-id=none,-z,noseparate-code,--strip-all"]
    command += [f'-D{name}="{value}"' for name, value in strings.items()] + [f"-DEXIT_CODE={FAILED[program]}"]
    done = subprocess.run([*command, "-o", str(out), str(HERE / "trampoline.c")], capture_output=True, text=True)
    if done.returncode != 0:
        raise elf.ElfError(f"trampoline.c cannot be compiled: {done.stderr.strip()}")
