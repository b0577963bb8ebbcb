"""Check that docs/compatibility.md has the options that the code reads."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from fusermount3_proxy import commandline  # noqa: E402
from fusermount3_proxy.wire import options  # noqa: E402


def test_the_table_of_mount_options_has_every_one_that_is_known_and_no_other() -> None:
    section = (ROOT / "docs/compatibility.md").read_text().partition("## The options of `-o`\n")[2].partition("\n## ")[0]
    named = [name for row in re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE) for name in re.findall(r"`([^`]*)`", row)]
    known = [*options.FLAGS, *options.UNSAFE, *options.ACCESS, *options.SKIPPED, "auto_unmount", "large_read", "blkdev"]
    known += [f"{name}=N" for name in options.NUMBERS] + ["fsname=TEXT", "subtype=TEXT"]
    known += [prefix if prefix.endswith("=") else f"{prefix}*" for prefix in options.SKIPPED_PREFIXES]
    assert sorted(named) == sorted(known)


def test_the_table_of_the_command_line_has_every_option_and_its_argument() -> None:
    rows = re.findall(r"^    (-\w| {2}) --([\w-]+) +([A-Z]+)?", commandline.__doc__ or "", re.MULTILINE)
    documented = {name: (short.strip("- "), bool(argument)) for short, name, argument in rows}
    letters = {name: letter for letter, name in commandline._SHORT.items()}
    known = {name: (letters.get(name, ""), takes_argument) for name, takes_argument in commandline._LONG.items()}
    assert documented == known
