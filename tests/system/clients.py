"""List the FUSE programs that are tested: how each is started, where it mounts, and what it does without being asked."""

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness.container import Bind, Container
from harness.kubelet import Published
from harness.pod import DATA, TEST_PROGRAMS, TREE, Pod
from harness.programs import crate_version, gcsfuse, gcsfuse_version, rust_program, static_fuse_program
from harness.servers import GcsServer, S3Server, SshServer

ELSEWHERE = "/elsewhere"

LIBFUSE = "libfuse"  # 2.9 or 3, as the distribution built it
GO_FUSE = "hanwen/go-fuse"
BAZIL = "bazil/fuse"
JACOBSA = "jacobsa/fuse"
FUSER = "fuser (Rust)"
FUSE3 = "fuse3 (Rust)"

# As root, libfuse tries umount(2) itself and does not call the helper; the driver then detaches the mount.
ROOT_WITHOUT_RIGHTS = "(fuse: failed to unmount {mountpoint}: Operation not permitted\n)?"

_SOURCE = "mkdir -p /source/folder && echo content >/source/folder/file"
_HOME = "HOME=/tmp"
_RCLONE = f"{_HOME} RCLONE_CONFIG=/tmp/rclone.conf rclone"


@dataclass(frozen=True)
class Client:
    """Represents one FUSE program.

    `file` is in its first mount, or that mount is empty and the test has to `fill` it. The program ends by the signal `stop` with
    one of `codes`. Its standard error is `always_prints`, and at its end `complains` or `complains_unmounted`:
    these are regular expressions, in which `{mountpoint}` is its mountpoint and `{root}` is libfuse's message for root.
    """

    name: str
    library: str
    command: str  # with {mountpoint}
    package: str = ""
    version: Callable[[], str] | None = None  # where no package contains the program
    setup: str = _SOURCE
    places: tuple[str, ...] = (DATA, ELSEWHERE)
    file: str = "folder/file"
    content: str = "content\n"
    fills: bool = False
    writes: bool = True
    goes_into_background: bool = False
    stop: str = "TERM"
    codes: tuple[int, ...] = (0,)
    always_prints: str = ""
    complains: str = "{root}"
    complains_unmounted: str = ""
    helpers: tuple[str, ...] = ()  # names of fusermount3 that only this program uses
    binds: Callable[[], list[Bind]] = list
    server: Callable[[Pod], "Server"] | None = None
    notes: str = ""
    is_long: bool = False

    @property
    def marks(self) -> list[pytest.MarkDecorator]:
        return [pytest.mark.long, pytest.mark.timeout(1800)] if self.is_long else []

    def stderr_pattern(self, pattern: str, mountpoint: str) -> str:
        """Return the regular expression for all of its standard error."""
        root = ROOT_WITHOUT_RIGHTS if "libfuse" in self.library else ""
        return (self.always_prints + pattern).replace("{root}", root).replace("{mountpoint}", mountpoint)

    def version_in(self, pod: Pod) -> str:
        """Return its version; the distribution's where a package contains it."""
        if self.version is not None:
            return self.version()
        query = ["dpkg-query", "--show", "--showformat=${Version}", self.package]
        answer = subprocess.run(query, capture_output=True, text=True)
        return re.sub(r"^\d+:|[-+~][^-]*$", "", answer.stdout) if answer.returncode == 0 else "?"

    @property
    def process(self) -> str:
        """Return the name of its process."""
        return self.name.split()[0]

    def container(self, pod: Pod, volume: Published) -> Container:
        """Start its container, with all that it needs."""
        binds = [*self.binds(), *(Bind(TREE / "fusermount3", helper, read_only=True) for helper in self.helpers)]
        if self.server is not None:
            server = self.server(pod)
            fuse = pod.fuse(volume, binds=[*binds, *server.binds], network=server.container)
        else:
            fuse = pod.fuse(volume, binds=binds)
        fuse.check(f"mkdir -p {ELSEWHERE}")
        if self.setup:
            fuse.check(self.setup, 60)
        return fuse


@dataclass(frozen=True)
class Server:
    """Holds what a program needs outside its container."""

    container: Container
    binds: tuple[Bind, ...] = ()


def _ssh(pod: Pod) -> Server:
    server = SshServer(pod)
    server.container.check("mkdir /srv/folder && echo content >/srv/folder/file")
    return Server(server.container, (server.key,))


def _s3(pod: Pod) -> Server:
    return Server(S3Server(pod).container)


def _gcs(pod: Pod) -> Server:
    return Server(GcsServer(pod).container)


def _program(find: Callable[[], Path], name: str) -> Callable[[], list[Bind]]:
    return lambda: [Bind(find(), f"/usr/bin/{name}", read_only=True)]


def _hello(crate: str, library: str, options: str = "", codes: tuple[int, ...] = (0,)) -> Client:
    """Return the program in programs/CRATE: a file system with one file that can only be read."""
    program = f"hello-{crate}"
    return Client(
        f"{program}{options}",
        library,
        f"{program}{options} {{mountpoint}}",
        version=lambda: crate_version(crate),
        setup="",
        file="hello",
        content="Hello World!\n",
        writes=False,
        codes=codes,
        binds=_program(lambda: rust_program(crate), program),
        notes="a program of these tests",
        is_long=True,
    )


_S3FS_OPTIONS = f"url={S3Server.URL},use_path_request_style,passwd_file=/tmp/password"

CLIENTS = [
    Client(
        "archivemount",
        LIBFUSE,
        "archivemount -f /archive.tar {mountpoint}",
        package="archivemount",
        setup=f"{_SOURCE} && tar -C /source -cf /archive.tar folder",
    ),
    Client(
        "avfsd",
        LIBFUSE,
        "avfsd -f {mountpoint}",
        package="avfs",
        setup=f"{_SOURCE} && tar -C /source -cf /archive.tar folder",
        file="archive.tar#/folder/file",
        is_long=True,
    ),
    Client(
        "cryfs",
        LIBFUSE,
        f"{_HOME} CRYFS_FRONTEND=noninteractive CRYFS_NO_UPDATE_CHECK=true sh -c 'exec cryfs -f /cipher {{mountpoint}} </password'",
        package="cryfs",
        setup="mkdir /cipher && echo password >/password",
        places=(ELSEWHERE,),
        fills=True,
        always_prints=r"(\[.*Filesystem started.\n)?",
        complains=r"{root}(\[.*Filesystem stopped.\n)?",
        complains_unmounted=r"(\[.*Filesystem stopped.\n)?",
        notes="not at the volume's own path: it tries to create a file in its mountpoint first, which the empty volume refuses",
        is_long=True,
    ),
    Client(
        "encfs",
        LIBFUSE,
        "encfs -f --standard --extpass='echo password' /cipher {mountpoint}",
        package="encfs",
        setup="mkdir /cipher",
        fills=True,
        is_long=True,
    ),
    Client(
        "fuse2fs",
        LIBFUSE,
        "fuse2fs -f -o fakeroot /image {mountpoint}",
        package="fuse2fs",
        setup=f"{_SOURCE} && mke2fs -q -t ext4 -d /source /image 8M",
    ),
    Client(
        "fuse-zip",
        LIBFUSE,
        "fuse-zip -f /archive.zip {mountpoint}",
        package="fuse-zip",
        setup=f"{_SOURCE} && cd /source && python3 -m zipfile -c /archive.zip folder",
        is_long=True,
    ),
    Client(
        "mergerfs",
        "libfuse 2.9, a copy of its own",
        "mergerfs -f /source:/other {mountpoint}",
        package="mergerfs",
        setup=f"{_SOURCE} && mkdir /other",
        helpers=("/usr/bin/mergerfs-fusermount",),
        notes="has a helper name of its own: link `mergerfs-fusermount` too",
    ),
    Client(
        "python3 fusepy",
        LIBFUSE,
        "python3 /programs/fusepy_loopback.py /source {mountpoint}",
        package="python3-fusepy",
        binds=lambda: [TEST_PROGRAMS],
    ),
    Client(
        "s3fs",
        LIBFUSE,
        f"s3fs {S3Server.BUCKET} {{mountpoint}} -f -o {_S3FS_OPTIONS}",
        package="s3fs",
        setup="umask 077 && echo access:secret >/tmp/password",
        fills=True,
        server=_s3,
    ),
    Client(
        "unionfs",
        LIBFUSE,
        "unionfs -f -o cow /upper=RW:/source=RO {mountpoint}",
        package="unionfs-fuse",
        setup=f"{_SOURCE} && mkdir /upper",
    ),
    Client("bindfs", LIBFUSE, "bindfs -f /source {mountpoint}", package="bindfs"),
    Client(
        "borg mount",
        LIBFUSE,
        f"{_HOME} borg mount -f /repository::one {{mountpoint}}",
        package="borgbackup",
        setup=f"{_SOURCE} && cd /source && export {_HOME} && borg init -e none /repository && borg create /repository::one folder",
        writes=False,
        complains="(.*RuntimeWarning: Trio guest run got abandoned .*\n)?{root}",
        is_long=True,
    ),
    Client(
        "fuse-overlayfs",
        LIBFUSE,
        "fuse-overlayfs -f -o lowerdir=/source,upperdir=/upper,workdir=/workdir {mountpoint}",
        package="fuse-overlayfs",
        setup=f"{_SOURCE} && mkdir /upper /workdir",
        codes=(1,),
        always_prints="(unknown argument ignored: lazytime\n)?",
    ),
    Client(
        "hello",
        "libfuse 3, static",
        "hello -f {mountpoint}",
        package="libfuse3-dev",
        setup="",
        file="hello",
        content="Hello World!\n",
        writes=False,
        binds=_program(static_fuse_program, "hello"),
        notes="libfuse's own example",
        codes=(8,),
        always_prints="(Ignoring invalid max threads value .*\n)?",
    ),
    Client(
        "squashfuse",
        LIBFUSE,
        "squashfuse -f /image {mountpoint}",
        package="squashfuse",
        setup=f"{_SOURCE} && mksquashfs /source /image -quiet -no-progress",
        writes=False,
        codes=(8,),
    ),
    Client(
        "sshfs",
        LIBFUSE,
        f"sshfs -f {SshServer.OPTIONS} root@127.0.0.1:/srv {{mountpoint}}",
        package="sshfs",
        setup="",
        server=_ssh,
        codes=(1,),
    ),
    # ---- go-fuse: calls only fusermount3, with an empty environment, and looks into its mountpoint afterwards
    Client(
        "gocryptfs",
        GO_FUSE,
        "gocryptfs -q -fg -passfile /password /cipher {mountpoint}",
        package="gocryptfs",
        # The lowest cost that the program accepts: the strength of the key is not tested.
        setup="mkdir /cipher && echo password >/password && gocryptfs -q -init -scryptn 10 -passfile /password /cipher",
        places=(DATA,),
        codes=(0, 15),  # its main program (0) and its signal handler both end it, and either can be first
        fills=True,
        notes="mounts at the volume's own path only",
    ),
    Client(
        "rclone mount2",
        GO_FUSE,
        f"{_RCLONE} mount2 --allow-non-empty --vfs-cache-mode writes :local:/source {{mountpoint}}",
        package="rclone",
        setup=f"{_SOURCE} && touch /tmp/rclone.conf",
        places=(DATA,),
        codes=(0, 143),  # see gocryptfs
        complains="(.* ERROR : {mountpoint}: Unmounted rclone mount\n)?",
        notes="mounts at the volume's own path only, with `--allow-non-empty`",
    ),
    # ---- bazil/fuse
    Client(
        "rclone mount",
        BAZIL,
        f"{_RCLONE} mount --allow-non-empty --vfs-cache-mode writes :local:/source {{mountpoint}}",
        package="rclone",
        setup=f"{_SOURCE} && touch /tmp/rclone.conf",
        codes=(0, 143),  # see gocryptfs
        complains="(.* ERROR : {mountpoint}: Unmounted rclone mount\n)?",
        notes="at the volume's own path with `--allow-non-empty`",
    ),
    Client(
        "rclone mount --daemon",
        BAZIL,
        f"{_RCLONE} mount --daemon --allow-non-empty --vfs-cache-mode writes :local:/source {{mountpoint}}",
        package="rclone",
        setup=f"{_SOURCE} && touch /tmp/rclone.conf",
        places=(DATA,),
        complains="(.* ERROR : {mountpoint}: Unmounted rclone mount\n)?",
        goes_into_background=True,
        notes="waits until it sees its mount: at the volume's own path, with `--allow-non-empty`",
    ),
    Client(
        "restic mount",
        BAZIL,
        f"{_HOME} RESTIC_PASSWORD=x restic -q -r /repository mount {{mountpoint}}",
        package="restic",
        setup=(
            f"{_SOURCE} && export {_HOME} RESTIC_PASSWORD=x RESTIC_REPOSITORY=/repository && cd /source "
            "&& restic -q init && restic -q backup folder"
        ),
        file="snapshots/latest/folder/file",
        writes=False,
        stop="INT",
        codes=(0, 130),  # see gocryptfs
        complains=r"\x1b\[2Ksignal interrupt received, cleaning up\n",
        complains_unmounted="unable to umount .*: entry for {mountpoint} not found in /etc/mtab\n",
    ),
    # ---- jacobsa/fuse: first checks whether it may write to its mountpoint
    Client(
        "gcsfuse",
        JACOBSA,
        f"{_HOME} gcsfuse --foreground --log-severity=error --anonymous-access {GcsServer.OPTIONS} {GcsServer.BUCKET} {{mountpoint}}",
        version=gcsfuse_version,
        setup="",
        fills=True,
        binds=_program(gcsfuse, "gcsfuse"),
        server=_gcs,
        is_long=True,
    ),
    # ---- cberner's fuser, the library of mountpoint-s3: starts `fusermount3 -h` to find it
    _hello("fuser", FUSER),
    _hello("fuser", FUSER, " --auto-unmount", codes=(143,)),
    # ---- Sherlock's fuse3: one end of a SEQPACKET pair, read with no room for data after the helper's end
    _hello("fuse3", FUSE3),
]
