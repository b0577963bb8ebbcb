"""Serve a FUSE file system as no server should: hostile_fuse.py HOW MOUNTPOINT [OPTIONS]

It answers INIT and prints "serves"; it prints "asked NAME" when the kernel asks what HOW is about. HOW is one of:

    never-getattr, never-statfs, never-opendir,     reads that request, and never answers it
    never-read, never-mkdir
    never-anything                                  reads every request, and answers none
    never-writes                                    lets the kernel cache writes, and never takes them
    reads-nothing                                   reads only INIT
    root-is-link, root-is-file, root-is-device      answers so when it is asked for the root
    root-is-nothing                                 answers so with no type at all
    getattr-enotconn, statfs-enotconn               answers that with ENOTCONN
    getattr-fails                                   answers that with EIO
    device-file                                     its file is the device node of /dev/null
    huge                                            sizes of 2^64 - 1, names of 64 KiB in a listing
    garbage                                         answers that are too short, too long, for no request, and of no form
    unlocks                                         removes its lock from the fd, and serves
    unlocks-and-dies                                removes its lock, and dies by SIGKILL
    child-keeps                                     a child in a session of its own keeps the fd and serves; the parent ends
    exits-group                                     its first thread ends, another one serves
"""

import ctypes
import fcntl
import os
import signal
import stat
import struct
import sys
import threading
import time

from mini_fuse import Server, call_helper, receive_fd

_LOOKUP, _GETATTR, _MKDIR, _READ, _WRITE, _STATFS, _OPENDIR, _READDIR = 1, 3, 9, 15, 16, 17, 27, 28
_NEVER = {
    "never-getattr": _GETATTR,
    "never-read": _READ,
    "never-statfs": _STATFS,
    "never-opendir": _OPENDIR,
    "never-mkdir": _MKDIR,
    "never-writes": _WRITE,
}
_ROOT = {"root-is-link": stat.S_IFLNK, "root-is-file": stat.S_IFREG, "root-is-device": stat.S_IFBLK, "root-is-nothing": 0}
_ERRORS = {"getattr-enotconn": (_GETATTR, 107), "statfs-enotconn": (_STATFS, 107), "getattr-fails": (_GETATTR, 5)}
_HUGE = (1 << 64) - 1
_WRITEBACK_CACHE = 1 << 16  # FUSE_WRITEBACK_CACHE


class Hostile(Server):
    """Serves as Server does, except for what `how` says."""

    def __init__(self, fd: int, how: str) -> None:
        super().__init__(fd)
        self._how = how
        self._asked: set[int] = set()

    def begin(self) -> None:
        """Answer INIT."""
        _, unique, _, _ = super().read()
        self.answer_init(unique, _WRITEBACK_CACHE if self._how == "never-writes" else 0)

    def read(self) -> tuple[int, int, int, bytes]:
        while True:
            opcode, unique, node, rest = super().read()
            if not self._is_answered(opcode, unique, node, rest):
                return opcode, unique, node, rest

    def _is_answered(self, opcode: int, unique: int, node: int, rest: bytes) -> bool:
        if self._how == "never-anything" or _NEVER.get(self._how) == opcode:
            self._say(opcode)
            return True
        if opcode == _GETATTR and self._how in _ROOT:
            self._say(opcode)
            plain = self.attributes(node)
            mode = struct.pack("I", _ROOT[self._how] | 0o777)
            self.answer(unique, struct.pack("QII", 0, 0, 0) + plain[:60] + mode + plain[64:])
            return True
        if self._how in _ERRORS and opcode == _ERRORS[self._how][0]:
            self._say(opcode)
            self.answer(unique, error=_ERRORS[self._how][1])
            return True
        if self._how == "device-file" and opcode == _LOOKUP:
            plain = self.attributes(2)
            mode = struct.pack("IIIII", stat.S_IFCHR | 0o666, 1, 0, 0, os.makedev(1, 3))
            self.answer(unique, struct.pack("QQQQII", 2, 0, 1, 1, 0, 0) + plain[:60] + mode + plain[80:])
            return True
        if self._how == "huge" and opcode in (_GETATTR, _STATFS, _READDIR):
            self._say(opcode)
            self._answer_hugely(opcode, unique, node, rest)
            return True
        if self._how == "garbage":
            self._say(opcode)
            self._answer_garbage(unique)
            return True
        return False

    def _answer_hugely(self, opcode: int, unique: int, node: int, rest: bytes) -> None:
        if opcode == _STATFS:
            self.answer(unique, struct.pack("QQQQQIIII6I", *[_HUGE] * 5, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0, *[0] * 6))
        elif opcode == _GETATTR:
            plain = self.attributes(node)
            self.answer(unique, struct.pack("QII", 0, 0, 0) + plain[:8] + struct.pack("QQ", (1 << 63) - 1, _HUGE) + plain[24:])
        else:
            _, offset, size = struct.unpack_from("QQI", rest)
            entry = struct.pack("QQII", 2, 1, 65000, stat.S_IFREG >> 12) + b"n" * 65000
            self.answer(unique, b"" if offset else entry[:size])

    def _answer_garbage(self, unique: int) -> None:
        for reply in (b"", b"\0", b"x" * 15, struct.pack("IiQ", 1 << 30, 0, unique), struct.pack("IiQ", 16, 7, unique)):
            self._write(reply)
        self._write(struct.pack("IiQ", 16, 0, 0) + b"x")
        self._write(struct.pack("IiQ", 16, 0, unique ^ 0xFFFF))
        self._write(struct.pack("IiQ", 16 + 4096, 0, unique) + os.urandom(4096))
        self._write(struct.pack("IiQ", 16 + 3, 0, unique) + b"abc")
        self._write(struct.pack("IiQ", 16, -511, unique))

    def _write(self, reply: bytes) -> None:
        try:
            os.write(self.fd, reply)
        except OSError:
            pass

    def _say(self, opcode: int) -> None:
        if opcode not in self._asked:
            self._asked.add(opcode)
            print(f"asked {opcode}", flush=True)


def main() -> None:
    how, mountpoint, options = sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else ""
    comm, helper = call_helper("-o", options, "--", mountpoint)
    fd = receive_fd(comm)
    if helper.wait() != 0:
        sys.exit("the helper failed")
    server = Hostile(fd, how)
    server.begin()
    if how.startswith("unlocks"):
        fcntl.flock(fd, fcntl.LOCK_UN)
    print("serves", flush=True)  # before the parent may end: the test waits for this line, and an end before it would be a failure
    if how == "child-keeps":
        if os.fork() > 0:
            os._exit(0)
        os.setsid()
    if how == "unlocks-and-dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "reads-nothing":
        time.sleep(3600)
    if how == "exits-group":
        threading.Thread(target=server.serve).start()
        ctypes.CDLL(None).pthread_exit(None)
    server.serve()


if __name__ == "__main__":
    main()
