"""Servers that FUSE programs need, each in a container of its own, which shares its network with the FUSE container."""

import subprocess
from pathlib import Path

from harness.container import LOG_FOLDER, Bind
from harness.events import wait_until
from harness.pod import Pod
from harness.programs import path_of, s3_server

_SSH_PORT = 2222
_S3_PORT = 9000

_SSHD_CONFIG = f"""\
Port {_SSH_PORT}
ListenAddress 127.0.0.1
HostKey {LOG_FOLDER}/key
AuthorizedKeysFile {LOG_FOLDER}/key.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
StrictModes no
Subsystem sftp internal-sftp
"""


class SshServer:
    """OpenSSH's sshd; what it serves lies in /srv of its container."""

    def __init__(self, pod: Pod) -> None:
        self.container = pod.container()
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.container.logs / "key"], check=True)
        (self.container.logs / "sshd_config").write_text(_SSHD_CONFIG)
        self.container.check("mkdir -p /run/sshd /srv")
        # sshd refuses accounts that are locked, as root's is on some machines.
        self.container.check("sed -i 's/^root:[^:]*:/root:*:/' /etc/shadow")
        server = self.container.start(f"/usr/sbin/sshd -D -e -f {LOG_FOLDER}/sshd_config")
        wait_until(f"sshd listens, {server.err}", lambda: "listening on" in server.err)

    @property
    def key(self) -> Bind:
        """The key to log in with, for the container of the client."""
        return Bind(self.container.logs, "/ssh", read_only=True)

    @property
    def options(self) -> str:
        """What the client needs to be told, as sshfs options."""
        host_keys = "StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null,LogLevel=ERROR"
        return f"-o ssh_command='ssh -F /dev/null',port={_SSH_PORT},IdentityFile=/ssh/key,{host_keys}"


class S3Server:
    """A small S3 server with one empty bucket."""

    BUCKET = "test-bucket"
    URL = f"http://127.0.0.1:{_S3_PORT}"

    def __init__(self, pod: Pod) -> None:
        self.container = pod.container([Bind(s3_server(), "/usr/bin/s3-server", read_only=True)])
        self.container.start(f"/usr/bin/s3-server -host 127.0.0.1:{_S3_PORT} -backend memory -initialbucket {self.BUCKET}")
        wait_until("the S3 server answers", lambda: self.container.run(f"curl -sf {self.URL}/{self.BUCKET}").code == 0)


def squashfs_image(folder: Path, content: Path) -> Path:
    """A squashfs file system of the files in `content`."""
    image = folder / "image.squashfs"
    subprocess.run([path_of("mksquashfs"), content, image, "-quiet", "-no-progress"], check=True)
    return image


def ext4_image(folder: Path, content: Path) -> Path:
    """An ext4 file system of the files in `content`."""
    image = folder / "image.ext4"
    subprocess.run([path_of("mke2fs"), "-q", "-t", "ext4", "-d", content, image, "8M"], check=True)
    return image
