"""Write the table of FUSE programs in docs/compatibility.md from what the tests have seen (tests/run --all)."""

import os
import platform
import re
from dataclasses import dataclass, field
from pathlib import Path

from harness.programs import REPOSITORY

DOCUMENT = REPOSITORY / "docs" / "compatibility.md"
_BEGIN = "<!-- made by tests/run --all -->"
_END = "<!-- end of what is made -->"
_HEAD = ["program", "version", "library", "mounts at", "seen", "with a fuse device", "what to give it, and what it says"]


@dataclass
class Row:
    """Holds what was asserted of one program."""

    name: str
    version: str
    library: str = ""
    places: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    with_device: str = ""
    notes: str = ""

    @property
    def cells(self) -> list[str]:
        places = {"/data": "the volume's path", "/elsewhere": "another path"}
        where = " or ".join(places[place] for place in self.places)
        return [self.name, self.version, self.library, where, ", ".join(self.seen), self.with_device, self.notes]


class Table:
    """Collects the rows of one run."""

    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}
        self._with_device: dict[str, str] = {}

    def add(self, row: Row) -> None:
        self._rows[row.name] = row

    def add_with_device(self, name: str, seen: str) -> None:
        """Add what was seen of a program in a container with a fuse device."""
        self._with_device[name] = seen

    def write(self, names: list[str], document: Path = DOCUMENT) -> None:
        """Put the table into the document, where every one of `names` has a row. Half a table would say nothing."""
        if set(names) - (set(self._rows) & set(self._with_device)):
            return
        for name, seen in self._with_device.items():
            self._rows[name].with_device = seen
        lines = [line(_HEAD), line(["---"] * len(_HEAD)), *(line(self._rows[name].cells) for name in names)]
        made = f"On {distribution()}, Linux {platform.release().split('-')[0]}:\n\n" + "\n".join(lines)
        replace(document, _BEGIN, made)


def replace(document: Path, begin: str, made: str) -> None:
    """Put a text between the line `begin` and the end of what is made there."""
    before, begun, rest = document.read_text().partition(begin)
    _, end, after = rest.partition(_END)
    assert begun and end, f"{document} has no place for the table"
    document.write_text(f"{before}{begun}\n{made}\n{end}{after}")


def made_in(document: Path, begin: str) -> str:
    """Return what replace() has put into a document."""
    return document.read_text().partition(begin)[2].partition(_END)[0].strip("\n")


def programs_in(document: Path = DOCUMENT) -> list[str]:
    """Return the programs that the table in the document names."""
    return re.findall(r"^\| ([^|]+) \|", made_in(document, _BEGIN), re.MULTILINE)[2:]


def is_everything_run() -> bool:
    """Return whether this is tests/run --all."""
    return os.environ.get("MFCP_ALL") == "1"


def line(cells: list[str]) -> str:
    """Return a line of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def distribution() -> str:
    """Return the name and the version of this machine's distribution."""
    release = platform.freedesktop_os_release()
    return f"{release['NAME'].removesuffix(' GNU/Linux')} {release.get('VERSION_ID', '')}".strip()
