"""Ask for mounts of a fuse device as no client of the project does: device_client.py HOW [ARGUMENT...]

It prints one line: "mounted", or what the driver answers. A mount lives until the program is killed, or until its standard input ends.

    at PATH [OPTIONS]         the mountpoint is PATH, and not what a link there leads to
    chroot ROOT PATH          the same, after chroot(2) to ROOT
    fds KIND PATH             what is sent with the request is something else: see _FDS
    detached PATH             PATH in a copy of the mount that is attached nowhere, made in a user namespace of this program's own
    inner PATH, outer PATH    PATH in a mount namespace of a child's own, asked from here; and the other way round
    dead PATH                 the process that has connected has ended
    reused PATH               the same, and another process has got its pid: the program says "dead PID", and asks after the next line
    replaced PATH             the process that has connected has become another program meanwhile
    lend SOCKET               connect, give the connection to who connects to SOCKET, and wait
    lent SOCKET PATH          ask with a connection that is lent
    become-user-namespace N PATH    change to a new user namespace in the middle of N requests; prints how often it was mounted
    hold N PATH               N connections that send nothing; prints "holds"
    pile N PATH               N times: mount, use the file system, and unmount it lazily; prints the answer to one mount more, and waits
    unmount PATH DEVICE       ask to unmount, lazily; DEVICE is MAJOR:MINOR or null
    many N PATH               N times: mount and leave, and wait until it is unmounted; prints how often
    latency N PATH            the same, and prints the seconds of a mount, of all the one in the middle
    stack N PATH              mount N times on top of one another, print each answer, and end
    flood SECONDS PATH        mounts and leaves; prints how often
"""

import array
import ctypes
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

SOCKET = "/opt/mfcp/socket/fuse.v1"

_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000
_SYS_OPEN_TREE = 428
_OPEN_TREE_CLONE = 1
_libc = ctypes.CDLL(None, use_errno=True)


def connect() -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(SOCKET)
    return connection


def send(connection: socket.socket, mountpoint: str, fds: list[int], names: tuple[str, ...] = ("mountpoint",), options: str = "") -> None:
    packet = json.dumps({"op": "mount", "mountpoint": mountpoint, "options": options, "fds": names}).encode()
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    connection.sendmsg([packet], control)


def receive(connection: socket.socket) -> tuple[str, list[int]]:
    """Return what the driver answers, and the fd that serves the mount."""
    data, fds, _, _ = socket.recv_fds(connection, 65536, 2)
    answer = json.loads(data) if data else {"error": "no answer"}
    return answer.get("error", "mounted"), fds


def ask(mountpoint: str, fd: int, options: str = "") -> tuple[str, list[int]]:
    with connect() as connection:
        send(connection, mountpoint, [fd], options=options)
        return receive(connection)


def path_only(path: str) -> int:
    return os.open(path, os.O_PATH | os.O_NOFOLLOW)


def unshare(flags: int) -> None:
    uid, gid = os.getuid(), os.getgid()
    if _libc.unshare(flags) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    if flags & _CLONE_NEWUSER:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)


def at(path: str, options: str = "") -> None:
    say(*ask(path, path_only(path), options))


def chroot(root: str, path: str) -> None:
    with connect() as connection:
        os.chroot(root)
        os.chdir("/")
        send(connection, path, [path_only(path)])
        say(*receive(connection))


def _opened_for_reading(path: str) -> list[int]:
    return [os.open(path, os.O_RDONLY)]


def _socket_file(path: str) -> list[int]:
    name = f"/tmp/socket-{os.getpid()}"
    socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).bind(name)
    return [path_only(name)]


def _fifo(path: str) -> list[int]:
    name = f"/tmp/fifo-{os.getpid()}"
    os.mkfifo(name)
    return [path_only(name)]


def _link(path: str) -> list[int]:
    name = f"/tmp/link-{os.getpid()}"
    os.symlink(path, name)
    return [path_only(name)]


def _lingering(path: str) -> list[int]:
    """Return a socket whose close waits for a peer that reads nothing."""
    listener = socket.create_server(("127.0.0.1", 0))
    ours = socket.create_connection(listener.getsockname())
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
    ours.setblocking(False)
    try:
        while True:
            ours.send(bytes(1 << 16))
    except BlockingIOError:
        pass
    _KEPT.append(listener)
    return [ours.detach()]


_KEPT: list[socket.socket] = []
_FDS = {
    "none": (lambda path: [], ("mountpoint",)),
    "two": (lambda path: [path_only(path), path_only(path)], ("mountpoint",)),
    "two-named": (lambda path: [path_only(path), path_only(path)], ("mountpoint", "mountpoint")),
    "unnamed": (lambda path: [path_only(path)], ()),
    "other-name": (lambda path: [path_only(path)], ("directory",)),
    "for-reading": (_opened_for_reading, ("mountpoint",)),
    "pipe": (lambda path: [os.pipe()[0]], ("mountpoint",)),
    "memory": (lambda path: [os.memfd_create("x")], ("mountpoint",)),
    "namespace": (lambda path: [os.open("/proc/self/ns/mnt", os.O_PATH)], ("mountpoint",)),
    "memory-path": (lambda path: [os.open(f"/proc/self/fd/{os.memfd_create('x')}", os.O_PATH)], ("mountpoint",)),
    "socket": (_socket_file, ("mountpoint",)),
    "fifo": (_fifo, ("mountpoint",)),
    "link": (_link, ("mountpoint",)),
    "device": (lambda path: [path_only("/dev/fuse")], ("mountpoint",)),
    "lingering": (_lingering, ("mountpoint",)),
    "unnamed-lingering": (_lingering, ()),
    "two-with-lingering": (lambda path: [path_only(path), *_lingering(path)], ("mountpoint",)),
}


def fds(kind: str, path: str) -> None:
    make, names = _FDS[kind]
    made = make(path)
    with connect() as connection:
        send(connection, path, made, names)
        if "lingering" in kind:
            for fd in made:
                os.close(fd)  # the one in the packet is the last
            print("sent", flush=True)
        say(*receive(connection))


def detached(path: str) -> None:
    def make() -> int:
        unshare(_CLONE_NEWUSER | _CLONE_NEWNS)
        return int(_libc.syscall(_SYS_OPEN_TREE, -100, path.encode(), _OPEN_TREE_CLONE))

    say(*ask(path, of_child(make)))


def inner(path: str) -> None:
    def make() -> int:
        unshare(_CLONE_NEWUSER | _CLONE_NEWNS)
        return path_only(path)

    say(*ask(path, of_child(make)))


def outer(path: str) -> None:
    fd = path_only(path)
    unshare(_CLONE_NEWUSER | _CLONE_NEWNS)
    say(*ask(path, fd))


def of_child(make: Callable[[], int]) -> int:
    """Return the fd that a child makes, which lives as long as this process."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        try:
            socket.send_fds(theirs, [b"x"], [make()])
            theirs.recv(1)
        finally:
            os._exit(0)
    theirs.close()
    _KEPT.append(ours)
    return socket.recv_fds(ours, 1, 1)[1][0]


def dead(path: str, is_to_be_reused: bool = False) -> None:
    say(*_ask_for_a_dead_process(path, is_to_be_reused))


def _ask_for_a_dead_process(path: str, is_to_be_reused: bool) -> tuple[str, list[int]]:

    def make() -> int:
        return connect().detach()

    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        socket.send_fds(theirs, [b"x"], [make()])
        os.read(theirs.fileno(), 1)
        os._exit(0)
    connection = socket.socket(fileno=socket.recv_fds(ours, 1, 1)[1][0])
    if is_to_be_reused:
        print(f"child {child}", flush=True)
        sys.stdin.readline()
    ours.send(b"x")
    os.waitpid(child, 0)
    if is_to_be_reused:
        print("dead", flush=True)
        _fork_until_told()
    send(connection, path, [path_only(path)])
    return receive(connection)


def _fork_until_told() -> None:
    """Fork short-lived processes until there is a line to read; then the last of them goes on living."""
    told = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), told.set()), daemon=True).start()
    while not told.is_set():
        child = os.fork()
        if child == 0:
            time.sleep(0.2)
            os._exit(0)
        time.sleep(0.001)


def replaced(path: str) -> None:
    connection, fd = connect(), path_only(path)
    for each in (connection.fileno(), fd):
        os.set_inheritable(each, True)
    os.execv(sys.executable, [sys.executable, __file__, "continue", path, str(connection.fileno()), str(fd)])


def go_on(path: str, connection: str, fd: str) -> None:
    sock = socket.socket(fileno=int(connection))
    send(sock, path, [int(fd)])
    say(*receive(sock))


def lend(name: str) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(name)
    listener.listen()
    print("lends", flush=True)
    while True:
        other, _ = listener.accept()
        connection = connect()
        socket.send_fds(other, [b"x"], [connection.fileno()])
        _KEPT.append(connection)


def lent(name: str, path: str) -> None:
    other = socket.socket(socket.AF_UNIX)
    other.connect(name)
    connection = socket.socket(fileno=socket.recv_fds(other, 1, 1)[1][0])
    send(connection, path, [path_only(path)])
    say(*receive(connection))


def become_user_namespace(times: str, path: str) -> None:
    mounted = 0
    for number in range(int(times)):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            fd = path_only(path)
            connection = connect()
            send(connection, path, [fd])
            # Spread over the time in which the driver looks at this process.
            until = time.monotonic() + 0.006 * number / int(times)
            while time.monotonic() < until:
                pass
            _libc.unshare(_CLONE_NEWUSER)
            os.write(writer, b"1" if receive(connection)[1] else b"0")
            os._exit(0)
        os.close(writer)
        mounted += os.read(reader, 1) == b"1"
        os.close(reader)
        os.waitpid(child, 0)
    print(mounted, flush=True)


def hold(number: str, path: str) -> None:
    _KEPT.extend(connect() for _ in range(int(number)))
    print("holds", flush=True)
    time.sleep(3600)


def pile(number: str, path: str) -> None:
    for _ in range(int(number)):
        text, served = ask(path, path_only(path))
        if not served:
            sys.exit(text)
        path_only(path)  # this uses the file system
        subprocess.run(["fusermount3", "-u", "-z", path], check=True)
    say(ask(path, path_only(path))[0], [])
    time.sleep(3600)


def unmount(path: str, device: str) -> None:
    with connect() as connection:
        number = None if device == "null" else device
        connection.send(json.dumps({"op": "unmount", "mountpoint": path, "lazy": True, "dev": number, "fds": []}).encode())
        data = connection.recv(65536)
    print(json.loads(data).get("error", "unmounted"))


def many(number: str, path: str) -> None:
    print(len(_mount_and_leave(int(number), path)))


def latency(number: str, path: str) -> None:
    seconds = sorted(_mount_and_leave(int(number), path))
    print(seconds[len(seconds) // 2])


def _mount_and_leave(number: int, path: str) -> list[float]:
    """Return the seconds of each mount."""
    seconds = []
    fd = path_only(path)
    for _ in range(number):
        began = time.monotonic()
        text, served = ask(path, fd)
        seconds.append(time.monotonic() - began)
        if not served:
            sys.exit(text)
        os.close(served[0])
        while f" {path} ".encode() in Path("/proc/self/mountinfo").read_bytes():
            time.sleep(0.001)
    return seconds


def stack(number: str, path: str) -> None:
    fd = path_only(path)
    for _ in range(int(number)):
        print(ask(path, fd)[0])


def flood(seconds: str, path: str) -> None:
    end, times = time.monotonic() + float(seconds), 0
    fd = path_only(path)
    while time.monotonic() < end:
        try:
            _, served = ask(path, fd)
        except OSError:
            continue
        for each in served:
            os.close(each)
        times += 1
    print(times, flush=True)


def say(text: str, fds: list[int]) -> None:
    print(text, flush=True)
    if fds:
        sys.stdin.read()


if __name__ == "__main__":
    how = {
        "at": at,
        "chroot": chroot,
        "fds": fds,
        "detached": detached,
        "inner": inner,
        "outer": outer,
        "dead": dead,
        "reused": lambda path: dead(path, is_to_be_reused=True),
        "replaced": replaced,
        "continue": go_on,
        "lend": lend,
        "lent": lent,
        "become-user-namespace": become_user_namespace,
        "hold": hold,
        "flood": flood,
        "unmount": unmount,
        "many": many,
        "stack": stack,
        "latency": latency,
        "pile": pile,
    }
    how[sys.argv[1]](*sys.argv[2:])
