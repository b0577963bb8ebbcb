"""Run the driver from its source with a mistake in it: broken_driver.py MODULE:FUNCTION COMMAND --OPTION...

FUNCTION, or CLASS.METHOD, raises an unexpected exception when it is called for the first time.
"""

import importlib
import os
import sys
from functools import reduce
from typing import Any

TEXT = "a mistake that a test has put in"


def break_once(place: str) -> None:
    module, _, path = place.partition(":")
    *outer, name = path.split(".")
    owner = reduce(getattr, outer, importlib.import_module(module))
    whole = getattr(owner, name)
    mistakes = [RuntimeError(TEXT)]

    def broken(*arguments: Any, **named: Any) -> Any:
        if mistakes:
            raise mistakes.pop()
        return whole(*arguments, **named)

    setattr(owner, name, broken)


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    place, *command = sys.argv[1:]
    sys.argv[1:] = command[command.index("--endpoint") :]
    break_once(place)
    from driver import cli

    cli.run()
