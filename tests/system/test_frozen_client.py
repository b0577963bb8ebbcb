"""The frozen fusermount3 and fuse-starter in dist/, in images of every kind: what they need, bear, and leave behind.

Needs root: images are made with mount namespaces and chroot.
"""

import array
import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

DIST = Path(__file__).resolve().parents[2] / "dist"
PLACE = "/opt/mfcp"
PROGRAMS = ("fusermount3", "fuse-starter")

CLONE_NEWNS = 0x00020000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18

VERSION = "fusermount3 version: 3.14.0\n"
FD_CONTENT = b"this is what the driver's fd reads"


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    for name in ("mfcp", *PROGRAMS):
        if not (DIST / name).exists():
            pytest.fail(f"dist/{name} is missing: run packaging/build")


class Driver:
    """Stands in for the driver: answers each request with a volume name and an fd, and keeps the request."""

    def __init__(self, path: Path, original: bool = False) -> None:
        self.path = path
        self.requests: list[dict[str, object]] = []
        self._original = original
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM if original else socket.SOCK_SEQPACKET)
        self._listener.bind(str(path) if original else f"{path}.v1")
        os.chmod(self._listener.getsockname(), 0o666)
        self._listener.listen()
        self._content = path.with_name("content")
        self._content.write_bytes(FD_CONTENT)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, open(self._content, "rb") as file:
                if not self._original:
                    self.requests.append(json.loads(connection.recv(1 << 17)))
                fds = array.array("i", [file.fileno()])
                connection.sendmsg([b'{"volumeName":"vol"}'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
                # Whatever else arrives was not meant for the driver.
                extra = connection.recv(1 << 16)
                if extra:
                    self.requests.append({"unexpected": repr(extra)})


class Image:
    """A root directory in which programs are run, each in a mount namespace of its own.

    `binds` are (source, target in the image). The image `/` is this machine's, with the tree in its place.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.binds: list[tuple[Path, str]] = [(DIST / "mfcp", PLACE)]
        self.read_only = False

    def start(self, argv: list[str | bytes], env: dict[str, str] | None = None, **options: object) -> "subprocess.Popen[bytes]":
        """Start a program; `env` is its whole environment. Options: uid, closed (std fds), before (called last), pass_fds."""
        uid, closed, before = options.get("uid"), options.get("closed", ()), options.get("before")

        def enter() -> None:
            self._enter()
            if before is not None:
                before()  # type: ignore[operator]
            if uid is not None:
                os.setgroups([])
                os.setgid(uid)  # type: ignore[arg-type]
                os.setuid(uid)  # type: ignore[arg-type]
            for fd in closed:  # type: ignore[attr-defined]
                os.close(fd)

        return subprocess.Popen(
            argv,
            env=env or {},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=options.get("pass_fds", ()),  # type: ignore[arg-type]
            preexec_fn=enter,
        )

    def run(self, argv: list[str | bytes], env: dict[str, str] | None = None, **options: object) -> "subprocess.CompletedProcess[bytes]":
        process = self.start(argv, env, **options)
        try:
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()
            process.wait()
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def mount(
        self, program: str, driver: Driver, options: list[str | bytes], env: dict[str, str] | None = None, **more: object
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run fusermount3 as a FUSE library does. Asserts that it passes on the driver's fd, and nothing else."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours, theirs:
            env = {"_FUSE_COMMFD": str(theirs.fileno()), **(env or {})}
            done = self.run([program, *options], env, pass_fds=(theirs.fileno(),), **more)
            theirs.close()
            assert done.returncode == 0, done.stderr
            data, fds, _, _ = socket.recv_fds(ours, 100, 10)
            assert (data, len(fds)) == (b"\0", 1)
            with open(fds[0], "rb") as file:
                assert file.read() == FD_CONTENT
            assert ours.recv(100) == b""
        return done

    def _enter(self) -> None:
        _checked(_libc.unshare(CLONE_NEWNS), "unshare")
        _mount("none", "/", MS_REC | MS_PRIVATE)
        if self.root == Path("/"):
            _mount("tmpfs", "/opt", 0, b"tmpfs")
            os.mkdir(PLACE)
        else:
            _mount(str(self.root), str(self.root), MS_BIND)
        for source, target in self.binds:
            _mount(str(source), f"{self.root}/{target.lstrip('/')}", MS_BIND | MS_REC)
        if self.read_only:
            _mount("none", str(self.root), MS_REMOUNT | MS_BIND | MS_RDONLY)
        if self.root != Path("/"):
            os.chroot(self.root)
        os.chdir("/")


_libc = ctypes.CDLL(None, use_errno=True)


def _mount(source: str, target: str, flags: int, fstype: bytes | None = None) -> None:
    _checked(_libc.mount(source.encode(), os.fsencode(target), fstype, ctypes.c_ulong(flags), None), f"mount {source} {target}")


def _checked(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), what)


@pytest.fixture
def image(tmp_path: Path) -> Image:
    """An image that holds nothing: no libc, no /proc, no /dev; a mountpoint and the folder of the socket."""
    root = tmp_path / "image"
    for folder in ("opt/mfcp", "usr/bin", "mnt", "proc", "fusermount3-proxy"):
        (root / folder).mkdir(parents=True)
    tmp_path.chmod(0o755)
    return Image(root)


@pytest.fixture
def image_with_proc(image: Image) -> Image:
    """The same with /proc, as every container has it."""
    image.binds.append((Path("/proc"), "/proc"))
    return image


@pytest.fixture
def machine() -> Image:
    return Image(Path("/"))


@pytest.fixture
def driver(image: Image) -> Iterator[Driver]:
    driver = Driver(image.root / "fusermount3-proxy" / "fuse.sock")
    yield driver
    driver.close()


def program_of(form: str, name: str) -> str:
    """The path at which a program is started: of the tree, or the single file."""
    return f"{PLACE}/{name}" if form == "tree" else str(DIST / name)


both_forms = pytest.mark.parametrize("form", ["tree", "single"])


# The files.


def test_sizes() -> None:
    tree = sum(path.lstat().st_size for path in (DIST / "mfcp").rglob("*") if not path.is_dir())
    # Debian's libpython makes them 12 and 9 MB at the most, Ubuntu's is larger.
    larger = 1_500_000 if "ID=ubuntu" in Path("/etc/os-release").read_text() else 0
    assert tree <= 12_000_000 + larger
    assert all((DIST / name).stat().st_size <= 9_000_000 + larger for name in PROGRAMS)
    assert all((DIST / "mfcp" / name).stat().st_size <= 1500 for name in PROGRAMS)


def test_any_user_may_read_and_nobody_may_write() -> None:
    for path in [DIST / "mfcp", *(DIST / "mfcp").rglob("*"), *(DIST / name for name in PROGRAMS)]:
        mode = stat.S_IMODE(path.lstat().st_mode)
        executable = path.is_dir() or path.read_bytes()[:4] == b"\x7fELF"
        assert mode == (0o755 if executable else 0o644), path


def test_names_no_place_of_the_build() -> None:
    # Those of the checkout, and not the checkout itself: that may be called /src, as other people's places of building are.
    places = [os.fsencode(DIST.parent / name) for name in ("dist", "fusermount3_proxy", "packaging", ".venv")]
    for path in [*(DIST / "mfcp").rglob("*"), *(DIST / name for name in PROGRAMS)]:
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
def test_runs_through_links(image_with_proc: Image, driver: Driver, path: str, links: dict[str, str]) -> None:
    for name, target in links.items():
        (image_with_proc.root / name).symlink_to(target)
    assert image_with_proc.run([path, "-V"]).stdout == VERSION.encode()
    image_with_proc.mount(path, driver, ["--", "/mnt"])


def test_runs_bound_alone(image_with_proc: Image, driver: Driver) -> None:
    (image_with_proc.root / "usr/bin/fusermount3").touch()
    image_with_proc.binds.append((DIST / "mfcp" / "fusermount3", "/usr/bin/fusermount3"))
    image_with_proc.mount("/usr/bin/fusermount3", driver, ["--", "/mnt"])


def test_installs_itself_in_a_volume_for_any_user(image: Image) -> None:
    (image.root / "to").mkdir()
    os.chown(image.root / "to", 1234, 1234)
    for _ in range(2):  # an init container may run again
        done = image.run([f"{PLACE}/install", "/to"], uid=1234)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"install: /opt/mfcp is in /to\n", b"")
    assert contents(image.root / "to") == contents(DIST / "mfcp")
    (image.root / "to" / "fusermount3").write_text("broken")
    assert image.run([f"{PLACE}/install", "/to"], uid=1234).returncode == 0
    assert contents(image.root / "to") == contents(DIST / "mfcp")


def test_says_why_it_cannot_install_itself(image: Image) -> None:
    (image.root / "to").mkdir()
    for arguments, code, text in [
        (["/to"], 1, "install: /to/"),
        (["/gone/to"], 1, "install: /gone/to: No such file or directory"),
        ([], 2, "install: give one folder; try install --help"),
        (["/to", "/to"], 2, "install: give one folder"),
        (["--bogus"], 2, "install: give one folder"),
    ]:
        done = image.run([f"{PLACE}/install", *arguments], uid=1234)
        assert (done.returncode, done.stdout) == (code, b"")
        assert done.stderr.decode().startswith(text)
        assert len(done.stderr.splitlines()) == 1


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Mode and content of every file below."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_mode, path.read_bytes()) for path in files}


@pytest.mark.parametrize(("name", "code"), [("fusermount3", 1), ("fuse-starter", 125), ("install", 1)])
def test_says_where_the_tree_must_be(image: Image, name: str, code: int) -> None:
    (image.root / f"usr/bin/{name}").touch()
    image.binds = [(DIST / "mfcp" / name, f"/usr/bin/{name}")]
    done = image.run([f"/usr/bin/{name}", "-V"])
    message = f"{name}: /opt/mfcp/_internal/{name} cannot be started: the folder mfcp must lie at /opt/mfcp\n"
    assert (done.returncode, done.stdout, done.stderr) == (code, b"", message.encode())


def test_the_single_file_needs_a_glibc_alone(image_with_proc: Image, driver: Driver) -> None:
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
    image_with_proc.mount("/usr/bin/fusermount3", driver, ["--", "/mnt"])
    assert list((root / "tmp").iterdir()) == []


def test_read_only_root_and_any_user(image_with_proc: Image, driver: Driver) -> None:
    image_with_proc.read_only = True
    image_with_proc.mount(f"{PLACE}/fusermount3", driver, ["--", "/mnt"], uid=65533)


def test_working_directory_is_gone(image_with_proc: Image, driver: Driver) -> None:
    def leave() -> None:
        os.mkdir("/gone")
        os.chdir("/gone")
        os.rmdir("/gone")

    image_with_proc.mount(f"{PLACE}/fusermount3", driver, ["--", "/mnt"], before=leave)
    done = image_with_proc.run([f"{PLACE}/fusermount3", "--", "mnt"], {"_FUSE_COMMFD": "9"}, before=leave)
    assert (done.returncode, done.stderr.count(b"\n"), done.stderr[:13]) == (1, 1, b"fusermount3: ")


# What it bears.

ODD_EVERYWHERE = [
    {},
    {"PYTHONHOME": "/nowhere", "PYTHONPATH": "/nowhere"},
    {"PYTHONINSPECT": "1", "PYTHONVERBOSE": "1", "PYTHONDEVMODE": "1", "PYTHONPROFILEIMPORTTIME": "1", "PYTHONWARNINGS": "error"},
    {"PYTHONMALLOC": "debug", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "warn", "PYTHONIOENCODING": "utf-16", "PYTHONOPTIMIZE": "x"},
    {"LC_ALL": "C"},
    {"LC_ALL": "POSIX", "LANG": "tr_TR.ISO-8859-9"},
    {"LC_ALL": "xx_YY.nothing"},
    # What a FUSE program leaves that is itself made with PyInstaller.
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
def test_tree_with_an_odd_environment(image_with_proc: Image, driver: Driver, odd: dict[str, str]) -> None:
    # A file that is no library, in the name of one.
    (image_with_proc.root / "odd").mkdir()
    for name in ("libc.so.6", "libz.so.1", "libpython3.11.so.1.0", "libm.so.6"):
        (image_with_proc.root / "odd" / name).write_text("nothing")
    done = image_with_proc.mount(f"{PLACE}/fusermount3", driver, ["--", "/mnt"], odd)
    assert (done.stdout, done.stderr) == (b"", b"")


@pytest.mark.parametrize("odd", ODD_EVERYWHERE, ids=str)
def test_single_file_with_an_odd_environment(machine: Image, tmp_path: Path, driver: Driver, odd: dict[str, str]) -> None:
    env = {"FUSERMOUNT3PROXY_FDPASSING_SOCKPATH": str(driver.path), "TMPDIR": str(tmp_path), **odd}
    done = machine.mount(str(DIST / "fusermount3"), driver, ["--", "/mnt"], env)
    assert (done.stdout, done.stderr) == (b"", b"")
    assert not list(tmp_path.glob("_MEI*"))


def test_tree_with_preloaded_libraries_of_the_image(image: Image) -> None:
    (image.root / "etc").mkdir()
    (image.root / "etc/ld.so.preload").write_text("/usr/lib/libnowhere.so\n")
    done = image.run([f"{PLACE}/fusermount3", "-V"])
    assert (done.stdout, done.stderr) == (VERSION.encode(), b"")


@both_forms
def test_environment_of_go_fuse(machine: Image, driver: Driver, form: str) -> None:
    """It starts its helper with _FUSE_COMMFD alone: the socket is found in the environment of the program itself."""
    parent = f"FUSERMOUNT3PROXY_FDPASSING_SOCKPATH={driver.path}"
    start = ["/usr/bin/env", parent, "/bin/sh", "-c", '"$@"; exit $?', "sh", "/usr/bin/env", "-i"]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        command = [*start, f"_FUSE_COMMFD={theirs.fileno()}", program_of(form, "fusermount3"), "/mnt", "-o", "ro"]
        done = machine.run(command, pass_fds=(theirs.fileno(),))
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        assert len(socket.recv_fds(ours, 100, 10)[1]) == 1


@both_forms
@pytest.mark.parametrize("locale", [{}, {"LC_ALL": "C"}, {"LC_ALL": "xx_YY.ISO-8859-1"}, {"LC_ALL": "C.UTF-8"}], ids=str)
def test_arguments_of_any_bytes(machine: Image, driver: Driver, tmp_path: Path, form: str, locale: dict[str, str]) -> None:
    mountpoint = os.fsencode(tmp_path) + b"/\xff\xe9 \xe2\x82\xac\n"
    os.mkdir(mountpoint)
    env = {"FUSERMOUNT3PROXY_FDPASSING_SOCKPATH": str(driver.path), **locale}
    machine.mount(program_of(form, "fusermount3"), driver, ["-o", b"fsname=\xfe\xe2\x82\xac", "--", mountpoint], env)
    assert driver.requests[0]["mountpoint"] == mountpoint.decode("latin-1")
    assert driver.requests[0]["options"] == b"fsname=\xfe\xe2\x82\xac".decode("latin-1")


@both_forms
@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (1, 2), (0, 1, 2)])
def test_closed_standard_fds(machine: Image, driver: Driver, form: str, closed: tuple[int, ...]) -> None:
    env = {"FUSERMOUNT3PROXY_FDPASSING_SOCKPATH": str(driver.path)}
    done = machine.mount(program_of(form, "fusermount3"), driver, ["--", "/mnt"], env, closed=closed)
    assert (done.stdout, done.stderr) == (b"", b"")
    # A line that has nowhere to go must not go to the driver, whose connection may have number 2.
    assert [request.get("op") for request in driver.requests] == ["mount"]
    assert machine.run([program_of(form, "fusermount3"), "--", "/mnt"], {**env, "_FUSE_COMMFD": "99"}, closed=closed).returncode == 1


def test_many_variables_and_arguments(image_with_proc: Image, driver: Driver) -> None:
    many = {f"NAME{i}": "x" * 100 for i in range(5000)}
    image_with_proc.mount(f"{PLACE}/fusermount3", driver, ["-o", "fsname=" + "y" * 16000, "--", "/mnt"], many)
    assert len(str(driver.requests[0]["options"])) == 16007


@both_forms
def test_the_original_protocol(machine: Image, image: Image, form: str) -> None:
    driver = Driver(image.root / "fuse.sock", original=True)
    with contextlib.closing(driver):
        env = {"FUSERMOUNT3PROXY_FDPASSING_SOCKPATH": str(driver.path)}
        machine.mount(program_of(form, "fusermount3"), driver, ["-o", "rw", "--", "/mnt"], env)


# What fuse-starter leaves to its program.


def starter(form: str, driver: Driver, *program: str | bytes) -> list[str | bytes]:
    return [program_of(form, "fuse-starter"), "--fd-passing-socket-path", str(driver.path), "--", *program]


ENVIRONMENTS = [
    {},
    {"PATH": "/usr/bin:/bin", "HOME": "/", "EMPTY": "", "LINES": "a\nb", "EQUALS": "=a=b"},
    {"LD_LIBRARY_PATH": "/nowhere:/else", "LD_BIND_NOW": "1"},
    {"PYTHONHOME": "/nowhere", "PYTHONPATH": "/nowhere", "PYTHONUTF8": "0", "LC_ALL": "xx_YY", "LANG": "C", "TMPDIR": "/tmp"},
    {"\udcff\udcfe": "\udcff", "\u20ac": "\u20ac", "_": "x"},
]


@both_forms
@pytest.mark.parametrize("env", ENVIRONMENTS, ids=ascii)
def test_program_gets_the_environment_unchanged(machine: Image, driver: Driver, form: str, env: dict[str, str]) -> None:
    done = machine.run(starter(form, driver, "/usr/bin/env", "-0"), env)
    assert (done.returncode, done.stderr) == (0, b"")
    assert sorted(done.stdout.split(b"\0")[:-1]) == sorted(os.fsencode(f"{name}={value}") for name, value in env.items())


def test_program_gets_what_steers_the_dynamic_loader(machine: Image, driver: Driver) -> None:
    env = {"LD_PRELOAD": "libm.so.6", "LD_LIBRARY_PATH_ORIG": "/mine", "GLIBC_TUNABLES": "glibc.malloc.check=0", "LD_LIBRARY_PATH": ""}
    done = machine.run(starter("tree", driver, "/usr/bin/env", "-0"), env)
    assert sorted(done.stdout.split(b"\0")[:-1]) == sorted(f"{name}={value}".encode() for name, value in env.items())


@both_forms
def test_program_gets_its_arguments_unchanged(machine: Image, driver: Driver, form: str) -> None:
    arguments = [b"", b" ", b"-x", b"--", b"\xff\xfe", "\u20ac".encode(), b"a\nb", b"--init"]
    done = machine.run(starter(form, driver, "/bin/sh", "-c", 'printf "%s\\0" "$0" "$@"', "name", *arguments))
    assert done.stdout.split(b"\0")[:-1] == [b"name", *arguments]


@both_forms
def test_program_gets_fd_3_and_no_other(machine: Image, driver: Driver, form: str) -> None:
    done = machine.run(starter(form, driver, "/bin/sh", "-c", "echo /proc/$$/fd/*; cat <&3"))
    fds, content = done.stdout.split(b"\n", 1)
    numbers = {int(name.rpartition(b"/")[2]) for name in fds.split()}
    # dash opens the folder to expand the star.
    assert {0, 1, 2, 3} <= numbers <= {0, 1, 2, 3, 4}
    assert content == FD_CONTENT


@both_forms
def test_program_gets_default_signals(machine: Image, driver: Driver, form: str) -> None:
    """Python ignores SIGPIPE and SIGXFSZ; a program that inherited that would not die of a closed pipe."""
    status = machine.run(starter(form, driver, "/bin/cat", "/proc/self/status")).stdout.decode()
    assert [re.search(rf"{name}:\s*(\w+)", status)[1].lstrip("0") for name in ("SigIgn", "SigBlk", "SigCgt")] == ["", "", ""]


@both_forms
def test_program_gets_the_signals_that_were_ignored_and_blocked(machine: Image, driver: Driver, form: str) -> None:
    def before() -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])

    status = machine.run(starter(form, driver, "/bin/cat", "/proc/self/status"), before=before).stdout.decode()
    masks = [int(re.search(rf"{name}:\s*(\w+)", status)[1], 16) for name in ("SigIgn", "SigBlk")]
    assert masks == [1 << (signal.SIGUSR1 - 1), 1 << (signal.SIGUSR2 - 1)]


@both_forms
@pytest.mark.parametrize("code", [0, 7, 125])
def test_exit_code_is_the_programs(machine: Image, driver: Driver, form: str, code: int) -> None:
    assert machine.run(starter(form, driver, "/bin/sh", "-c", f"exit {code}")).returncode == code


@both_forms
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_program_and_its_death_is_seen(machine: Image, driver: Driver, form: str, tmp_path: Path, number: int) -> None:
    process = machine.start(starter(form, driver, "/bin/sh", "-c", "exec sleep 30"), {"TMPDIR": str(tmp_path)})
    with process:
        _wait_until(lambda: _descends_to(process.pid, "sleep"))
        process.send_signal(number)
        assert process.wait(10) == -number
    assert not list(tmp_path.glob("_MEI*"))


def test_the_tree_becomes_the_program(machine: Image, driver: Driver) -> None:
    process = machine.start(starter("tree", driver, "/bin/sh", "-c", "echo $$"))
    out, _ = process.communicate(timeout=10)
    assert int(out) == process.pid


@both_forms
@pytest.mark.parametrize(("program", "code"), [("/nowhere/program", 127), ("/etc/passwd", 126)])
def test_program_that_does_not_start(machine: Image, driver: Driver, form: str, program: str, code: int) -> None:
    done = machine.run(starter(form, driver, program))
    assert (done.returncode, done.stderr.count(b"\n")) == (code, 1)
    assert driver.requests == []


def test_init_forwards_and_reaps(machine: Image, driver: Driver) -> None:
    command = [program_of("tree", "fuse-starter"), "--fd-passing-socket-path", str(driver.path), "--init", "--"]
    env = {"LD_LIBRARY_PATH": "/x"}
    done = machine.run([*command, "/usr/bin/env", "-0"], env)
    assert (done.returncode, done.stdout) == (0, b"LD_LIBRARY_PATH=/x\0")
    assert machine.run([*command, "/bin/sh", "-c", "kill -TERM $PPID; sleep 10"]).returncode == 128 + signal.SIGTERM


def test_a_program_of_fuse_starter_runs_fusermount3(image_with_proc: Image, driver: Driver) -> None:
    """Nothing that the one frozen program leaves disturbs the other."""
    command = [f"{PLACE}/fuse-starter", "--fd-passing-socket-path", "/fusermount3-proxy/fuse.sock", "--", f"{PLACE}/fusermount3", "-V"]
    done = image_with_proc.run(command, {"LC_ALL": "xx_YY"})
    assert (done.returncode, done.stdout, done.stderr) == (0, VERSION.encode(), b"")


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited 10 s"
        time.sleep(0.01)


def _descends_to(pid: int, name: str) -> bool:
    """Whether the process or a descendant runs `name`: the single file's program is a child of its boot loader."""
    if Path(f"/proc/{pid}/comm").read_text().strip() == name:
        return True
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return any(_descends_to(int(child), name) for child in children)
