"""Run the two sides: libfuse's own set-uid fusermount3, and ours with a driver and a volume behind it.

Both get the same command line, environment and fds from one unprivileged user in the same folder, in a mount
namespace of the tests' own.
"""

import ctypes
import json
import os
import re
import socket
import stat
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from cases import FOLDERS, Before, Case, Words
from fuseserver import Server
from harness import mounts
from harness.events import wait_until
from harness.pod import VARIABLE
from launcher import LIMIT

USER = 65534  # nobody: fusermount3 needs a user that has a name
_FUSE = os.makedev(10, 229)
_TEXT_MAX = 1 << 20
_VERSION = re.compile(rb"version: [0-9.]+")
_HOLDER = re.compile(rb"(?<=Device or resource busy): .* has mounted it since .*")
_SIZE = re.compile(rb"the request has [0-9]+ bytes")

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Line:
    """Describes a mount without its place and its numbers."""

    fstype: str
    source: str
    options: frozenset[str]
    super_options: frozenset[str]
    is_folder: bool
    path: str = ""  # where both sides have the same one


@dataclass(frozen=True)
class Ended:
    """Holds how a program ended and what it printed, without the name that it calls itself by."""

    code: int
    out: bytes
    err: bytes


@dataclass(frozen=True)
class Outcome:
    """Holds what a caller can see: how it ended, what came over the comm fd, what is mounted, and the result of `-u` after a mount."""

    ended: Ended
    data: bytes = b""
    fds: tuple[str, ...] = ()
    lines: tuple[Line, ...] = ()
    after: Ended | None = None
    left: tuple[Line, ...] = ()


class Runs(Protocol):
    """Starts programs."""

    def run(self, path: str, argv: Words, environment: dict[bytes, bytes], folder: int, comm: int | None) -> Ended:
        """Run a program in the folder (an fd) to its end."""

    def close(self) -> None:
        """End what starts them."""


class Serves(Protocol):
    """Serves a file system."""

    def close(self) -> None:
        """End; call it after the unmount."""


class Launcher:
    """Runs launcher.py as a process."""

    def __init__(self, root: str) -> None:
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(2 * LIMIT)
        with other:
            program = Path(__file__).with_name("launcher.py")
            command = [sys.executable, program, root, str(USER), str(other.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[other.fileno()])

    def run(self, path: str, argv: Words, environment: dict[bytes, bytes], folder: int, comm: int | None) -> Ended:
        """Run a program in the folder (an fd) to its end."""
        fields = {
            "path": path,
            "argv": [word.decode("latin-1") for word in argv],
            "environment": {name.decode("latin-1"): value.decode("latin-1") for name, value in environment.items()},
        }
        request, out, err = (os.memfd_create(name) for name in ("request", "out", "err"))
        try:
            os.pwrite(request, json.dumps(fields).encode(), 0)
            socket.send_fds(self._socket, [b"x"], [request, out, err, folder, *([] if comm is None else [comm])])
            code = int(self._socket.recv(100))
            return Ended(code, os.pread(out, _TEXT_MAX, 0), os.pread(err, _TEXT_MAX, 0))
        finally:
            for fd in (request, out, err):
                os.close(fd)

    def close(self) -> None:
        """End the process."""
        self._socket.close()
        self._process.wait(LIMIT)


class Comm:
    """Represents the fd that the program finds as COMM, and receives what arrives at its other end."""

    def __init__(self, kind: str) -> None:
        self.fd: int | None = None
        self._open: list[socket.socket | int] = []
        self._peer: socket.socket | int | None = None
        first, _, state = kind.partition(", ")
        kinds = {"stream": socket.SOCK_STREAM, "seqpacket": socket.SOCK_SEQPACKET, "dgram": socket.SOCK_DGRAM, "full": socket.SOCK_STREAM}
        if first in kinds:
            mine, theirs = socket.socketpair(socket.AF_UNIX, kinds[first])
            self._use(theirs, mine)
            if first == "full":
                theirs.setblocking(False)
                try:
                    while True:
                        theirs.send(b"x" * 4096)
                except BlockingIOError:
                    pass
        elif first == "tcp":
            with socket.create_server(("127.0.0.1", 0)) as server:
                theirs = socket.create_connection(server.getsockname())
                self._use(theirs, server.accept()[0])
        elif first == "udp":
            mine, theirs = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
            mine.bind(("127.0.0.1", 0))
            theirs.connect(mine.getsockname())
            self._use(theirs, mine)
        elif first in ("listening", "unconnected", "unconnected dgram"):
            theirs = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM if "dgram" in first else socket.SOCK_STREAM)
            if first == "listening":
                theirs.bind(b"")
                theirs.listen()
            self._use(theirs, None)
        elif first == "pipe":
            self._use(*reversed(os.pipe()))
        elif first == "file":
            file = os.memfd_create("file")
            self._use(file, None)
        else:
            assert first == "closed", kind
        if state == "peer closed":
            assert isinstance(self._peer, socket.socket)
            self._peer.close()
            self._peer = None
        elif state == "peer shut":
            assert isinstance(self._peer, socket.socket)
            self._peer.shutdown(socket.SHUT_RD)
        elif state == "shut":
            assert isinstance(theirs, socket.socket)
            theirs.shutdown(socket.SHUT_WR)

    def _use(self, theirs: socket.socket | int, mine: socket.socket | int | None) -> None:
        self.fd = theirs if isinstance(theirs, int) else theirs.fileno()
        self._peer = mine
        self._open = [theirs] if mine is None else [theirs, mine]

    def receive(self) -> tuple[bytes, list[int]]:
        """Return what has arrived: bytes, and fds that the caller owns."""
        if self._peer is None:
            return b"", []
        if isinstance(self._peer, int):
            os.set_blocking(self._peer, False)
            try:
                return os.read(self._peer, 100), []
            except BlockingIOError:
                return b"", []
        self._peer.setblocking(False)
        data, fds = b"", []
        try:
            while True:
                part, more, _, _ = socket.recv_fds(self._peer, 100, 4)
                data, fds = data + part, fds + more
                if not part:
                    break
        except OSError:
            pass
        return data.lstrip(b"x"), fds

    def close(self) -> None:
        """Close both ends."""
        for end in self._open:
            if isinstance(end, socket.socket):
                end.close()
            else:
                os.close(end)


class Place:
    """Knows where the user's folder, the FUSE device and the configuration are in the tests' namespace."""

    def __init__(self, folder: Path, device: Path, conf: Path) -> None:
        self.folder = folder
        self.device = device
        self.conf = conf

    def absolute(self, mountpoint: bytes) -> bytes:
        """Return the absolute path of a mountpoint, without following its last name."""
        path = os.path.join(os.fsencode(self.folder), mountpoint).rstrip(b"/") or b"/"
        parent, last = os.path.split(path)
        return os.path.realpath(path) if last in (b".", b"..") else os.path.join(os.path.realpath(parent), last)

    def set_up(self, case: Case) -> None:
        """Set up what both sides share."""
        self.conf.write_bytes(case.conf)
        self.device.chmod(case.device_mode)


class Side:
    """Represents one of the two sides."""

    program = "/usr/bin/fusermount3"

    def __init__(self, place: Place, root: Path | str, launcher: Runs | None = None) -> None:
        """Run programs below `root`, by `launcher` where another one than usual starts them."""
        self.place = place
        self._launcher = launcher or Launcher(str(root))
        self._folder = os.open(f"{root}/{place.folder}", os.O_PATH | os.O_DIRECTORY)
        self.version = self._launcher.run(self.program, (b"fusermount3", b"-V"), {}, self._folder, None).out.split()[-1].decode()

    def run(self, case: Case) -> Outcome:
        """Run the case, see what it has done, and undo that."""
        servers: list[Serves] = []
        held: list[int] = []
        comm = Comm(case.comm)
        try:
            if case.before is not Before.NOTHING:
                self._mount_before(case.before, servers, held)
            self.place.set_up(case)
            mountpoint = self.place.absolute(case.mountpoint)  # before a mount hides the way to it
            ended = self._run(case, comm.fd)
            self.place.set_up(Case(()))
            data, fds = comm.receive()
            held += fds
            outcome = Outcome(ended, data, tuple(_kind(fd) for fd in fds), self.lines())
            if case.before is Before.NOTHING and outcome.lines:
                after = self._run(Case((b"-u", b"--", mountpoint)), None)
                outcome = replace(outcome, after=after, left=self.lines())
            return outcome
        finally:
            self.unmount()
            comm.close()
            for fd in held:
                os.close(fd)
            for server in servers:
                server.close()

    def lines(self) -> tuple[Line, ...]:
        """Return the FUSE mounts, topmost last."""
        return tuple(line_of(mount, self._seen_at(mount)) for mount in self._mounts())

    def close(self) -> None:
        """End what was started."""
        self._launcher.close()
        os.close(self._folder)

    def unmount(self) -> None:
        """Unmount every FUSE mount of this side."""
        raise NotImplementedError

    def _mounts(self) -> list[mounts.Mount]:
        raise NotImplementedError

    def _seen_at(self, mount: mounts.Mount) -> str:
        """Return the path at which the tests see a mount."""
        return mount.path

    def _environment(self) -> dict[bytes, bytes]:
        return {}

    def _run(self, case: Case, comm: int | None) -> Ended:
        environment = {**self._environment(), **dict(case.environment)}
        if case.comm_fd is not None:
            environment[b"_FUSE_COMMFD"] = case.comm_fd
        ended = self._launcher.run(self.program, (case.name, *case.arguments), environment, self._folder, comm)
        # Each side begins its lines with the name by which it was called.
        out, err = (re.sub(b"(?m)^" + re.escape(case.name) + b": ", b"", text) for text in (ended.out, ended.err))
        err = _SIZE.sub(b"the request has N bytes", _HOLDER.sub(b"", err))
        return Ended(ended.code, _VERSION.sub(b"version: N", out), err)

    def _mount_before(self, before: Before, servers: list[Serves], held: list[int]) -> None:
        fd = self._mount(before)
        if before is Before.DEAD:
            os.close(fd)
            self._after_death()
            return
        servers.append(self._server(fd))
        if before is Before.BUSY:
            held.append(os.open(self._seen_at(self._mounts()[-1]), os.O_PATH))

    def _server(self, fd: int) -> Serves:
        return Server(fd)

    def _mount(self, before: Before = Before.MOUNTED) -> int:
        """Mount at `m`, and return the fd that serves the mount."""
        comm = Comm("stream")
        try:
            ended = self._run(Case((*self._options(before), b"--", b"m")), comm.fd)
            _, (fd,) = comm.receive()
        finally:
            comm.close()
        assert ended == Ended(0, b"", b"")
        return fd

    def _options(self, before: Before) -> Words:
        return ()

    def _after_death(self) -> None:
        pass


class Reference(Side):
    """Runs libfuse's fusermount3."""

    def __init__(self, place: Place, root: Path = Path("/")) -> None:
        self._below = str(place.folder) if root == Path("/") else f"{root}{place.folder}"
        super().__init__(place, root)

    def unmount(self) -> None:
        for mount in reversed(self._mounts()):
            assert _libc.umount2(os.fsencode(mount.path), 2) == 0, os.strerror(ctypes.get_errno())

    def _mounts(self) -> list[mounts.Mount]:
        return [mount for mount in mounts.table() if mount.is_fuse and f"{mount.path}/".startswith(f"{self._below}/")]


class Ours(Side):
    """Runs our fusermount3 with the tree in its place, and a volume."""

    program = "/opt/mfcp/fusermount3"

    def __init__(self, place: Place, target: Path, sockets: Path) -> None:
        self._target = str(target)
        self._sockets = sockets
        super().__init__(place, Path("/"))

    def unmount(self) -> None:
        self._take_off()
        # The driver remembers where a program died, for the first -u after that. The next mount ends this.
        fd = self._mount()
        self._take_off()
        os.close(fd)

    def _take_off(self) -> None:
        for mount in self._mounts():
            self._request(op="unmount", mountpoint="", lazy=True, dev=mount.device)
        self._after_death()

    def _mount(self, before: Before = Before.MOUNTED) -> int:
        (fd,) = self._request(op="mount", mountpoint=os.fsdecode(self.place.absolute(b"m")), options="")
        return fd

    def _request(self, **request: object) -> list[int]:
        """Send what our fusermount3 would send, without starting it; returns the fds of the answer."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(LIMIT)
            # The driver mounts for every process that connects.
            os.setegid(USER)
            os.seteuid(USER)
            try:
                connection.connect(f"{self._sockets}/fuse.sock.v1")
            finally:
                os.seteuid(0)
                os.setegid(0)
            connection.send(json.dumps({**request, "fds": []}).encode())
            return socket.recv_fds(connection, 1 << 16, 1)[1]

    def _mounts(self) -> list[mounts.Mount]:
        return [mount for mount in mounts.table() if mount.path == self._target and mount.is_fuse]

    def _environment(self) -> dict[bytes, bytes]:
        return {VARIABLE.encode(): os.fsencode(self._sockets / "fuse.sock")}

    def _after_death(self) -> None:
        wait_until("the volume is not mounted", lambda: not self._mounts())


def line_of(mount: mounts.Mount, seen_at: str) -> Line:
    """Return a mount without its place; the tests see it at `seen_at`."""
    try:
        # It asks the file system nothing.
        os.close(os.open(seen_at, os.O_PATH | os.O_DIRECTORY))
        is_folder = True
    except NotADirectoryError:
        is_folder = False
    except OSError:  # a file system above it lets no other user in, hides it, or is dead
        is_folder = True
    return Line(mount.fstype, mount.source, mount.options, mount.super_options, is_folder)


def _kind(fd: int) -> str:
    found = os.fstat(fd)
    return "fuse" if stat.S_ISCHR(found.st_mode) and found.st_rdev == _FUSE else f"{found.st_mode:o}"


def make_mountpoints(folder: Path) -> None:
    """Make everything that cases.MOUNTPOINTS names."""

    def made(name: bytes, mode: int = 0o755, owner: int = USER) -> None:
        path = os.fsencode(folder) + b"/" + name
        os.mkdir(path)
        os.chown(path, owner, owner)
        os.chmod(path, mode)

    for name in (*FOLDERS, b"-m", b"inner", b"inner/m"):
        made(name)
    for name, target in {
        "link": "m",
        "dangling": "nowhere",
        "loop": "loop",
        "inner/link": "../m",
        "link-to-inner": "inner",
        "link-to-here": ".",
    }.items():
        (folder / name).symlink_to(target)
    for name, mode, owner in (("file", 0o644, USER), ("readonly-file", 0o444, 0)):
        (folder / name).touch()
        os.chown(folder / name, owner, owner)
        (folder / name).chmod(mode)
    os.mkfifo(folder / "fifo", 0o666)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(folder / "socket"))
    made(b"readonly", 0o555, 0)
    made(b"sticky", 0o1777, 0)
    made(b"locked", 0o700, 0)
    made(b"locked/x", 0o777, 0)
    made(b"unreadable", 0o300)
    made(b"unsearchable", 0o600)
    made(b"unsearchable/m")
