"""Collect what was seen of each engine into the table of docs/guide.md."""

import re
import shutil
from pathlib import Path

from engines import ENGINES, RUNTIMES, call
from harness import mounts
from harness.programs import REPOSITORY
from harness.table import distribution, line, made_in, replace

DOCUMENT = REPOSITORY / "docs" / "guide.md"
NOT_RUN = "not run, because the machine had no"
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
        return [*_HEAD, *self._rows().values()]

    def write(self, document: Path = DOCUMENT) -> None:
        """Put the rows into the document in place of those of the same distribution and cgroups, if nothing of the table is missing.

        The row of an engine that this machine does not have stays as another run wrote it.
        """
        if len(self._cells) < len(ENGINES) * len(RUNTIMES):
            return
        rows = {engine: row for engine, row in self._rows().items() if row.count(NOT_RUN) < len(RUNTIMES)}
        here = f"| {place()} |"
        found = made_in(document, _BEGIN).splitlines()[2:]
        whole = [row for row in found if not row.startswith(here)]
        for engine in ENGINES:
            whole += [rows[engine]] if engine in rows else [row for row in found if row.startswith(f"{here} {engine} ")]
        replace(document, _BEGIN, "\n".join([*_HEAD, *sorted(whole, key=lambda row: row.split(" | ")[0])]))

    def _rows(self) -> dict[str, str]:
        """Return the row of each engine."""
        return {
            engine: line(
                [
                    place(),
                    f"{engine} {version(programs[0]) if programs else ''}".strip(),
                    *(self._cells.get((engine, runtime), "-") for runtime in RUNTIMES),
                ]
            )
            for engine, (_, programs) in ENGINES.items()
            if any(each == engine for each, _ in self._cells)
        }


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
