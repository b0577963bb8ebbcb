"""Do what libfuse 3.16 and later does with auto_unmount where it may mount by itself: direct_mount.py MOUNTPOINT [PREFIX...]

It mounts, starts `PREFIX... fusermount3 --auto-unmount -- MOUNTPOINT` with one end of a socket, and keeps the other end
for as long as it lives. It serves one file until it is unmounted. `--keeper SECONDS` in place of PREFIX leaves a child that
keeps the fd so much longer.
"""

import ctypes
import os
import sys
import time

from mini_fuse import Server, call_helper

mountpoint, prefix = sys.argv[1], sys.argv[2:]
fd = os.open("/dev/fuse", os.O_RDWR)
libc = ctypes.CDLL(None, use_errno=True)
data = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
if libc.mount(b"direct", os.fsencode(mountpoint), b"fuse.direct", ctypes.c_ulong(6), data) != 0:
    sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")
if prefix[:1] == ["--keeper"]:
    seconds, prefix, parent = float(prefix[1]), [], os.getpid()
    if os.fork() == 0:
        while os.getppid() == parent:
            time.sleep(0.0001)
        time.sleep(seconds)
        os._exit(0)
comm, helper = call_helper("--auto-unmount", "--", mountpoint, prefix=prefix)
print(helper.pid, flush=True)
server = Server(fd)
server.answer_init(server.read()[1])
server.serve()
# It is unmounted: the library closes its end at the program's end.
comm.close()
print(helper.wait(), flush=True)
