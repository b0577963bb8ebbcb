"""Test the files in dist/ for pods, and the frozen fusermount3 in images of every kind: what it needs, and what it tolerates."""

import os
import re
import shutil
import socket
import stat
import subprocess
from pathlib import Path

import pytest
from harness.image import DIST, PROGRAMS, VERSION, Asked, Image, answering, both_forms, program_of
from harness.pod import PLACE, TREE, VARIABLE

pytestmark = pytest.mark.usefixtures("built")

# The files.


def test_the_programs_are_small() -> None:
    tree = sum(path.lstat().st_size for path in (TREE).rglob("*") if not path.is_dir())
    # Debian's libpython makes them 12 and 9 MB at most; Ubuntu's is larger.
    larger = 1_500_000 if "ID=ubuntu" in Path("/etc/os-release").read_text() else 0
    assert tree <= 12_000_000 + larger
    assert all((DIST / name).stat().st_size <= 9_000_000 + larger for name in PROGRAMS)
    assert all((TREE / name).stat().st_size <= 1500 for name in PROGRAMS)


def test_any_user_may_read_and_nobody_may_write() -> None:
    for path in [TREE, *(TREE).rglob("*"), *(DIST / name for name in PROGRAMS)]:
        mode = stat.S_IMODE(path.lstat().st_mode)
        executable = path.is_dir() or path.read_bytes()[:4] == b"\x7fELF"
        assert mode == (0o755 if executable else 0o644), path


def test_the_files_name_no_path_of_the_build() -> None:
    # Paths in the checkout are forbidden, but not the checkout's own path: it may be /src, which other projects build in, too.
    places = [os.fsencode(DIST.parent / name) for name in ("dist", "fusermount3_proxy", "packaging", ".venv")]
    for path in [*(TREE).rglob("*"), *(DIST / name for name in PROGRAMS)]:
        if path.is_file():
            content = path.read_bytes()
            assert [place for place in places if place in content] == [], path


# Where the tree runs.


def test_runs_where_nothing_else_is(image: Image) -> None:
    done = image.run([f"{PLACE}/fusermount3", "-V"])
    assert (done.returncode, done.stdout, done.stderr) == (0, VERSION.encode(), b"")
    done = image.run([f"{PLACE}/fuse-starter", "--help"])
    assert (done.returncode, done.stdout[:19], done.stderr) == (0, b"Usage: fuse-starter", b"")


@pytest.mark.parametrize(
    ("path", "links"),
    [
        ("/usr/bin/fusermount3", {"usr/bin/fusermount3": "/opt/mfcp/fusermount3"}),
        ("/usr/bin/fusermount", {"usr/bin/fusermount": "/opt/mfcp/fusermount3"}),
        ("/usr/bin/mergerfs-fusermount", {"usr/bin/mergerfs-fusermount": "../../opt/mfcp/fusermount3"}),
        ("/bin/fusermount", {"bin": "usr/bin", "usr/bin/fusermount": "fusermount3", "usr/bin/fusermount3": "/opt/mfcp/fusermount3"}),
        ("usr/bin/fusermount3", {"usr/bin/fusermount3": "/opt/mfcp/fusermount3"}),
    ],
)
def test_runs_through_links(image_with_proc: Image, stand_in: Asked, path: str, links: dict[str, str]) -> None:
    for name, target in links.items():
        (image_with_proc.root / name).symlink_to(target)
    assert image_with_proc.run([path, "-V"]).stdout == VERSION.encode()
    image_with_proc.mount(path, ["--", "/mnt"])


def test_runs_bound_alone(image_with_proc: Image, stand_in: Asked) -> None:
    (image_with_proc.root / "usr/bin/fusermount3").touch()
    image_with_proc.binds.append((TREE / "fusermount3", "/usr/bin/fusermount3"))
    image_with_proc.mount("/usr/bin/fusermount3", ["--", "/mnt"])


def test_installs_itself_in_a_volume_for_any_user(image: Image) -> None:
    (image.root / "to").mkdir()
    os.chown(image.root / "to", 1234, 1234)
    for _ in range(2):  # an init container may run again
        done = image.run([f"{PLACE}/install", "/to"], uid=1234)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"install: /opt/mfcp is in /to\n", b"")
    assert contents(image.root / "to") == contents(TREE)
    (image.root / "to" / "fusermount3").write_text("broken")
    assert image.run([f"{PLACE}/install", "/to"], uid=1234).returncode == 0
    assert contents(image.root / "to") == contents(TREE)


def test_says_why_it_cannot_install_itself(image: Image) -> None:
    (image.root / "to").mkdir()
    for arguments, code, text in [
        (["/to"], 1, "install: /to/"),
        (["/gone/to"], 1, "install: /gone/to: No such file or directory"),
        ([], 2, "install: give one folder as the only argument; try install --help"),
        (["/to", "/to"], 2, "install: give one folder"),
        (["--bogus"], 2, "install: give one folder"),
    ]:
        done = image.run([f"{PLACE}/install", *arguments], uid=1234)
        assert (done.returncode, done.stdout) == (code, b"")
        assert done.stderr.decode().startswith(text)
        assert len(done.stderr.splitlines()) == 1


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return mode and content of every file below `folder`."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_mode, path.read_bytes()) for path in files}


@pytest.mark.parametrize(("name", "code"), [("fusermount3", 1), ("fuse-starter", 125), ("install", 1)])
def test_says_where_the_tree_must_be(image: Image, name: str, code: int) -> None:
    (image.root / f"usr/bin/{name}").touch()
    image.binds = [(TREE / name, f"/usr/bin/{name}")]
    done = image.run([f"/usr/bin/{name}", "-V"])
    message = f"{name}: /opt/mfcp/_internal/{name} cannot be started: the folder mfcp must lie at /opt/mfcp\n"
    assert (done.returncode, done.stdout, done.stderr) == (code, b"", message.encode())


def test_the_single_file_needs_a_glibc_alone(image_with_proc: Image, stand_in: Asked) -> None:
    root = image_with_proc.root
    image_with_proc.binds = image_with_proc.binds[1:]
    interpreter = Path(re.search(rb"/lib\S*/ld-linux\S*\.so\.\d", (DIST / "fusermount3").read_bytes())[0].decode())
    glibc = Path(subprocess.run(["ldd", "/bin/sh"], capture_output=True, text=True).stdout.split("libc.so.6 => ")[1].split()[0]).parent
    for name in ("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0"):
        (root / str(glibc)[1:]).mkdir(parents=True, exist_ok=True)
        shutil.copy(glibc / name, root / str(glibc)[1:])
    (root / str(interpreter.parent)[1:]).mkdir(parents=True, exist_ok=True)
    shutil.copy(interpreter, root / str(interpreter)[1:])
    (root / "tmp").mkdir()
    shutil.copy(DIST / "fusermount3", root / "usr/bin/fusermount3")
    image_with_proc.mount("/usr/bin/fusermount3", ["--", "/mnt"])
    assert list((root / "tmp").iterdir()) == []


def test_read_only_root_and_any_user(image_with_proc: Image, stand_in: Asked) -> None:
    image_with_proc.read_only = True
    image_with_proc.mount(f"{PLACE}/fusermount3", ["--", "/mnt"], uid=65533)


def test_working_directory_is_gone(image_with_proc: Image, stand_in: Asked) -> None:
    def leave() -> None:
        os.mkdir("/gone")
        os.chdir("/gone")
        os.rmdir("/gone")

    image_with_proc.mount(f"{PLACE}/fusermount3", ["--", "/mnt"], before=leave)
    done = image_with_proc.run([f"{PLACE}/fusermount3", "--", "mnt"], {"_FUSE_COMMFD": "9"}, before=leave)
    assert done.returncode == 1
    assert re.fullmatch(rb"/opt/mfcp/fusermount3: [^\n]*\n", done.stderr)


# What it tolerates.

ODD_EVERYWHERE = [
    {},
    {"PYTHONHOME": "/nowhere", "PYTHONPATH": "/nowhere"},
    {"PYTHONINSPECT": "1", "PYTHONVERBOSE": "1", "PYTHONDEVMODE": "1", "PYTHONPROFILEIMPORTTIME": "1", "PYTHONWARNINGS": "error"},
    {"PYTHONMALLOC": "debug", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "warn", "PYTHONIOENCODING": "utf-16", "PYTHONOPTIMIZE": "x"},
    {"LC_ALL": "C"},
    {"LC_ALL": "POSIX", "LANG": "tr_TR.ISO-8859-9"},
    {"LC_ALL": "xx_YY.nothing"},
    # A FUSE program that is itself made with PyInstaller leaves these variables.
    {"_PYI_ARCHIVE_FILE": "/app/program", "_PYI_PARENT_PROCESS_LEVEL": "1", "_PYI_APPLICATION_HOME_DIR": "/tmp/_MEI1"},
    {"_PYI_ARCHIVE_FILE": "/app/program", "_PYI_PARENT_PROCESS_LEVEL": "7", "_PYI_LINUX_PROCESS_NAME": "x", "_PYI_SPLASH_IPC": "1"},
    {"PYINSTALLER_RESET_ENVIRONMENT": "1", "PYINSTALLER_STRICT_UNPACK_MODE": "1"},
]
ODD_FOR_THE_TREE = [
    {"LD_PRELOAD": "/nowhere.so"},
    {"LD_PRELOAD": "/odd/libc.so.6", "LD_LIBRARY_PATH": "/odd"},
    {"LD_LIBRARY_PATH": "/odd:/opt/mfcp"},
    {"LD_AUDIT": "/nowhere.so", "LD_DEBUG": "all", "LD_BIND_NOW": "1", "LD_SHOW_AUXV": "1"},
    {"LD_TRACE_LOADED_OBJECTS": "1"},
    {"GLIBC_TUNABLES": "glibc.malloc.check=3:nonsense", "MALLOC_PERTURB_": "7", "LOCPATH": "/odd", "GCONV_PATH": "/odd"},
    {"LC_ALL": "ja_JP.EUC-JP", "LOCPATH": "/odd"},
    {"TMPDIR": "/nowhere", "TZ": ":/odd/libc.so.6", "PATH": ""},
    {"": "an empty name"},
]


@pytest.mark.parametrize("odd", ODD_EVERYWHERE + ODD_FOR_THE_TREE, ids=str)
def test_tree_with_an_odd_environment(image_with_proc: Image, stand_in: Asked, odd: dict[str, str]) -> None:
    # This is a file with the name of a library, and is none.
    (image_with_proc.root / "odd").mkdir()
    for name in ("libc.so.6", "libz.so.1", "libpython3.11.so.1.0", "libm.so.6"):
        (image_with_proc.root / "odd" / name).write_text("nothing")
    done = image_with_proc.mount(f"{PLACE}/fusermount3", ["--", "/mnt"], odd)
    assert (done.stdout, done.stderr) == (b"", b"")


@pytest.mark.parametrize("odd", ODD_EVERYWHERE, ids=str)
def test_single_file_with_an_odd_environment(machine: Image, tmp_path: Path, stand_in: Asked, odd: dict[str, str]) -> None:
    env = {VARIABLE: str(stand_in.path), "TMPDIR": str(tmp_path), **odd}
    done = machine.mount(str(DIST / "fusermount3"), ["--", "/mnt"], env)
    assert (done.stdout, done.stderr) == (b"", b"")
    assert not list(tmp_path.glob("_MEI*"))


def test_tree_with_preloaded_libraries_of_the_image(image: Image) -> None:
    (image.root / "etc").mkdir()
    (image.root / "etc/ld.so.preload").write_text("/usr/lib/libnowhere.so\n")
    done = image.run([f"{PLACE}/fusermount3", "-V"])
    assert (done.stdout, done.stderr) == (VERSION.encode(), b"")


@both_forms
def test_environment_of_go_fuse(machine: Image, stand_in: Asked, form: str) -> None:
    """go-fuse starts its helper with only _FUSE_COMMFD: the socket is found in the environment of the program itself."""
    parent = f"{VARIABLE}={stand_in.path}"
    start = ["/usr/bin/env", parent, "/bin/sh", "-c", '"$@"; exit $?', "sh", "/usr/bin/env", "-i"]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        command = [*start, f"_FUSE_COMMFD={theirs.fileno()}", program_of(form, "fusermount3"), "/mnt", "-o", "ro"]
        done = machine.run(command, pass_fds=(theirs.fileno(),))
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        assert len(socket.recv_fds(ours, 100, 10)[1]) == 1


@both_forms
@pytest.mark.parametrize("locale", [{}, {"LC_ALL": "C"}, {"LC_ALL": "xx_YY.ISO-8859-1"}, {"LC_ALL": "C.UTF-8"}], ids=str)
def test_arguments_of_any_bytes(machine: Image, stand_in: Asked, tmp_path: Path, form: str, locale: dict[str, str]) -> None:
    mountpoint = os.fsencode(tmp_path) + b"/\xff\xe9 \xe2\x82\xac\n"
    os.mkdir(mountpoint)
    env = {VARIABLE: str(stand_in.path), **locale}
    machine.mount(program_of(form, "fusermount3"), ["-o", b"fsname=\xfe\xe2\x82\xac", "--", mountpoint], env)
    assert stand_in.requests[0]["mountpoint"] == mountpoint.decode("latin-1")
    assert stand_in.requests[0]["options"] == b"fsname=\xfe\xe2\x82\xac".decode("latin-1")


@both_forms
@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (1, 2), (0, 1, 2)])
def test_closed_standard_fds(machine: Image, stand_in: Asked, form: str, closed: tuple[int, ...]) -> None:
    env = {VARIABLE: str(stand_in.path)}
    done = machine.mount(program_of(form, "fusermount3"), ["--", "/mnt"], env, closed=closed)
    assert (done.stdout, done.stderr) == (b"", b"")
    # A line that can go nowhere must not go to the driver, whose connection may have number 2.
    assert [request.get("op") for request in stand_in.requests] == ["mount"]
    assert machine.run([program_of(form, "fusermount3"), "--", "/mnt"], {**env, "_FUSE_COMMFD": "99"}, closed=closed).returncode == 1


def test_many_variables_and_arguments(image_with_proc: Image, stand_in: Asked) -> None:
    many = {f"NAME{i}": "x" * 100 for i in range(5000)}
    image_with_proc.mount(f"{PLACE}/fusermount3", ["-o", "fsname=" + "y" * 16000, "--", "/mnt"], many)
    assert len(str(stand_in.requests[0]["options"])) == 16007


@both_forms
def test_the_original_protocol(machine: Image, image: Image, form: str) -> None:
    with answering(image.root / "fuse.sock", original=True) as stand_in:
        env = {VARIABLE: str(stand_in.path)}
        machine.mount(program_of(form, "fusermount3"), ["-o", "rw", "--", "/mnt"], env)
