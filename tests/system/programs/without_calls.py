"""Start a command for which some system calls do not exist: a seccomp filter answers ENOSYS, as an older kernel would.

without_calls.py NUMBER[,NUMBER...] COMMAND [ARGUMENT...]
"""

import ctypes
import os
import struct
import sys
from errno import ENOSYS

# <linux/filter.h>, <linux/seccomp.h>, <linux/prctl.h>
LOAD_WORD = 0x20  # BPF_LD | BPF_W | BPF_ABS
JUMP_IF_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
RETURN = 0x06  # BPF_RET | BPF_K
ALLOW = 0x7FFF0000  # SECCOMP_RET_ALLOW
ERRNO = 0x00050000  # SECCOMP_RET_ERRNO
NUMBER = 0  # where struct seccomp_data has the system call's number
PR_SET_SECCOMP, MODE_FILTER = 22, 2


class Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """struct sock_filter"""
    return struct.pack("HBBI", code, if_true, if_false, value)


def main() -> None:
    calls = [int(number) for number in sys.argv[1].split(",")]
    filters = [instruction(LOAD_WORD, NUMBER)]
    for number in calls:
        filters += [instruction(JUMP_IF_EQUAL, number, 0, 1), instruction(RETURN, ERRNO | ENOSYS)]
    filters.append(instruction(RETURN, ALLOW))
    program = Program(len(filters), b"".join(filters))
    libc = ctypes.CDLL(None, use_errno=True)
    # It is loaded without no_new_privs, which root may do, so that nothing else differs.
    if libc.prctl(PR_SET_SECCOMP, MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
        sys.exit(f"prctl(PR_SET_SECCOMP): {os.strerror(ctypes.get_errno())}")
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
