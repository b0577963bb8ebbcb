"""Make images in which the frozen programs run without a container: a root directory, entered by chroot in a mount namespace."""

import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from standin_driver import StandIn, answer

from harness import mounts
from harness.pod import PLACE, TREE
from harness.programs import REPOSITORY, missing

DIST = REPOSITORY / "dist"
PROGRAMS = ("fusermount3", "fuse-starter")

VERSION = "fusermount3 version: 3.14.0\n"
FD_CONTENT = b"this is what the driver's fd reads"

both_forms = pytest.mark.parametrize("form", ["tree", "single"])


def program_of(form: str, name: str) -> str:
    """Return the path at which a program of the tree, or the single file, is started."""
    return f"{PLACE}/{name}" if form == "tree" else str(DIST / name)


def check_built() -> None:
    """Fail with one line where a frozen program is missing."""
    for name in ("mfcp", *PROGRAMS):
        if not (DIST / name).exists():
            missing(f"dist/{name} is missing: run packaging/build")


@dataclass
class Asked:
    """Holds where a stand-in for the driver listens, and the requests that it received."""

    path: Path
    requests: list[dict[str, object]]


@contextmanager
def answering(path: Path, original: bool = False) -> Iterator[Asked]:
    """Run a stand-in for the driver that answers each request with a volume's name and an fd."""
    asked = Asked(path, [])
    content = path.with_name("content")
    content.write_bytes(FD_CONTENT)

    def behaviour(connection: socket.socket) -> None:
        if not original:
            asked.requests.append(json.loads(connection.recv(1 << 17)))
        with open(content, "rb") as file:
            answer(connection, b'{"volumeName":"vol"}', file.fileno())
            # Anything else that arrives was not meant for the driver.
            if extra := connection.recv(1 << 16):
                asked.requests.append({"unexpected": repr(extra)})

    with StandIn(path, **{"original" if original else "v1": behaviour}):
        os.chmod(path if original else f"{path}.v1", 0o666)
        yield asked


class Image:
    """Represents a root directory in which programs are run, each in a mount namespace of its own.

    `binds` are pairs (source, target in the image). The image `/` is this machine's root, with the tree in its place.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.binds: list[tuple[Path, str]] = [(TREE, PLACE)]
        self.read_only = False

    def start(
        self,
        argv: Sequence[str | bytes],
        env: dict[str, str] | None = None,
        uid: int | None = None,
        closed: Sequence[int] = (),
        before: Callable[[], None] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> "subprocess.Popen[bytes]":
        """Start a program. `env` is its whole environment, `closed` are its closed standard fds, and `before` is called in the image."""

        def enter() -> None:
            self._enter()
            if before is not None:
                before()
            if uid is not None:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
            for fd in closed:
                os.close(fd)

        return subprocess.Popen(
            argv,
            env=env or {},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=pass_fds,
            preexec_fn=enter,
        )

    def run(
        self, argv: Sequence[str | bytes], env: dict[str, str] | None = None, **options: object
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run a program to its end; takes the options of start()."""
        process = self.start(argv, env, **options)  # type: ignore[arg-type]
        try:
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()
            process.wait()
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def mount(
        self, program: str, arguments: Sequence[str | bytes], env: dict[str, str] | None = None, **options: object
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run fusermount3 as a FUSE library does. Asserts that it passes on only the driver's fd."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours, theirs:
            env = {"_FUSE_COMMFD": str(theirs.fileno()), **(env or {})}
            done = self.run([program, *arguments], env, pass_fds=(theirs.fileno(),), **options)
            theirs.close()
            assert done.returncode == 0, done.stderr
            data, fds, _, _ = socket.recv_fds(ours, 100, 10)
            assert (data, len(fds)) == (b"\0", 1)
            with open(fds[0], "rb") as file:
                assert file.read() == FD_CONTENT
            assert ours.recv(100) == b""
        return done

    def _enter(self) -> None:
        mounts.enter_private_namespace()
        if self.root == Path("/"):
            mounts.cover(Path(PLACE).parent, Path(PLACE).name, "tmpfs", "tmpfs")
            os.mkdir(PLACE)
        else:
            mounts.call_mount(self.root, self.root, flags=mounts.MS_BIND)
        for source, target in self.binds:
            mounts.call_mount(source, f"{self.root}/{target.lstrip('/')}", flags=mounts.MS_BIND | mounts.MS_REC)
        if self.read_only:
            mounts.call_mount("none", self.root, flags=mounts.MS_REMOUNT | mounts.MS_BIND | mounts.MS_RDONLY)
        if self.root != Path("/"):
            os.chroot(self.root)
        os.chdir("/")
