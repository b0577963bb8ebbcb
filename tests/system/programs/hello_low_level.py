"""Serve one file that can only be read, by llfuse or pyfuse3: hello_low_level.py llfuse|pyfuse3 MOUNTPOINT.

The two libraries are alike, but llfuse uses libfuse 2, and pyfuse3 uses libfuse 3 in coroutines.
"""

import errno
import importlib
import stat
import sys

name, mountpoint = sys.argv[1:]
library = importlib.import_module(name)
CONTENT = b"Hello World!\n"
FILE = 2


def as_library_calls_it(function):
    """Return the function for llfuse, and for pyfuse3 a coroutine."""
    if name == "llfuse":
        return function

    async def coroutine(*arguments):
        return function(*arguments)

    return coroutine


class Hello(library.Operations):
    @as_library_calls_it
    def getattr(self, inode, ctx=None):
        return attributes(inode)

    @as_library_calls_it
    def lookup(self, parent, name, ctx=None):
        if name != b"hello":
            raise library.FUSEError(errno.ENOENT)
        return attributes(FILE)

    @as_library_calls_it
    def statfs(self, ctx):
        return library.StatvfsData()

    @as_library_calls_it
    def opendir(self, inode, ctx):
        return inode

    @as_library_calls_it
    def open(self, inode, flags, ctx):
        return inode if name == "llfuse" else library.FileInfo(fh=inode)

    @as_library_calls_it
    def read(self, fh, offset, size):
        return CONTENT[offset : offset + size]

    if name == "llfuse":

        def readdir(self, fh, offset):
            if offset == 0:
                yield b"hello", attributes(FILE), 1
    else:

        async def readdir(self, fh, offset, token):
            if offset == 0:
                library.readdir_reply(token, b"hello", attributes(FILE), 1)


def attributes(inode):
    found = library.EntryAttributes()
    found.st_ino = inode
    found.st_mode = stat.S_IFREG | 0o444 if inode == FILE else stat.S_IFDIR | 0o755
    found.st_size = len(CONTENT) if inode == FILE else 0
    return found


library.init(Hello(), mountpoint, {"fsname=hello", *library.default_options} - {"nonempty"})
try:
    if name == "llfuse":
        library.main(workers=1)
    else:
        import trio

        trio.run(library.main)
finally:
    library.close()
