"""List the FUSE programs that are tested: how each is started, where it mounts, and what it does without being asked."""

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness.container import Bind, Container
from harness.device import FOLDER, Device
from harness.kubelet import Published
from harness.pod import DATA, TEST_PROGRAMS, TREE, Pod
from harness.programs import (
    crate_version,
    gcsfuse,
    gcsfuse_version,
    java_program,
    locked_version,
    node_program,
    python_packages,
    rust_program,
    static_fuse_program,
)
from harness.servers import GcsServer, S3Server, SshServer

ELSEWHERE = "/elsewhere"

LIBFUSE = "libfuse"  # 2.9 or 3, as the distribution built it
GO_FUSE = "hanwen/go-fuse"
BAZIL = "bazil/fuse"
JACOBSA = "jacobsa/fuse"
FUSER = "fuser (Rust)"
POLYFUSE = "polyfuse (Rust)"
FUSE_BACKEND = "fuse-backend-rs (Rust)"
FUSE3 = "fuse3 (Rust)"

# As root, libfuse tries umount(2) itself and does not call the helper; the driver then detaches the mount.
# libfuse 3.17 starts umount(8).
ROOT_WITHOUT_RIGHTS = (
    "(fuse: failed to unmount {mountpoint}: Operation not permitted\n|umount: {mountpoint}: must be superuser to unmount.\n)?"
)
CLONES = "(fuse: failed to clone device fd: .*\nfuse: trying to continue without -o clone_fd.\n)?"  # by itself with libfuse 3.17

_SOURCE = "mkdir -p /source/folder && echo content >/source/folder/file"
_HOME = "HOME=/tmp"
# A RELEASE comes after close(2) has returned, so an unmount may cut it off.
_GO_FUSE_UNMOUNTED = "(.* writer: Write/Writev failed, err: 2=no such file or directory. opcode: RELEASE\n)*"
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
    daemon: str = ""  # the name of the process in the background, where that is not the first word of `name`
    runs_on: bool = False  # the process does not end with its mount
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
    waits_for_users: bool = False  # told to stop, it unmounts lazily, and ends when nobody uses its file system any more

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
        return self.daemon or self.name.split()[0]

    def container(self, pod: Pod, volume: Published) -> Container:
        """Start its container, with all that it needs."""
        binds = self._all_binds()
        if self.server is not None:
            server = self.server(pod)
            fuse = pod.fuse(volume, binds=[*binds, *server.binds], network=server.container)
        else:
            fuse = pod.fuse(volume, binds=binds)
        fuse.check(f"mkdir -p {ELSEWHERE}")
        return self._set_up(fuse)

    def container_with_device(self, pod: Pod, device: Device) -> Container:
        """Start its container with a fuse device and a folder to mount at, harness.device.FOLDER."""
        server = None if self.server is None else self.server(pod)
        if server is None:
            container = device.container(self._all_binds())
        else:
            container = device.container([*self._all_binds(), *server.binds], network=server.container)
        container.check(f"mkdir -p {FOLDER}")
        return self._set_up(container)

    def _all_binds(self) -> list[Bind]:
        return [*self.binds(), *(Bind(TREE / "fusermount3", helper, read_only=True) for helper in self.helpers)]

    def _set_up(self, container: Container) -> Container:
        if self.setup:
            container.check(self.setup, 60)
        return container


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


def _served(command: str, name: str, **others: object) -> Client:
    """Return a program in programs/ that serves one file that can only be read; `command` is its interpreter."""
    return Client(
        name,
        LIBFUSE,
        f"{command} {{mountpoint}}",
        setup="",
        file="hello",
        content="Hello World!\n",
        writes=False,
        **{"binds": lambda: [TEST_PROGRAMS], "notes": "a program of these tests", **others},  # type: ignore[arg-type]
    )


def _hello(crate: str, library: str, options: str = "", **others: object) -> Client:
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
        binds=_program(lambda: rust_program(crate), program),
        is_long=True,
        **{"notes": "a program of these tests", **others},  # type: ignore[arg-type]
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
        complains_unmounted="(mergerfs: error reading from /dev/fuse - No such device .*\n)*",
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
        is_long=True,
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
        always_prints=CLONES,
        setup="",
        server=_ssh,
        codes=(1,),
    ),
    Client(
        "wimmount",
        LIBFUSE,
        "wimmount /archive.wim {mountpoint}",
        package="wimtools",
        setup=f"{_SOURCE} && wimcapture /source /archive.wim --compress=none >/dev/null",
        writes=False,
        goes_into_background=True,
    ),
    Client(
        "wimmountrw",
        LIBFUSE,
        "wimmountrw /tmp/archive.wim {mountpoint}",
        package="wimtools",
        setup=f"{_SOURCE} && wimcapture /source /tmp/archive.wim --compress=none >/dev/null",
        goes_into_background=True,
        notes="keeps what was written only if `wimunmount --commit` unmounts it, at the volume's own path",
        is_long=True,
    ),
    Client(
        "casync mount",
        LIBFUSE,
        "casync mount /archive.catar {mountpoint}",
        package="casync",
        setup=f"{_SOURCE} && casync make /archive.catar /source",
        writes=False,
        always_prints="(The following feature flags are not exposed .*\n)?",
    ),
    Client(
        "nbdfuse",
        LIBFUSE,
        "nbdfuse -r {mountpoint}/file [ nbdkit --exit-with-parent file /image ]",
        package="libnbd-bin",
        setup="echo content >/image",
        file="file",
        writes=False,
        codes=(1,),
        complains="nbdfuse: fuse_loop: fuse loop terminated by signal 15\n{root}",
        notes="with a directory as the mountpoint, and not with a file",
    ),
    Client(
        "securefs",
        LIBFUSE,
        "securefs mount --pass password /cipher {mountpoint}",
        package="securefs",
        setup="mkdir /cipher && securefs create --pass password --rounds 1 /cipher",
        fills=True,
        always_prints=r"(\[Info\].*init\n)?",
        complains=r"{root}(\[Info\].*destroy\n)?",
        complains_unmounted=r"(\[Info\].*destroy\n)?",
        is_long=True,
    ),
    Client(
        "bup fuse",
        LIBFUSE,
        f"{_HOME} BUP_DIR=/repository bup fuse -f {{mountpoint}}",
        package="bup",
        setup=f"{_SOURCE} && export {_HOME} BUP_DIR=/repository && bup init && bup index /source && bup save -n one --strip /source",
        file="one/latest/folder/file",
        writes=False,
        notes="uses fuse-python",
        is_long=True,
    ),
    Client(
        "s3backer",
        LIBFUSE,
        "s3backer --test -f --quiet --blockSize=4096 --size=4096 /store {mountpoint}",
        package="s3backer",
        setup="mkdir /store && { echo content && head -c 4088 /dev/zero; } >/store/00000000",
        file="file",
        content="content\n" + 4088 * "\0",
        writes=False,
        always_prints="(s3backer: .*\n|.* INFO: .*\n)*",
        complains="{root}(.* INFO: .*\n)*",
        complains_unmounted="(.* INFO: .*\n)*",
        is_long=True,
    ),
    Client(
        "xmount",
        LIBFUSE,
        "xmount -o no_allow_other --in raw /image {mountpoint}",
        package="xmount",
        setup="echo content >/image",
        file="image.dd",
        writes=False,
        goes_into_background=True,
        is_long=True,
    ),
    Client(
        "ewfmount",
        LIBFUSE,
        "ewfmount -v /image.E01 {mountpoint}",
        package="ewf-tools",
        setup="{ echo content && head -c 65528 /dev/zero; } >/image && ewfacquire -u -q -t /image /image >/dev/null",
        file="ewf1",
        content="content\n" + 65528 * "\0",
        writes=False,
        codes=(143,),
        is_long=True,
    ),
    Client(
        "fuseiso",
        LIBFUSE,
        "fuseiso -n /image {mountpoint} -f",
        package="fuseiso",
        setup=f"{_SOURCE} && genisoimage -quiet -R -o /image /source",
        writes=False,
        is_long=True,
    ),
    Client(
        "fuseext2",
        LIBFUSE,
        "fuseext2 /image {mountpoint} -o rw+",
        package="fuseext2",
        setup=f"{_SOURCE} && mke2fs -q -t ext2 -d /source /image 8M",
        goes_into_background=True,
        is_long=True,
    ),
    Client(
        "grub-mount",
        LIBFUSE,
        "grub-mount /image {mountpoint}",
        package="grub-common",
        setup=f"{_SOURCE} && mke2fs -q -t ext2 -d /source /image 8M",
        writes=False,
        goes_into_background=True,
        is_long=True,
    ),
    Client(
        "disorderfs",
        LIBFUSE,
        "disorderfs -f --sort-dirents=yes --reverse-dirents=no /source {mountpoint}",
        package="disorderfs",
        is_long=True,
    ),
    Client("mount.posixovl", LIBFUSE, "mount.posixovl -S /source {mountpoint} -- -f", package="fuse-posixovl", is_long=True),
    Client(
        "convmvfs",
        LIBFUSE,
        "convmvfs -f -o srcdir=/source {mountpoint}",
        package="fuse-convmvfs",
        always_prints="(srcdir=/source\nicharset=.*\nocharset=.*\n)?",
        is_long=True,
    ),
    Client(
        "mhddfs",
        LIBFUSE,
        "mhddfs -f /source,/other {mountpoint}",
        package="mhddfs",
        setup=f"{_SOURCE} && mkdir /other",
        always_prints="(mhddfs: .*\n)*",
        is_long=True,
    ),
    Client("mp3fs", LIBFUSE, "mp3fs -f /source {mountpoint}", package="mp3fs", writes=False, is_long=True),
    Client(
        "rofiles-fuse",
        LIBFUSE,
        "rofiles-fuse -f /source {mountpoint}",
        package="ostree",
        always_prints="(Ignoring invalid max threads value .*\n)?",
        is_long=True,
    ),
    Client(
        "fossil fuse",
        LIBFUSE,
        "USER=root fossil fuse -R /repository {mountpoint}",
        package="fossil",
        setup=(
            f"{_SOURCE} && export {_HOME} USER=root && fossil init /repository && cd /source && fossil open -f /repository "
            "&& fossil add folder && fossil commit --no-warnings -m text"
        ),
        file="checkins/trunk/folder/file",
        writes=False,
        is_long=True,
    ),
    Client(
        "httpfs2",
        LIBFUSE,
        "httpfs2 -f -c /dev/null http://127.0.0.1:8000/folder/file {mountpoint}",
        package="httpfs2",
        setup=(
            f"{_SOURCE} && {{ {_RCLONE} serve http --addr 127.0.0.1:8000 /source >/log 2>&1 & }} "
            "&& until curl -sf http://127.0.0.1:8000/folder/file; do sleep 0.1; done"
        ),
        file="file",
        writes=False,
        always_prints="(file name: (.*\n)*file size: .*\n)?",
        is_long=True,
    ),
    Client(
        "squashfuse_ll",
        LIBFUSE,
        "squashfuse_ll -f /image {mountpoint}",
        package="squashfuse",
        always_prints=CLONES,
        setup=f"{_SOURCE} && mksquashfs /source /image -quiet -no-progress",
        writes=False,
        codes=(241,),
    ),
    # ---- started by mount(8), which needs no rights for that
    Client(
        "mount.fuse3",
        LIBFUSE,
        "mount -t fuse.bindfs /source {mountpoint} -o rw,nosuid,nodev,noatime",
        package="fuse3",
        goes_into_background=True,
        daemon="bindfs",
        notes="by `mount -t fuse.bindfs`",
    ),
    Client(
        "mount.rclone",
        BAZIL,
        f"{_HOME} mount -t rclone :local:/source {{mountpoint}} -o rw,allow_non_empty,vfs-cache-mode=writes,config=/tmp/rclone.conf",
        package="rclone",
        setup=f"{_SOURCE} && touch /tmp/rclone.conf && ln -s /usr/bin/rclone /sbin/mount.rclone",
        places=(DATA,),
        goes_into_background=True,
        daemon="rclone",
        complains="(.* ERROR : {mountpoint}: Unmounted rclone mount\n)?",
        notes="by `mount -t rclone`, where `/sbin/mount.rclone` is a link to rclone; otherwise as `rclone mount --daemon`",
    ),
    # ---- the bindings of libfuse to other languages
    Client(
        "ratarmount",
        LIBFUSE,
        "PYTHONPATH=/packages python3 -m ratarmount -f /archive.tar {mountpoint}",
        version=lambda: locked_version("ratarmount.txt", r"ratarmount==(\S+)"),
        setup=f"{_SOURCE} && tar -C /source -cf /archive.tar folder",
        writes=False,
        binds=lambda: [Bind(python_packages("ratarmount"), "/packages", read_only=True)],
        notes="uses mfusepy",
        is_long=True,
    ),
    _served("python3 /programs/hello_low_level.py llfuse", "python3 llfuse", package="python3-llfuse"),
    _served("python3 /programs/hello_low_level.py pyfuse3", "python3 pyfuse3", package="python3-pyfuse3", codes=(143,), is_long=True),
    _served("perl /programs/hello.pl", "perl Fuse", package="libfuse-perl", codes=(143,)),
    _served("ruby /programs/hello.rb", "ruby fusefs", package="ruby-fusefs", codes=(143,), runs_on=True, is_long=True),
    _served(
        "node /program/hello.js",
        "node fuse-native",
        version=lambda: locked_version("node/package.json", r'"fuse-native": "([^"]+)"'),
        binds=lambda: [Bind(node_program(), "/program", read_only=True)],
        places=(ELSEWHERE,),
        runs_on=True,
        notes="a program of these tests; not at the volume's own path: fuse-native finds a mount there and refuses",
        is_long=True,
    ),
    _served(
        "java -cp '/program:/program/lib/*' Hello",
        "java jnr-fuse",
        version=lambda: locked_version("java/pom.xml", r"<artifactId>jnr-fuse</artifactId>\s*<version>([^<]+)"),
        binds=lambda: [Bind(java_program(), "/program", read_only=True)],
        codes=(143,),
        is_long=True,
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
        complains_unmounted=_GO_FUSE_UNMOUNTED,
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
        complains_unmounted=_GO_FUSE_UNMOUNTED,
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
        complains_unmounted="(unable to umount .*: entry for {mountpoint} not found in /etc/mtab\n)?",
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
    _hello(
        "fuser",
        FUSER,
        waits_for_users=True,
        notes="a program of these tests; when it is told to stop, it waits for containers that started after the mount",
    ),
    _hello("fuser", FUSER, " --auto-unmount", codes=(143,)),
    # ---- Sherlock's fuse3: one end of a SEQPACKET pair, read with no room for data after the helper's end
    _hello("fuse3", FUSE3),
    # ---- polyfuse: reads the fd before it waits for the helper, and unmounts by `-u -q -z` only where its file system has ended
    _hello("polyfuse", POLYFUSE, codes=(143,)),
    _hello("polyfuse", POLYFUSE, " --auto-unmount", codes=(143,)),
    # ---- fuse-backend-rs, the library of nydusd: tries mount(2) first, and passes fd=, rootmode= and the ids on to the helper
    _hello("fuse-backend-rs", FUSE_BACKEND),
    _hello("fuse-backend-rs", FUSE_BACKEND, " --auto-unmount"),
]
