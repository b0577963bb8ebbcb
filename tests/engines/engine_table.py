"""Collect what was seen of each engine into the table of docs/guide.md."""

import re
import shutil
from pathlib import Path

from engines import ENGINES, RUNTIMES, call
from harness import mounts
from harness.programs import REPOSITORY
from harness.table import distribution, line, made_in, replace

DOCUMENT = REPOSITORY / "docs" / "guide.md"
_BEGIN = "<!-- made by tests/engines/run -->"
_HEAD = [line(["on", "engine", *(f"with {runtime}" for runtime in RUNTIMES)]), line(["---"] * (2 + len(RUNTIMES)))]


class Table:
    """Collects the cells of one run. A row is an engine, and a column a runtime."""

    def __init__(self) -> None:
        self._cells: dict[tuple[str, str], str] = {}

    def add(self, engine: str, runtime: str, seen: str) -> None:
        """Note what was seen of an engine with a runtime."""
        self._cells[engine, runtime] = f"{version(runtime)}: {seen}".removeprefix(": ")

    def lines(self) -> list[str]:
        """Return the table of this run."""
        return [*_HEAD, *self._rows()]

    def write(self, document: Path = DOCUMENT) -> None:
        """Put the rows into the document in place of those of the same distribution and cgroups, if nothing of the table is missing."""
        if len(self._cells) < len(ENGINES) * len(RUNTIMES):
            return
        kept = [row for row in made_in(document, _BEGIN).splitlines()[2:] if not row.startswith(f"| {place()} |")]
        rows = sorted([*kept, *self._rows()], key=lambda row: row.split(" | ")[0])
        replace(document, _BEGIN, "\n".join([*_HEAD, *rows]))

    def _rows(self) -> list[str]:
        return [
            line(
                [
                    place(),
                    f"{engine} {version(programs[0]) if programs else ''}".strip(),
                    *(self._cells.get((engine, runtime), "-") for runtime in RUNTIMES),
                ]
            )
            for engine, (_, programs) in ENGINES.items()
            if any(each == engine for each, _ in self._cells)
        ]


def version(program: str) -> str:
    """Return the version of a program, or "" if it is not installed."""
    if shutil.which(program) is None:
        return ""
    found = re.search(r"\d+(\.\d+)+", call(program, "--version"))
    return found[0] if found else ""


def place() -> str:
    """Return the distribution, and which cgroups it has."""
    kinds = {mount.fstype for mount in mounts.table() if mount.path.startswith("/sys/fs/cgroup")} & {"cgroup", "cgroup2"}
    return f"{distribution()}, {'hybrid cgroups' if len(kinds) == 2 else 'cgroups v2' if 'cgroup2' in kinds else 'cgroups v1'}"
