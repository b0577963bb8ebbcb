"""Run the commands of the examples' pages as they are written there, and compare what they print with the pages."""

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cluster import ROOT, Cluster, Done, wait_until
from test_examples import DOWNLOADED

EXAMPLES = ROOT / "examples"


@dataclass(frozen=True)
class Step:
    """Holds a command, and the output that a page shows, if it shows any."""

    command: str
    shown: str


def pages() -> list[Path]:
    """Return the page of every example whose pods can run here."""
    found = [path for kind in ("device", "proxy", "starter") for path in (EXAMPLES / kind).glob("*/README.md")]
    return sorted(path for path in found if os.environ.get("MFCP_E2E_ALL") or path.parent.name not in DOWNLOADED)


def steps(page: Path) -> list[Step]:
    """Return the commands of a page's blocks. A block that shows output has a `$` before its commands."""
    text = page.read_text().partition("\n## A bucket of Google's\n")[0]  # that bucket would have to exist
    found = []
    for block in re.findall(r"(?:^    .*\n)+", text, re.MULTILINE):
        lines = [line[4:] for line in block.splitlines()]
        if not lines[0].startswith("$ "):
            found += [Step(line, "") for line in lines]
            continue
        for part in re.split(r"^\$ ", "\n".join(lines) + "\n", flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            found.append(Step(command, shown))
    return [step for step in found if not step.command.startswith("./build-for-kind.sh ")]  # the images are there


def run(command: str, pod: str) -> Done:
    """Run a page's command, as a user does; nothing may be wrong with its pod."""
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    assert pod not in done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def shows(step: Step, pod: str) -> None:
    """Compare with what the page shows. An upload may take a moment to appear."""
    seen = ""

    def is_shown() -> bool:
        nonlocal seen
        seen = run(step.command, pod).out
        return comparable(seen) == comparable(step.shown)

    wait_until(f"{step.command} shows {step.shown!r}", is_shown, 60, lambda: f"it is {seen!r}")


def comparable(output: str) -> str:
    """Remove carriage returns and empty lines, which progress bars print, and the mount options that other runtimes add."""
    lines = "".join(line for line in output.replace("\r", "").splitlines(keepends=True) if line.strip())
    return re.sub(r"\((r[ow]),[^)]*\)$", r"(\1)", lines, flags=re.MULTILINE)


@pytest.fixture
def removed_at_the_end(cluster: Cluster) -> Iterator[list[str]]:
    """Collect files of manifests that are deleted at the end."""
    files: list[str] = []
    yield files
    for file in files:
        cluster.check("delete", "--ignore-not-found", "--wait=true", "-f", str(ROOT / file), timeout=300)


@pytest.mark.parametrize("page", [pytest.param(path, id=str(path.parent.relative_to(EXAMPLES))) for path in pages()])
def test_a_page_does_what_it_says(removed_at_the_end: list[str], page: Path) -> None:
    listed = steps(page)
    assert any(step.shown for step in listed)
    pod = f"mfcp-example-{page.parent.parent.name}-{page.parent.name}"
    for step in listed:
        if applied := re.match(r"kubectl apply -f (\S+)", step.command):
            removed_at_the_end.append(applied[1])
        if step.shown:
            shows(step, pod)
        else:
            run(step.command, pod)
