"""What runs first in a frozen program: client.py puts it in front of the program's modules and its call of run().

Python's own import system would look for each module in several places and open a file for it; here they are all at
hand, in the order in which they import each other.
"""

import posix
import sys
from _signal import SIG_DFL, SIG_UNBLOCK, SIGINT, default_int_handler, getsignal, pthread_sigmask
from _signal import signal as set_signal
from marshal import loads

# First of all: Python's own action would end in a traceback.
if getsignal(SIGINT) is default_int_handler:
    set_signal(SIGINT, SIG_DFL)
if posix.environ.get(b"_PYI_SIGINT") == b"":
    pthread_sigmask(SIG_UNBLOCK, (SIGINT,))  # trampoline.c has blocked it


def load(modules: tuple[tuple[str, bytes], ...]) -> None:
    """Make modules from their names and marshalled code; each must come after those that it imports."""
    for name, code in modules:
        module = type(sys)(name)
        sys.modules[name] = module
        exec(loads(code), module.__dict__)


def reveal() -> None:
    """Give the environment back as it was before trampoline.c hid it. What is not hidden is the boot loader's own."""
    hidden = posix.environ.copy()
    posix.environ.clear()
    for name, value in hidden.items():
        if not name.startswith(b"_PYI_"):
            posix.environ[bytes((name[0] ^ 0x80,)) + name[1:]] = value
