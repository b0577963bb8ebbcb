"""Look for processes of the driver that have entered this user namespace, and try to reach into them, until SIGTERM: spy.py

It says "seen" when it has found one, and "reached HOW" when the kernel has let it in.
"""

import ctypes
import os
import resource
import signal

_PTRACE_ATTACH, _PTRACE_SEIZE = 16, 0x4206
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def attach(pid: int) -> None:
    if _libc.ptrace(_PTRACE_ATTACH, pid, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def seize(pid: int) -> None:
    if _libc.ptrace(_PTRACE_SEIZE, pid, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")


WAYS = {
    "mem": lambda pid: os.open(f"/proc/{pid}/mem", os.O_RDWR),
    "fds": lambda pid: os.listdir(f"/proc/{pid}/fd"),
    "root": lambda pid: os.stat(f"/proc/{pid}/root/"),
    "cwd": lambda pid: os.readlink(f"/proc/{pid}/cwd"),
    "environ": lambda pid: os.open(f"/proc/{pid}/environ", os.O_RDONLY),
    "namespace": lambda pid: os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY),
    "auxv": lambda pid: os.open(f"/proc/{pid}/auxv", os.O_RDONLY),
    "seize": seize,
    "attach": attach,
}
# These do harm to nothing but this container's own request.
HARM = (
    lambda pid: None,
    lambda pid: resource.prlimit(pid, resource.RLIMIT_NOFILE, (0, 0)),
    lambda pid: os.kill(pid, signal.SIGSTOP),
    lambda pid: os.kill(pid, signal.SIGKILL),
)


def read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


def is_drivers(pid: int) -> bool:
    """Return whether a process looks like one of the driver's."""
    try:
        return b"meta-fuse" in read(f"/proc/{pid}/cmdline")
    except OSError:
        return False


def main() -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
    own, seen = read("/proc/self/uid_map"), 0
    drivers = {pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if is_drivers(pid)}
    print("spies", flush=True)
    newest = 0
    while True:
        before, newest = newest, int(read("/proc/loadavg").split()[-1])
        drivers |= {pid for pid in range(max(before - 2, newest - 500), newest + 1) if is_drivers(pid)}
        for pid in list(drivers):
            try:
                if read(f"/proc/{pid}/uid_map") != own:
                    continue
            except OSError:
                drivers.discard(pid)
                continue
            seen += 1
            print("seen", pid, flush=True)
            for how, way in WAYS.items():
                try:
                    way(pid)
                    print("reached", how, pid, flush=True)
                except OSError:
                    pass
            try:
                HARM[seen % len(HARM)](pid)
            except OSError:
                pass


if __name__ == "__main__":
    main()
