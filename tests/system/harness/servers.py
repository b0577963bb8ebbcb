"""Run the servers that FUSE programs need, each in a container that shares its network with the FUSE container."""

import subprocess

from harness.container import LOG_FOLDER, Bind
from harness.events import wait_until
from harness.pod import Pod
from harness.programs import gcs_server, s3_server

_SSH_PORT = 2222
_S3_PORT = 9000
_GCS_PORT = 4443

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
    """Runs OpenSSH's sshd; it serves /srv of its container.

    `OPTIONS` are the sshfs options that the client needs.
    """

    OPTIONS = (
        f"-o ssh_command='ssh -F /dev/null',port={_SSH_PORT},IdentityFile=/ssh/key,"
        "StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null,LogLevel=ERROR"
    )

    def __init__(self, pod: Pod) -> None:
        self.container = pod.container()
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.container.logs / "key"], check=True)
        (self.container.logs / "sshd_config").write_text(_SSHD_CONFIG)
        self.container.check("mkdir -p /run/sshd /srv")
        # sshd refuses locked accounts, and root's account is locked on some machines.
        self.container.check("sed -i 's/^root:[^:]*:/root:*:/' /etc/shadow")
        server = self.container.start(f"/usr/sbin/sshd -D -e -f {LOG_FOLDER}/sshd_config")
        wait_until(f"sshd listens, {server.err}", lambda: "listening on" in server.err)

    @property
    def key(self) -> Bind:
        """Return the bind of the key with which the client logs in."""
        return Bind(self.container.logs, "/ssh", read_only=True)


class S3Server:
    """Runs a small S3 server with one empty bucket."""

    BUCKET = "test-bucket"
    URL = f"http://127.0.0.1:{_S3_PORT}"

    def __init__(self, pod: Pod) -> None:
        self.container = pod.container([Bind(s3_server(), "/usr/bin/s3-server", read_only=True)])
        self.container.start(f"/usr/bin/s3-server -host 127.0.0.1:{_S3_PORT} -backend memory -initialbucket {self.BUCKET}")
        wait_until("the S3 server answers", lambda: self.container.run(f"curl -sf {self.URL}/{self.BUCKET}").code == 0)


class GcsServer:
    """Runs a small server that speaks Google's protocol, with one empty bucket.

    `OPTIONS` are the options that gcsfuse needs: where the server is, and which of Google's calls it does not know.
    """

    BUCKET = "test-bucket"
    URL = f"http://127.0.0.1:{_GCS_PORT}"
    OPTIONS = f"--custom-endpoint={URL}/storage/v1/ --enable-hns=false --enable-atomic-rename-object=false"

    def __init__(self, pod: Pod) -> None:
        self.container = pod.container([Bind(gcs_server(), "/usr/bin/gcs-server", read_only=True)])
        where = f"-scheme http -host 127.0.0.1 -port {_GCS_PORT} -public-host 127.0.0.1:{_GCS_PORT} -external-url {self.URL}"
        self.container.start(f"/usr/bin/gcs-server {where} -backend memory")
        make = f"curl -sf -X POST -H 'Content-Type: application/json' -d '{{\"name\":\"{self.BUCKET}\"}}' {self.URL}/storage/v1/b?project=x"
        wait_until("the server of buckets answers", lambda: self.container.run(make).code == 0)
