"""Serve the files of a folder by fusepy, which uses libfuse through ctypes: fusepy_loopback.py FOLDER MOUNTPOINT."""

import errno
import os
import sys

try:
    import fusepy as fuse  # Debian's name for it
except ImportError:
    import fuse


class Loopback(fuse.Operations):
    def __init__(self, folder):
        self.folder = folder

    def __call__(self, operation, path, *arguments):
        return super().__call__(operation, self.folder + path, *arguments)

    def getattr(self, path, fh=None):
        found = os.lstat(path)
        return {name: getattr(found, name) for name in ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_mtime")}

    def readdir(self, path, fh):
        return [".", "..", *os.listdir(path)]

    def open(self, path, flags):
        return os.open(path, flags)

    def create(self, path, mode, fi=None):
        return os.open(path, os.O_WRONLY | os.O_CREAT, mode)

    def read(self, path, size, offset, fh):
        return os.pread(fh, size, offset)

    def write(self, path, data, offset, fh):
        return os.pwrite(fh, data, offset)

    def truncate(self, path, length, fh=None):
        os.truncate(path, length)

    def release(self, path, fh):
        os.close(fh)

    def mkdir(self, path, mode):
        os.mkdir(path, mode)

    def rename(self, old, new):
        os.rename(old, self.folder + new)

    def unlink(self, path):
        os.unlink(path)

    def rmdir(self, path):
        os.rmdir(path)

    def access(self, path, amode):
        if not os.access(path, amode):
            raise fuse.FuseOSError(errno.EACCES)


fuse.FUSE(Loopback(sys.argv[1]), sys.argv[2], foreground=True)
