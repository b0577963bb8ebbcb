"""Begins the script of a frozen program. programs.py appends the program's modules and the call of run().

Python's own import system would search several places for each module and open a file for it. Here all modules are in the script,
in the order in which they import each other.
"""

import posix
import sys
from _signal import SIG_DFL, SIG_UNBLOCK, SIGINT, default_int_handler, getsignal, pthread_sigmask
from _signal import signal as set_signal
from marshal import loads

# This comes first, because Python's own action for SIGINT would end in a traceback.
if getsignal(SIGINT) is default_int_handler:
    set_signal(SIGINT, SIG_DFL)
if posix.environ.get(b"_PYI_SIGINT") == b"":
    pthread_sigmask(SIG_UNBLOCK, (SIGINT,))  # trampoline.c has blocked it


def load(modules: tuple[tuple[str, bytes], ...]) -> None:
    """Make modules from their names and marshalled code. Each module must come after those that it imports."""
    for name, code in modules:
        module = type(sys)(name)
        sys.modules[name] = module
        exec(loads(code), module.__dict__)


def reveal() -> None:
    """Restore the environment, and the name by which the program was called, as they were before trampoline.c changed them."""
    hidden = posix.environ.copy()
    posix.environ.clear()
    sys.argv[0] = hidden[b"_PYI_NAME"].decode(sys.getfilesystemencoding(), "surrogateescape")
    for name, value in hidden.items():
        if not name.startswith(b"_PYI_"):
            posix.environ[bytes((name[0] ^ 0x80,)) + name[1:]] = value
