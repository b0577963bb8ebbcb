"""Start fusermount3 as a FUSE library does, and send it a signal at a moment of its life: interrupted.py SIGNAL COUNT MOUNTPOINT

The moments cover its whole life: COUNT of them, and as many more as it takes until one comes too late. Prints one JSON
line for each: how fusermount3 ended, what it printed, and whether the fd came.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time

number, count, mountpoint = signal.Signals[f"SIG{sys.argv[1]}"], int(sys.argv[2]), sys.argv[3]


def run(delay: float | None) -> tuple[float, dict[str, object]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    environment = {**os.environ, "_FUSE_COMMFD": str(theirs.fileno())}
    began = time.monotonic()
    helper = subprocess.Popen(["fusermount3", "--", mountpoint], env=environment, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE)
    theirs.close()
    if delay is not None:
        time.sleep(delay)
        helper.send_signal(number)
    _, err = helper.communicate()
    lasted = time.monotonic() - began
    _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    for fd in fds:
        os.close(fd)
    ours.close()
    return lasted, {"code": helper.returncode, "err": err.decode(), "fd": bool(fds)}


whole = sorted(run(None)[0] for _ in range(3))[1]
step, results = 0, []
while step < count or (not any(result["code"] == 0 for result in results) and step < 10 * count):
    results.append(run(1.2 * whole * step / count)[1])
    step += 1
    print(json.dumps(results[-1]), flush=True)
