"""Hold the kernel's lock of a directory: hold_directory.py DIRECTORY FILE

It reads DIRECTORY into memory that is a mapping of FILE. The kernel holds the lock until it has written there, and for that it reads
FILE, whose FUSE program must never answer a READ. The program ends with 0 when the read of DIRECTORY has ended, however it ended.
"""

import ctypes
import mmap
import os
import platform
import sys

_SYS_GETDENTS64 = {"x86_64": 217, "aarch64": 61}[platform.machine()]

directory, file = sys.argv[1:]
memory = mmap.mmap(os.open(file, os.O_RDONLY), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
ctypes.CDLL(None).syscall(_SYS_GETDENTS64, fd, ctypes.c_void_p(address), mmap.PAGESIZE)
