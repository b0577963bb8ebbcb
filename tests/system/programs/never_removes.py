"""Serve a FUSE fd that was passed to it: a directory with a directory "mount", whose removal it never answers."""

import struct
import sys

from mini_fuse import Server

_LOOKUP, _RMDIR = 1, 11


class NeverRemoves(Server):
    """Serves a file system of directories."""

    def read(self) -> tuple[int, int, int, bytes]:
        while True:
            opcode, unique, node, rest = super().read()
            if opcode == _LOOKUP and rest.rstrip(b"\0") == b"mount":
                self.answer(unique, struct.pack("QQQQII", 2, 0, 1, 1, 0, 0) + self.attributes(2))
            elif opcode != _RMDIR:
                return opcode, unique, node, rest

    def attributes(self, node: int) -> bytes:
        return super().attributes(1)


server = NeverRemoves(int(sys.argv[1]))
server.answer_init(server.read()[1])
server.serve()
