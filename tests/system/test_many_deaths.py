"""Test that hundreds of FUSE programs die together, as when a node's memory runs out, and each dead mount is detached as fast as one."""

import os
import signal
import subprocess
import sys
import time

import pytest
from harness import mounts
from harness.events import wait_until
from harness.hostile import mount
from harness.pod import Pod

VOLUMES = 300
# seconds: five times what is promised, and half of what it takes where a death is found by a periodic check
LIMIT = 5.0
HOLDER = "import os, signal; os.write(1, b'.'); signal.pause()"


@pytest.mark.alone
def test_hundreds_of_programs_that_die_together(pod: Pod) -> None:
    volumes = [pod.publish(volume=f"volume-{number}", socket=f"fd-{number}.sock") for number in range(VOLUMES)]
    fds = [mount(volume) for volume in volumes]
    # One process serves them all: no test machine has room for hundreds of containers.
    with subprocess.Popen([sys.executable, "-c", HOLDER], pass_fds=fds, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stdout.read(1)
        for fd in fds:
            os.close(fd)
        served = {str(volume.target) for volume in volumes}
        assert {m.path for m in mounts.table() if m.is_fuse} >= served
        program.send_signal(signal.SIGKILL)
        began = time.monotonic()
        wait_until("all dead mounts are off", lambda: not served & {m.path for m in mounts.table() if m.is_fuse}, 30)
    seconds = time.monotonic() - began
    print(f"{VOLUMES} dead mounts were off after {seconds:.2f} s")
    assert seconds < LIMIT
    for volume in volumes[:: VOLUMES // 10]:
        os.close(mount(volume))
