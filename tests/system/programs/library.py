"""Do with fusermount3 what a FUSE library does: library.py KIND ARGUMENT...

Makes a socket pair (KIND is stream or seqpacket), starts `fusermount3 ARGUMENT...` with one end in _FUSE_COMMFD, and
prints as JSON how it ended, what it printed, and what came over the socket.
"""

import array
import json
import os
import socket
import subprocess
import sys

kind = {"stream": socket.SOCK_STREAM, "seqpacket": socket.SOCK_SEQPACKET}[sys.argv[1]]
ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
environment = {**os.environ, "_FUSE_COMMFD": str(theirs.fileno())}
helper = subprocess.run(["fusermount3", *sys.argv[2:]], env=environment, pass_fds=[theirs.fileno()], capture_output=True, text=True)
theirs.close()
data, control, _, _ = ours.recvmsg(100, socket.CMSG_SPACE(4 * 16))
fds = array.array("i", b"".join(part for _, _, part in control))
print(
    json.dumps(
        {
            "code": helper.returncode,
            "out": helper.stdout,
            "err": helper.stderr,
            "data": data.hex(),
            "fds": [os.readlink(f"/proc/self/fd/{fd}") for fd in fds],
        }
    )
)
