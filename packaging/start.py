"""What runs first in a frozen program: client.py puts it in front of the program's modules and its call of run().

Python's own import system would look for each module in several places and open a file for it; here they are all at
hand, in the order in which they import each other.
"""

import posix
import sys
from marshal import loads


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
